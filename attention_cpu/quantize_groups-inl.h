// A row's groups of w4: the scale and minimum of each that fit it best, and the values. Several groups are searched at
// once, one a lane: no sum crosses lanes, so every ISA gives the same bits. Included after rows-inl.h.
#pragma once

// Adding and taking away 1.5 * 2^23 rounds half to even.
constexpr float kRounder = 12582912.0f;

using Lanes = float __attribute__((vector_size(kNativeLanes * sizeof(float))));

Lanes all_lanes(float x) { return Lanes{} + x; }
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
  return clamp(round_to_even(minimum), all_lanes(-kLargest), kLargest - kLargestQ * scale);
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
  const Lanes covering = clamp(round_up((high - low) / kLargestQ), all_lanes(1.0f), all_lanes(kLargestScale));
  Fit best{all_lanes(1.0f), Lanes{}};
  Lanes least = all_lanes(kInfinity);
  for (int i = 0; i < kScalesTried; ++i) {
    const Lanes scale = clamp(covering - static_cast<float>(i), all_lanes(1.0f), all_lanes(kLargestScale));
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

// row [k], of the scale that quantize_weight_rows gives it -> q in 0..15 [k], group_scale and group_min [n_groups(k)].
void quantize_groups(const float* row, std::int64_t k, float scale, std::uint8_t* q, std::uint8_t* group_scale,
                     std::int8_t* group_min) {
  const std::int64_t groups = n_groups(k);
  for (std::int64_t begin = 0; begin < groups; begin += kNativeLanes) {
    const std::int64_t n_lanes = groups - begin < kNativeLanes ? groups - begin : kNativeLanes;
    Lanes x[kGroupWidth] = {};
    for (std::int64_t lane = 0; lane < n_lanes; ++lane) {
      const std::int64_t first = (begin + lane) * kGroupWidth;
      const std::int64_t width = k - first < kGroupWidth ? k - first : kGroupWidth;
      float values[kGroupWidth];
      // A group that k cuts off is repeated until it is whole.
      for (std::int64_t i = 0; i < kGroupWidth; ++i) values[i] = row[first + (i < width ? i : i % width)];
      for (float& value : values) value /= scale;
      for (std::int64_t i = 0; i < kGroupWidth; ++i) x[i][lane] = values[i];
    }
    const Fit best = search(x);
    const ScaledGroup group = scaled_group(x, best.scale);
    for (std::int64_t i = 0; i < kGroupWidth; ++i) x[i] = quantized(group.values[i], best.minimum / best.scale);
    for (std::int64_t lane = 0; lane < n_lanes; ++lane) {
      group_scale[begin + lane] = static_cast<std::uint8_t>(best.scale[lane]);
      group_min[begin + lane] = static_cast<std::int8_t>(best.minimum[lane]);
      const std::int64_t first = (begin + lane) * kGroupWidth;
      const std::int64_t width = k - first < kGroupWidth ? k - first : kGroupWidth;
      for (std::int64_t i = 0; i < width; ++i) q[first + i] = static_cast<std::uint8_t>(x[i][lane]);
    }
  }
}
