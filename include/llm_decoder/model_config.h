// A decoder-only transformer as plain numbers: the knobs that the layer loop reads. Python's model_config.py is its
// twin.
#pragma once

#include <cstdint>
#include <vector>

namespace llm_decoder {

struct ModelConfig {
  std::int32_t n_layers = 0;
  std::int32_t hidden_size = 0;
  std::int32_t n_heads = 0;
  std::int32_t n_kv_heads = 0;
  std::int32_t head_dim = 0;
  std::int32_t intermediate_size = 0;
  std::int32_t vocab_size = 0;     // rows of the embedding; may exceed the tokenizer's size
  std::int32_t max_model_len = 0;  // in tokens

  float norm_eps = 1e-5f;
  float attention_scale = 0.0f;        // multiplies q . k
  bool qk_norm = false;                // RMS norm of each q and k head before rope
  std::vector<std::int32_t> windows;   // [n_layers], in tokens including the query itself; 0 = full attention
  std::vector<float> rope_inv_freq;    // [rotary_dim / 2], radians per position, scaling already applied
  float rope_attention_factor = 1.0f;  // multiplies cos and sin (yarn, longrope)
};

}  // namespace llm_decoder
