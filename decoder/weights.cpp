#include "weights.h"

#include "llm_decoder/errors.h"

namespace llm_decoder {
namespace {

LayerWeights resolve_layer(const ModelConfig& config, const std::string& prefix, WeightResolver& resolver) {
  const std::int64_t hidden = config.hidden_size;
  const std::int64_t q_size = std::int64_t{config.n_heads} * config.head_dim;
  const std::int64_t kv_size = std::int64_t{config.n_kv_heads} * config.head_dim;
  LayerWeights layer;
  layer.ln1 = resolver.vector(prefix + "ln1", hidden);
  layer.ln2 = resolver.vector(prefix + "ln2", hidden);
  if (config.qk_norm) {
    layer.q_norm = resolver.vector(prefix + "q_norm", config.head_dim);
    layer.k_norm = resolver.vector(prefix + "k_norm", config.head_dim);
  }
  layer.attn_qkv = resolver.matrix(prefix + "attn_qkv", q_size + 2 * kv_size, hidden);
  layer.attn_o = resolver.matrix(prefix + "attn_o", hidden, q_size);
  layer.mlp_gate_up = resolver.matrix(prefix + "mlp_gate_up", 2 * std::int64_t{config.intermediate_size}, hidden);
  layer.mlp_down = resolver.matrix(prefix + "mlp_down", hidden, config.intermediate_size);
  return layer;
}

}  // namespace

DecoderWeights resolve_weights(const ModelConfig& config, const NamedWeights& weights) {
  WeightResolver resolver("INT8Decoder.finalize", weights);
  DecoderWeights resolved;
  resolved.embedding = resolver.matrix("embedding", config.vocab_size, config.hidden_size);
  for (std::int32_t i = 0; i < config.n_layers; ++i) {
    resolved.layers.push_back(resolve_layer(config, concat("layer_", i, "/"), resolver));
  }
  resolved.final_norm = resolver.vector("final_norm", config.hidden_size);
  resolved.lm_head =
      resolver.has("lm_head") ? resolver.matrix("lm_head", config.vocab_size, config.hidden_size) : resolved.embedding;
  resolved.is_quantized = resolver.is_quantized();
  resolver.check_all_used();
  return resolved;
}

}  // namespace llm_decoder
