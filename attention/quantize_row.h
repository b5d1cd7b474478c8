// A held row to int8: symmetric, +-127, scale = max|x| / 127, x / scale to the nearest, ties to even. A row of zeros
// has scale 1, and so has one so small that the scale would be subnormal; one that is not finite has scale NaN.
#pragma once

#include "held_row.h"

namespace llm_decoder {
namespace gpu {

struct QuantizedRows {
  std::int8_t* q = nullptr;  // [n_rows, n_cols], or null where nothing is to be quantised
  std::int64_t stride = 0;
  float* scale = nullptr;   // [n_rows]
  bool is_aligned = false;  // every row begins at a multiple of 8 bytes
};

// Every thread of the row must come.
GPU_FUNCTION void quantize_held_row(const HeldRow& held, int n_cols, const QuantizedRows& out) {
  constexpr std::uint32_t kInfinityBits = 0x7f800000u;
  constexpr float kSmallestNormal = 1.17549435e-38f;
  // Magnitudes are in order as whole numbers, infinity and NaN the largest.
  std::uint32_t largest = 0;
  held.for_each_eight([&](int i) {
    float x[kEight];
    held.load(i, x);
    GPU_UNROLL
    for (int k = 0; k < kEight; ++k) {
      const std::uint32_t magnitude = float_bits(x[k]) & 0x7fffffffu;
      largest = i + k < n_cols && magnitude > largest ? magnitude : largest;
    }
  });
  largest = held.max(largest);
  float scale = bits_float(largest) / 127.0f;
  if (scale < kSmallestNormal) scale = 1.0f;
  if (largest >= kInfinityBits) scale = __builtin_nanf("");
  const float inverse = 1.0f / scale;
  std::int8_t* const to = out.q + held.row() * out.stride;
  bool is_first = false;
  held.for_each_eight([&](int i) {
    float x[kEight];
    held.load(i, x);
    Vec<std::uint32_t, 2> words{};
    GPU_UNROLL
    for (int k = 0; k < kEight; ++k) {
      words.values[k / 4] |= (static_cast<std::uint32_t>(round_to_int(x[k] * inverse)) & 0xffu) << (8 * (k % 4));
    }
    if (out.is_aligned && i + kEight <= n_cols) {
      store_vec(static_cast<std::uint32_t*>(static_cast<void*>(to + i)), words);
    } else {
      GPU_UNROLL
      for (int k = 0; k < kEight; ++k) {
        if (i + k < n_cols) to[i + k] = static_cast<std::int8_t>(words.values[k / 4] >> (8 * (k % 4)));
      }
    }
    is_first = is_first || i == 0;
  });
  if (is_first) out.scale[held.row()] = scale;
}

}  // namespace gpu
}  // namespace llm_decoder
