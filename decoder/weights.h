// Named weights become checked parameters, one struct a layer. Memory stays borrowed.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "llm_decoder/decoder.h"
#include "llm_decoder/model_config.h"

namespace llm_decoder {

struct Matrix {
  std::int32_t n = 0, k = 0;      // out = in . [n, k]^T
  const void* data = nullptr;     // packed, w8 or f32 as DecoderWeights::layout says
  const float* scales = nullptr;  // [n] for w8
  const float* bias = nullptr;    // [n] or null
};

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
  WeightView::Layout layout = WeightView::Layout::f32;  // of all matrices
  Matrix embedding;
  Matrix lm_head;  // the embedding again when tied
  const float* final_norm = nullptr;
  std::vector<LayerWeights> layers;
};

using NamedWeights = std::map<std::string, WeightView>;

// Throws std::invalid_argument naming the weight that is missing, unknown, of a wrong shape or of a second layout.
DecoderWeights resolve_weights(const ModelConfig& config, const NamedWeights& weights);

}  // namespace llm_decoder
