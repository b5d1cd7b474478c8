// Named weights become checked parameters, one struct a layer. Memory stays borrowed.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "llm_decoder/model_config.h"
#include "weight_resolver.h"

namespace llm_decoder {

struct LayerWeights {
  const float* ln1 = nullptr;     // [hidden]
  const float* ln2 = nullptr;     // [hidden]
  const float* q_norm = nullptr;  // [head_dim], only with qk_norm
  const float* k_norm = nullptr;  // [head_dim], only with qk_norm
  Matrix attn_qkv;                // q rows, then k rows, then v rows
  Matrix attn_o;
  Matrix mlp_gate_up;  // gate rows, then up rows
  Matrix mlp_down;
};

struct DecoderWeights {
  bool is_quantized = false;  // all matrices are, or none
  Matrix embedding;           // f32, bf16 or w8
  Matrix lm_head;             // the embedding again when tied
  const float* final_norm = nullptr;
  std::vector<LayerWeights> layers;
};

// Throws std::invalid_argument naming the weight that is missing, unknown, of a wrong shape or of a layout that does
// not go with the others.
DecoderWeights resolve_weights(const ModelConfig& config, const NamedWeights& weights);

}  // namespace llm_decoder
