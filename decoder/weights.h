// Named weights become checked parameters, one struct a layer, wherever they lie. What the names are, and the shapes,
// stands here alone.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "llm_decoder/errors.h"
#include "llm_decoder/model_config.h"
#include "weight_resolver.h"

namespace llm_decoder {

// W: what a decoder has for a matrix.
template <class W>
struct LayerWeightsOf {
  const float* ln1 = nullptr;     // [hidden]
  const float* ln2 = nullptr;     // [hidden]
  const float* q_norm = nullptr;  // [head_dim], only with qk_norm
  const float* k_norm = nullptr;  // [head_dim], only with qk_norm
  W attn_qkv{};                   // q rows, then k rows, then v rows
  W attn_o{};
  W mlp_gate_up{};  // gate rows, then up rows
  W mlp_down{};
};

template <class W>
struct DecoderWeightsOf {
  W embedding{};
  W lm_head{};  // the embedding again when tied
  const float* final_norm = nullptr;
  std::vector<LayerWeightsOf<W>> layers;
};

// resolver: has vector, matrix and has, as WeightResolver, and throws as it does.
template <class W, class Resolver>
DecoderWeightsOf<W> resolve_decoder_weights(const ModelConfig& config, Resolver& resolver) {
  const std::int64_t hidden = config.hidden_size, inner = config.intermediate_size;
  const std::int64_t q_size = std::int64_t{config.n_heads} * config.head_dim;
  const std::int64_t kv_size = std::int64_t{config.n_kv_heads} * config.head_dim;
  DecoderWeightsOf<W> resolved;
  resolved.embedding = resolver.matrix("embedding", config.vocab_size, hidden);
  for (std::int32_t i = 0; i < config.n_layers; ++i) {
    const std::string prefix = concat("layer_", i, "/");
    LayerWeightsOf<W> layer;
    layer.ln1 = resolver.vector(prefix + "ln1", hidden);
    layer.ln2 = resolver.vector(prefix + "ln2", hidden);
    if (config.qk_norm) {
      layer.q_norm = resolver.vector(prefix + "q_norm", config.head_dim);
      layer.k_norm = resolver.vector(prefix + "k_norm", config.head_dim);
    }
    layer.attn_qkv = resolver.matrix(prefix + "attn_qkv", q_size + 2 * kv_size, hidden);
    layer.attn_o = resolver.matrix(prefix + "attn_o", hidden, q_size);
    layer.mlp_gate_up = resolver.matrix(prefix + "mlp_gate_up", 2 * inner, hidden);
    layer.mlp_down = resolver.matrix(prefix + "mlp_down", hidden, inner);
    resolved.layers.push_back(layer);
  }
  resolved.final_norm = resolver.vector("final_norm", hidden);
  resolved.lm_head =
      resolver.has("lm_head") ? resolver.matrix("lm_head", config.vocab_size, hidden) : resolved.embedding;
  resolver.check_all_used();
  return resolved;
}

using LayerWeights = LayerWeightsOf<Matrix>;
using DecoderWeights = DecoderWeightsOf<Matrix>;  // memory stays borrowed

}  // namespace llm_decoder
