// Rows of weights into panels and back, once at load. Baseline flags: a packed file is the same whoever wrote it.
#include <algorithm>
#include <cstring>

#include "llm_decoder/cpu_kernels.h"

namespace llm_decoder {

namespace {

// Both layouts are the same picture in units of 4 bytes (one float or 4 int8): a panel is the transpose of its 16 rows.
// Blocks of 16 x 16 units read and write whole cache lines. `unit_at(row, i)` reads unit i of a row of the panel.
template <class UnitAt>
void transpose_panel(std::int64_t n_units, const UnitAt& unit_at, std::uint32_t* lines) {
  for (std::int64_t begin = 0; begin < n_units; begin += kPanelWidth) {
    const std::int64_t end = std::min<std::int64_t>(begin + kPanelWidth, n_units);
    std::uint32_t block[kPanelWidth][kPanelWidth];
    for (std::int64_t row = 0; row < kPanelWidth; ++row) {
      for (std::int64_t i = begin; i < end; ++i) block[i - begin][row] = unit_at(row, i);
    }
    std::memcpy(lines + begin * kPanelWidth, block, static_cast<std::size_t>(end - begin) * sizeof(block[0]));
  }
}

}  // namespace

void pack_f32(const float* w, std::int64_t row_stride, std::int64_t n, std::int64_t k, float* out) {
  for (std::int64_t panel = 0; panel < n_panels(n); ++panel) {
    const float* rows = w + panel * kPanelWidth * row_stride;
    const std::int64_t n_rows = n - panel * kPanelWidth;
    const auto unit_at = [&](std::int64_t row, std::int64_t i) {
      std::uint32_t unit = 0;
      if (row < n_rows) std::memcpy(&unit, rows + row * row_stride + i, sizeof(unit));
      return unit;
    };
    transpose_panel(k, unit_at, reinterpret_cast<std::uint32_t*>(out + panel * k * kPanelWidth));
  }
}

void pack_w8(const std::int8_t* q, std::int64_t row_stride, std::int64_t n, std::int64_t k, std::uint8_t* out) {
  constexpr std::uint32_t kBias = 0x80808080;  // q ^ 128 is q + 128 in each byte
  const std::int64_t n_steps = k_padded(k) / kDotWidth;
  for (std::int64_t panel = 0; panel < n_panels(n); ++panel) {
    const std::int8_t* rows = q + panel * kPanelWidth * row_stride;
    const std::int64_t n_rows = n - panel * kPanelWidth;
    const auto unit_at = [&](std::int64_t row, std::int64_t step) {
      std::uint32_t unit = 0;
      const std::int8_t* quad = rows + row * row_stride + step * kDotWidth;
      const std::int64_t n_left = row < n_rows ? k - step * kDotWidth : 0;
      if (n_left >= kDotWidth) {
        std::memcpy(&unit, quad, kDotWidth);
      } else if (n_left > 0) {
        std::memcpy(&unit, quad, static_cast<std::size_t>(n_left));
      }
      return unit ^ kBias;
    };
    transpose_panel(n_steps, unit_at,
                    reinterpret_cast<std::uint32_t*>(out + panel * n_steps * kPanelWidth * kDotWidth));
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

namespace {

// The largest |x|, compared as integers, which vectorises on every CPU; a NaN is larger than all.
float largest_magnitude(const float* x, std::int64_t n) {
  std::int32_t largest = 0;
  for (std::int64_t i = 0; i < n; ++i) {
    std::int32_t bits;
    std::memcpy(&bits, x + i, sizeof(bits));
    largest = std::max(largest, bits & 0x7fffffff);
  }
  float out;
  std::memcpy(&out, &largest, sizeof(out));
  return out;
}

}  // namespace

void quantize_weight_rows(const float* w, std::int64_t row_stride, std::int64_t n, std::int64_t k, std::int8_t* q,
                          std::int64_t q_stride, float* scale) {
  for (std::int64_t row = 0; row < n; ++row) {
    const float* values = w + row * row_stride;
    std::int8_t* q_row = q + row * q_stride;
    const float of_row = largest_magnitude(values, k) / 127.0f;
    const float divisor = of_row == 0.0f ? 1.0f : of_row;
    scale[row] = divisor;
    // Adding and taking away 1.5 * 2^23 rounds half to even, in a loop that vectorises without a rounding instruction.
    constexpr float kRounder = 12582912.0f;
    for (std::int64_t i = 0; i < k; ++i) {
      const float rounded = (values[i] / divisor + kRounder) - kRounder;
      q_row[i] = static_cast<std::int8_t>(static_cast<std::int32_t>(std::min(127.0f, std::max(-127.0f, rounded))));
    }
  }
}

}  // namespace llm_decoder
