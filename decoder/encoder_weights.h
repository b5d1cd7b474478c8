// The named weights of an encoder become checked parameters, one struct a layer. Memory stays borrowed.
#pragma once

#include <vector>

#include "llm_decoder/encoder_config.h"
#include "weight_resolver.h"

namespace llm_decoder {

struct LayerNorm {
  const float* weight = nullptr;  // [hidden]; null: there is no norm
  const float* bias = nullptr;    // [hidden] or null
};

struct EncoderLayer {
  LayerNorm ln1, ln2;
  Matrix attn_qkv;  // q rows, then k rows, then v rows
  Matrix attn_o;
  Matrix mlp_fc1;  // where gated, the rows that are activated, then those that they gate
  Matrix mlp_fc2;
};

struct EncoderWeights {
  bool is_quantized = false;  // all matrices are, or none
  Matrix embedding;
  Matrix position_embedding, type_embedding;  // data null where there is none
  LayerNorm embedding_norm, final_norm;
  std::vector<EncoderLayer> layers;
};

// Throws std::invalid_argument as WeightResolver does.
EncoderWeights resolve_encoder_weights(const EncoderConfig& config, const NamedWeights& weights);

}  // namespace llm_decoder
