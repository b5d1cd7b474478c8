// Rows of weights into panels and back, once at load. Baseline flags: a packed file is the same whoever wrote it.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "llm_decoder/cpu_kernels.h"

namespace llm_decoder {

void pack_f32(const float* w, std::int64_t row_stride, std::int64_t n, std::int64_t k, float* out) {
  for (std::int64_t panel = 0; panel < n_panels(n); ++panel) {
    float* lines = out + panel * k * kPanelWidth;
    for (std::int64_t column = 0; column < kPanelWidth; ++column) {
      const std::int64_t row = panel * kPanelWidth + column;
      for (std::int64_t i = 0; i < k; ++i) lines[i * kPanelWidth + column] = row < n ? w[row * row_stride + i] : 0.0f;
    }
  }
}

void pack_w8(const std::int8_t* q, std::int64_t row_stride, std::int64_t n, std::int64_t k, std::uint8_t* out) {
  const std::int64_t n_steps = k_padded(k) / kDotWidth;
  std::memset(out, 128, static_cast<std::size_t>(packed_w8_bytes(n, k)));
  for (std::int64_t row = 0; row < n; ++row) {
    std::uint8_t* column = out + (row / kPanelWidth * n_steps * kPanelWidth + row % kPanelWidth) * kDotWidth;
    for (std::int64_t step = 0; step < n_steps; ++step) {
      const std::int64_t width = std::min<std::int64_t>(kDotWidth, k - step * kDotWidth);
      std::uint8_t* quad = column + step * kPanelWidth * kDotWidth;
      for (std::int64_t i = 0; i < width; ++i) {
        quad[i] = static_cast<std::uint8_t>(q[row * row_stride + step * kDotWidth + i] + 128);
      }
    }
  }
}

void unpack_w8(const std::uint8_t* packed, std::int64_t n, std::int64_t k, std::int8_t* q, std::int64_t row_stride) {
  const std::int64_t n_steps = k_padded(k) / kDotWidth;
  for (std::int64_t row = 0; row < n; ++row) {
    const std::uint8_t* column = packed + (row / kPanelWidth * n_steps * kPanelWidth + row % kPanelWidth) * kDotWidth;
    for (std::int64_t i = 0; i < k; ++i) {
      const std::uint8_t biased = column[i / kDotWidth * kPanelWidth * kDotWidth + i % kDotWidth];
      q[row * row_stride + i] = static_cast<std::int8_t>(biased - 128);
    }
  }
}

void quantize_weight_rows(const float* w, std::int64_t row_stride, std::int64_t n, std::int64_t k, std::int8_t* q,
                          std::int64_t q_stride, float* scale) {
  for (std::int64_t row = 0; row < n; ++row) {
    const float* values = w + row * row_stride;
    float largest = 0.0f;
    for (std::int64_t i = 0; i < k; ++i) largest = std::max(largest, std::fabs(values[i]));
    scale[row] = largest == 0.0f ? 1.0f : largest / 127.0f;
    // Adding and taking away 1.5 * 2^23 rounds half to even, in a loop that vectorises without a rounding instruction.
    constexpr float kRounder = 12582912.0f;
    for (std::int64_t i = 0; i < k; ++i) {
      const float rounded = (values[i] / scale[row] + kRounder) - kRounder;
      q[row * q_stride + i] = static_cast<std::int8_t>(std::min(127.0f, std::max(-127.0f, rounded)));
    }
  }
}

}  // namespace llm_decoder
