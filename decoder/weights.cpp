#include "weights.h"

#include <set>

#include "llm_decoder/errors.h"

namespace llm_decoder {
namespace {

constexpr char kPlace[] = "INT8Decoder.finalize";

using Layout = WeightView::Layout;

const char* name_of(Layout layout) {
  switch (layout) {
    case Layout::vector:
      return "vector";
    case Layout::f32:
      return "f32";
    case Layout::bf16:
      return "bf16";
    case Layout::w8:
      return "w8";
    case Layout::w4:
      return "w4";
  }
  return "?";
}

std::string shape_text(const WeightView& view) {
  if (view.layout == Layout::vector) return concat("vector [", view.n, "]");
  return concat(name_of(view.layout), " matrix [", view.n, ", ", view.k, "]");
}

// Looks weights up by name and remembers which were used.
class Resolver {
 public:
  explicit Resolver(const NamedWeights& weights) : weights_(weights) {}

  const float* vector(const std::string& name, std::int64_t n) {
    const WeightView& view = need(name);
    check_arg(view.layout == Layout::vector && view.n == n, kPlace, "weight ", name, " must be a vector [", n,
              "], got ", shape_text(view));
    return static_cast<const float*>(view.data);
  }

  const float* optional_vector(const std::string& name, std::int64_t n) {
    return weights_.count(name) > 0 ? vector(name, n) : nullptr;
  }

  Matrix matrix(const std::string& name, std::int64_t n, std::int64_t k) {
    const WeightView& view = need(name);
    check_arg(view.layout != Layout::vector && view.n == n && view.k == k, kPlace, "weight ", name,
              " must be a matrix [", n, ", ", k, "], got ", shape_text(view));
    check_kind(name, view);
    return {view.layout, static_cast<std::int32_t>(n),      static_cast<std::int32_t>(k), view.data,
            view.scales, optional_vector(name + ".bias", n)};
  }

  bool has(const std::string& name) const { return weights_.count(name) > 0; }
  bool is_quantized() const { return is_quantized_; }

  void check_all_used() const {
    for (const auto& [name, view] : weights_) {
      check_arg(used_.count(name) > 0, kPlace, "this model has no weight ", name, ", got ", shape_text(view));
    }
  }

 private:
  const WeightView& need(const std::string& name) {
    const auto found = weights_.find(name);
    check_arg(found != weights_.end(), kPlace, "weight ", name, " is missing; set_weight it before finalize");
    used_.insert(name);
    return found->second;
  }

  // The first matrix, the embedding, decides.
  void check_kind(const std::string& name, const WeightView& view) {
    if (!has_matrix_) {
      check_arg(view.layout != Layout::w4, kPlace, name, " must be f32, bf16 or w8, got ", shape_text(view));
      is_quantized_ = llm_decoder::is_quantized(view.layout);
    }
    has_matrix_ = true;
    check_arg(llm_decoder::is_quantized(view.layout) == is_quantized_, kPlace, "all matrices must be ",
              is_quantized_ ? "w8 or w4, as the embedding is quantised" : "f32 or bf16, as the embedding is", ", got ",
              name, " as ", shape_text(view));
  }

  const NamedWeights& weights_;
  std::set<std::string> used_;
  bool is_quantized_ = false;
  bool has_matrix_ = false;
};

LayerWeights resolve_layer(const ModelConfig& config, const std::string& prefix, Resolver& resolver) {
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
  Resolver resolver(weights);
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
