#include "quantize_f8.h"

#include <algorithm>

#include "elements.h"

namespace llm_decoder {
namespace gpu {
namespace {

constexpr float kLargest = 448.0f;

float row_scale(const float* w, std::int64_t k) {
  std::uint32_t largest = 0;  // magnitudes are in order as whole numbers, infinity and NaN the largest
  for (std::int64_t i = 0; i < k; ++i) largest = std::max(largest, float_bits(w[i]) & 0x7fffffffu);
  const float scale = bits_float(largest) / kLargest;
  return scale == 0.0f ? 1.0f : scale;
}

}  // namespace

void quantize_f8_rows(const float* w, std::int64_t row_stride, std::int64_t n, std::int64_t k, std::uint8_t* q,
                      float* scale) {
  for (std::int64_t row = 0; row < n; ++row, w += row_stride, q += k) {
    scale[row] = row_scale(w, k);
    for (std::int64_t i = 0; i < k; ++i) q[i] = from_float<Fp8>(w[i] / scale[row]).bits;
  }
}

}  // namespace gpu
}  // namespace llm_decoder
