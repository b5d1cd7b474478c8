#include "encoder_weights.h"

#include "llm_decoder/errors.h"

namespace llm_decoder {
namespace {

LayerNorm resolve_norm(const EncoderConfig& config, const std::string& name, WeightResolver& resolver) {
  return {resolver.vector(name, config.hidden_size),
          config.norm_bias ? resolver.vector(name + ".bias", config.hidden_size) : nullptr};
}

EncoderLayer resolve_layer(const EncoderConfig& config, std::int32_t index, WeightResolver& resolver) {
  const std::string prefix = concat("layer_", index, "/");
  const std::int64_t hidden = config.hidden_size, inner = config.intermediate_size;
  EncoderLayer layer;
  if (index > 0 || config.has_first_norm) layer.ln1 = resolve_norm(config, prefix + "ln1", resolver);
  layer.ln2 = resolve_norm(config, prefix + "ln2", resolver);
  layer.attn_qkv = resolver.matrix(prefix + "attn_qkv", 3 * hidden, hidden);
  layer.attn_o = resolver.matrix(prefix + "attn_o", hidden, hidden);
  layer.mlp_fc1 = resolver.matrix(prefix + "mlp_fc1", config.gated ? 2 * inner : inner, hidden);
  layer.mlp_fc2 = resolver.matrix(prefix + "mlp_fc2", hidden, inner);
  return layer;
}

}  // namespace

EncoderWeights resolve_encoder_weights(const EncoderConfig& config, const NamedWeights& weights) {
  WeightResolver resolver("Encoder.finalize", weights);
  const std::int64_t hidden = config.hidden_size;
  EncoderWeights resolved;
  resolved.embedding = resolver.matrix("embedding", config.vocab_size, hidden);
  if (config.n_positions > 0) {
    resolved.position_embedding = resolver.table("position_embedding", config.n_positions, hidden);
  }
  if (config.n_types > 0) resolved.type_embedding = resolver.table("type_embedding", config.n_types, hidden);
  if (config.embedding_norm) resolved.embedding_norm = resolve_norm(config, "embedding_norm", resolver);
  for (std::int32_t i = 0; i < config.n_layers; ++i) resolved.layers.push_back(resolve_layer(config, i, resolver));
  if (config.final_norm) resolved.final_norm = resolve_norm(config, "final_norm", resolver);
  resolved.is_quantized = resolver.is_quantized();
  resolver.check_all_used();
  return resolved;
}

}  // namespace llm_decoder
