#include "rope_rows.h"

#include <cmath>
#include <cstddef>

namespace llm_decoder {

// The angle is a float32 product, as HF transformers computes it: at position 100,000 the rounding of that product is
// far larger than the tolerance of a comparison. Its cosine is taken in double, so that no libm's last bit reaches a
// result.
void fill_rope_row(const ModelConfig& config, std::int32_t position, float* cos, float* sin) {
  for (std::size_t i = 0; i < config.rope_inv_freq.size(); ++i) {
    const float angle = config.rope_inv_freq[i] * static_cast<float>(position);
    cos[i] = static_cast<float>(std::cos(static_cast<double>(angle))) * config.rope_attention_factor;
    sin[i] = static_cast<float>(std::sin(static_cast<double>(angle))) * config.rope_attention_factor;
  }
}

}  // namespace llm_decoder
