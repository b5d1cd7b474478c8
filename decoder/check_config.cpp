#include "check_config.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>

#include "llm_decoder/errors.h"

namespace llm_decoder {

void check_config(const char* place, const ModelConfig& c) {
  const auto check_positive = [place](std::int32_t value, const char* name) {
    check_arg(value > 0, place, name, " must be positive, got ", value);
  };
  check_positive(c.n_layers, "n_layers");
  check_positive(c.hidden_size, "hidden_size");
  check_positive(c.n_heads, "n_heads");
  check_positive(c.n_kv_heads, "n_kv_heads");
  check_positive(c.head_dim, "head_dim");
  check_positive(c.intermediate_size, "intermediate_size");
  check_positive(c.vocab_size, "vocab_size");
  check_positive(c.max_model_len, "max_model_len");
  check_arg(c.n_heads % c.n_kv_heads == 0, place, "n_heads must be a multiple of n_kv_heads, got ", c.n_heads, " and ",
            c.n_kv_heads);
  check_arg(c.windows.size() == static_cast<std::size_t>(c.n_layers), place, "windows must have an entry for each of ",
            c.n_layers, " layers, got ", c.windows.size());
  for (const std::int32_t window : c.windows) {
    check_arg(window >= 0, place, "windows must not be negative, got ", window);
  }
  check_arg(2 * c.rope_inv_freq.size() <= static_cast<std::size_t>(c.head_dim), place,
            "rope_inv_freq must have at most head_dim / 2 entries, got ", c.rope_inv_freq.size(), " for head_dim ",
            c.head_dim);
  check_arg(std::isfinite(c.attention_scale) && c.attention_scale > 0.0f, place,
            "attention_scale must be positive, got ", c.attention_scale);
  check_arg(std::isfinite(c.norm_eps) && c.norm_eps >= 0.0f, place, "norm_eps must not be negative, got ", c.norm_eps);
  const std::int64_t largest = std::max(std::int64_t{2} * c.intermediate_size,
                                        (std::int64_t{c.n_heads} + 2 * std::int64_t{c.n_kv_heads}) * c.head_dim);
  check_arg(largest <= std::numeric_limits<std::int32_t>::max() / 16, place, "a layer is too wide: ", largest);
}

}  // namespace llm_decoder
