// An encoder as plain numbers: the knobs that its layer loop reads. Python's encoders/config.py is its twin and says
// what each of them means.
#pragma once

#include <cstdint>

#include "llm_decoder/cpu_kernels.h"

namespace llm_decoder {

struct EncoderConfig {
  std::int32_t n_layers = 0;
  std::int32_t hidden_size = 0;
  std::int32_t intermediate_size = 0;
  std::int32_t n_heads = 0;
  std::int32_t vocab_size = 0;
  std::int32_t n_positions = 0;  // 0: none learned
  std::int32_t position_offset = 0;
  std::int32_t n_types = 0;  // 0: none

  float norm_eps = 1e-12f;
  bool norm_bias = true;
  bool is_post_norm = true;  // x = norm(x + f(x)), else x = x + f(norm(x))
  bool embedding_norm = true;
  bool has_first_norm = true;
  bool final_norm = false;
  Activation activation = Activation::gelu;
  bool gated = false;
  double rope_theta = 0.0, local_rope_theta = 0.0;  // 0: none
  std::int32_t local_window = 0;                    // 0: none
  std::int32_t global_every = 1;

  std::int32_t head_dim() const { return hidden_size / n_heads; }
  // Tokens that a token of the layer sees to either side of it; 0: all.
  std::int32_t window_of(std::int32_t layer) const { return layer % global_every == 0 ? 0 : local_window / 2; }
  double rope_theta_of(std::int32_t layer) const {
    return window_of(layer) > 0 && local_rope_theta > 0.0 ? local_rope_theta : rope_theta;
  }
};

}  // namespace llm_decoder
