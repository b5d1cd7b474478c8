// Float rows into integers, once at load: int8 rows for w8, groups of 4-bit values for w4. Baseline flags and one order
// of every sum: a packed file is the same whoever wrote it.
#include <algorithm>
#include <cstring>
#include <limits>

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

namespace {

// Several groups are searched at once, one a lane: no sum crosses lanes, so none waits for a special order.
constexpr std::int64_t kSearchLanes = 4;
using Lanes = float __attribute__((vector_size(kSearchLanes * sizeof(float))));

Lanes splat(float x) { return Lanes{} + x; }
Lanes round_to_even(Lanes x) { return (x + kRounder) - kRounder; }
Lanes round_up(Lanes x) {
  const Lanes rounded = round_to_even(x);
  return rounded < x ? rounded + 1.0f : rounded;
}
// A NaN gives `high`.
Lanes clamp(Lanes x, Lanes low, Lanes high) {
  x = x < low ? low : x;
  return x < high ? x : high;
}

constexpr float kLargest = 127.0f;
constexpr float kLargestQ = 15.0f;
constexpr float kLargestScale = 16.0f;  // 17 * 15 is wider than -127..127
// Scales from the smallest that covers the whole range downwards, which cuts the group's extremes off for a finer grid,
// and where the range's middle may lie on the grid. Trying everything there is gains another 1.5 % of the error.
constexpr int kScalesTried = 4;
constexpr float kShiftsTried[] = {-0.5f, -0.25f, 0.0f, 0.25f, 0.5f};

// The values of a group in units of its scale.
struct ScaledGroup {
  Lanes values[kGroupWidth];
};

ScaledGroup scaled_group(const Lanes (&x)[kGroupWidth], Lanes scale) {
  const Lanes inverse_scale = 1.0f / scale;
  ScaledGroup group;
  for (std::int64_t i = 0; i < kGroupWidth; ++i) group.values[i] = x[i] * inverse_scale;
  return group;
}

// q of a value for a minimum, both in units of the scale. Clamped before it is rounded: bounds that are no constants
// compile to one instruction each.
Lanes quantized(Lanes value, Lanes minimum) {
  return round_to_even(clamp(value, minimum, minimum + kLargestQ) - minimum);
}

// Of the q that `minimum` leads to: the minimum that fits them best.
Lanes mean_rest(const ScaledGroup& group, Lanes minimum) {
  Lanes even{}, odd{};  // two sums, so that one does not wait for the other
  for (std::int64_t i = 0; i < kGroupWidth; i += 2) {
    even += group.values[i] - quantized(group.values[i], minimum);
    odd += group.values[i + 1] - quantized(group.values[i + 1], minimum);
  }
  return (even + odd) / static_cast<float>(kGroupWidth);
}

Lanes squared_error(const ScaledGroup& group, Lanes minimum) {
  Lanes even{}, odd{};
  for (std::int64_t i = 0; i < kGroupWidth; i += 2) {
    const Lanes one = group.values[i] - minimum - quantized(group.values[i], minimum);
    const Lanes two = group.values[i + 1] - minimum - quantized(group.values[i + 1], minimum);
    even += one * one;
    odd += two * two;
  }
  return even + odd;
}

Lanes legal_minimum(Lanes minimum, Lanes scale) {
  return clamp(round_to_even(minimum), splat(-kLargest), kLargest - kLargestQ * scale);
}

struct Fit {
  Lanes scale, minimum;
};

Fit search(const Lanes (&x)[kGroupWidth]) {
  Lanes low = x[0], high = x[0];
  for (const Lanes value : x) {
    low = value < low ? value : low;
    high = value > high ? value : high;
  }
  const Lanes middle = (low + high) * 0.5f;
  const Lanes covering = clamp(round_up((high - low) / kLargestQ), splat(1.0f), splat(kLargestScale));
  Fit best{splat(1.0f), Lanes{}};
  Lanes least = splat(std::numeric_limits<float>::infinity());
  for (int i = 0; i < kScalesTried; ++i) {
    const Lanes scale = clamp(covering - static_cast<float>(i), splat(1.0f), splat(kLargestScale));
    const ScaledGroup group = scaled_group(x, scale);
    for (const float shift : kShiftsTried) {
      const Lanes start = middle / scale + (shift - 0.5f * kLargestQ);
      const Lanes minimum = legal_minimum(mean_rest(group, start) * scale, scale);
      const Lanes error = squared_error(group, minimum / scale) * (scale * scale);
      const auto is_better = error < least;
      least = is_better ? error : least;
      best.scale = is_better ? scale : best.scale;
      best.minimum = is_better ? minimum : best.minimum;
    }
  }
  return best;
}

}  // namespace

void quantize_weight_groups(const float* w, std::int64_t n, std::int64_t k, std::uint8_t* q, std::uint8_t* group_scale,
                            std::int8_t* group_min, float* scale) {
  const std::int64_t groups = n_groups(k);
  for (std::int64_t row = 0; row < n; ++row) {
    const float* values = w + row * k;
    const float divisor = row_scale(values, k);
    scale[row] = divisor;
    for (std::int64_t begin = 0; begin < groups; begin += kSearchLanes) {
      const std::int64_t n_lanes = std::min(kSearchLanes, groups - begin);
      Lanes x[kGroupWidth] = {};
      for (std::int64_t lane = 0; lane < n_lanes; ++lane) {
        // A group that k cuts off is repeated until it is whole.
        const float* group = values + (begin + lane) * kGroupWidth;
        const std::int64_t width = std::min<std::int64_t>(kGroupWidth, k - (begin + lane) * kGroupWidth);
        for (std::int64_t i = 0; i < kGroupWidth; ++i) x[i][lane] = group[i % width] / divisor;
      }
      const Fit best = search(x);
      const ScaledGroup group = scaled_group(x, best.scale);
      for (std::int64_t i = 0; i < kGroupWidth; ++i) x[i] = quantized(group.values[i], best.minimum / best.scale);
      for (std::int64_t lane = 0; lane < n_lanes; ++lane) {
        const std::int64_t number = begin + lane;
        group_scale[row * groups + number] = static_cast<std::uint8_t>(best.scale[lane]);
        group_min[row * groups + number] = static_cast<std::int8_t>(best.minimum[lane]);
        const std::int64_t first = number * kGroupWidth, end = std::min(k, first + kGroupWidth);
        for (std::int64_t i = first; i < end; ++i) q[row * k + i] = static_cast<std::uint8_t>(x[i - first][lane]);
      }
    }
  }
}

}  // namespace llm_decoder
