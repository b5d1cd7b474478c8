// Float rows into integers, once at load: int8 rows for w8, groups of 4-bit values for w4. Every value has one order of
// operations: a packed file is the same whoever wrote it.
#include <algorithm>
#include <cstring>

#include "llm_decoder/cpu_kernels.h"

namespace llm_decoder {

namespace {

// Adding and taking away 1.5 * 2^23 rounds half to even, in a loop that vectorises without a rounding instruction.
constexpr float kRounder = 12582912.0f;

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

float row_scale(const float* x, std::int64_t n) {
  const float scale = largest_magnitude(x, n) / 127.0f;
  return scale == 0.0f ? 1.0f : scale;
}

}  // namespace

void quantize_weight_rows(const float* w, std::int64_t row_stride, std::int64_t n, std::int64_t k, std::int8_t* q,
                          std::int64_t q_stride, float* scale) {
  for (std::int64_t row = 0; row < n; ++row) {
    const float* values = w + row * row_stride;
    std::int8_t* q_row = q + row * q_stride;
    const float divisor = row_scale(values, k);
    scale[row] = divisor;
    for (std::int64_t i = 0; i < k; ++i) {
      const float rounded = (values[i] / divisor + kRounder) - kRounder;
      q_row[i] = static_cast<std::int8_t>(static_cast<std::int32_t>(std::min(127.0f, std::max(-127.0f, rounded))));
    }
  }
}

void quantize_weight_groups(const CpuKernels& kernels, const float* w, std::int64_t n, std::int64_t k, std::uint8_t* q,
                            std::uint8_t* group_scale, std::int8_t* group_min, float* scale) {
  const std::int64_t groups = n_groups(k);
  for (std::int64_t row = 0; row < n; ++row) {
    scale[row] = row_scale(w + row * k, k);
    kernels.quantize_groups(w + row * k, k, scale[row], q + row * k, group_scale + row * groups,
                            group_min + row * groups);
  }
}

}  // namespace llm_decoder
