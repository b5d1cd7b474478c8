// Rows in global memory that kernels go over eight elements at a time: of Bf16 or Fp16, or of float32, told at run
// time. The branch is the same for all threads; loads come first and become floats later, so that those of several
// arrays are on their way together. Rows of any length, at any address: what is not 16 bytes together comes one by one.
#pragma once

#include "machine.h"

namespace llm_decoder {
namespace gpu {

constexpr int kEight = 8;

struct RowArray {
  const void* data = nullptr;
  std::int64_t stride = 0;  // elements between rows
  bool is_float = true;     // else of the type that the kernel is compiled for
  bool is_aligned = false;  // every row begins at a multiple of 16 bytes
};

// The same, to write to.
struct OutRowArray {
  void* data = nullptr;
  std::int64_t stride = 0;
  bool is_float = true, is_aligned = false;
};

// What came from memory: eight of two bytes in `low`, eight floats in both.
struct RawEight {
  Vec<std::uint32_t, 4> low, high;
};

// Elements [i, i + 8) of a row of n; zeros past its end.
GPU_FUNCTION RawEight load_eight(const RowArray& array, std::int64_t row, int i, int n) {
  RawEight raw{};
  const std::int64_t at = row * array.stride + i;
  const bool is_whole = array.is_aligned && i + kEight <= n;
  if (array.is_float) {
    const auto* from = static_cast<const std::uint32_t*>(array.data) + at;
    if (is_whole) {
      raw.low = load_vec<4>(from);
      raw.high = load_vec<4>(from + 4);
    } else {
      GPU_UNROLL
      for (int k = 0; k < 4; ++k) {
        if (i + k < n) raw.low.values[k] = load_vec<1>(from + k).values[0];
        if (i + 4 + k < n) raw.high.values[k] = load_vec<1>(from + 4 + k).values[0];
      }
    }
  } else {
    const auto* from = static_cast<const std::uint16_t*>(array.data) + at;
    if (is_whole) {
      raw.low = load_vec<4>(static_cast<const std::uint32_t*>(static_cast<const void*>(from)));
    } else {
      GPU_UNROLL
      for (int k = 0; k < kEight; ++k) {
        if (i + k < n) raw.low.values[k / 2] |= std::uint32_t{load_vec<1>(from + k).values[0]} << (16 * (k % 2));
      }
    }
  }
  return raw;
}

template <class H>
GPU_FUNCTION void to_floats(const RawEight& raw, bool is_float, float (&x)[kEight]) {
  GPU_UNROLL
  for (int k = 0; k < 4; ++k) {
    if (is_float) {
      x[k] = bits_float(raw.low.values[k]);
      x[4 + k] = bits_float(raw.high.values[k]);
    } else {
      const Vec<float, 2> pair = unpack<H>(raw.low.values[k]);
      x[2 * k] = pair.values[0];
      x[2 * k + 1] = pair.values[1];
    }
  }
}

template <class H>
GPU_FUNCTION void store_eight(const OutRowArray& array, std::int64_t row, int i, int n, const float (&x)[kEight]) {
  const std::int64_t at = row * array.stride + i;
  const bool is_whole = array.is_aligned && i + kEight <= n;
  if (array.is_float) {
    auto* to = static_cast<float*>(array.data) + at;
    if (is_whole) {
      store_vec(to, Vec<float, 4>{x[0], x[1], x[2], x[3]});
      store_vec(to + 4, Vec<float, 4>{x[4], x[5], x[6], x[7]});
    } else {
      GPU_UNROLL
      for (int k = 0; k < kEight; ++k) {
        if (i + k < n) to[k] = x[k];
      }
    }
  } else {
    auto* to = static_cast<std::uint16_t*>(array.data) + at;
    Vec<std::uint32_t, 4> words;
    GPU_UNROLL
    for (int k = 0; k < 4; ++k) words.values[k] = pack<H>(x[2 * k], x[2 * k + 1]);
    if (is_whole) {
      store_vec(static_cast<std::uint32_t*>(static_cast<void*>(to)), words);
    } else {
      GPU_UNROLL
      for (int k = 0; k < kEight; ++k) {
        if (i + k < n) {
          store_vec(to + k, Vec<std::uint16_t, 1>{static_cast<std::uint16_t>(words.values[k / 2] >> (16 * (k % 2)))});
        }
      }
    }
  }
}

// What store_eight leaves there.
template <class H>
GPU_FUNCTION void round_eight(bool is_float, float (&x)[kEight]) {
  if (is_float) return;
  GPU_UNROLL
  for (int k = 0; k < 4; ++k) {
    const Vec<float, 2> pair = unpack<H>(pack<H>(x[2 * k], x[2 * k + 1]));
    x[2 * k] = pair.values[0];
    x[2 * k + 1] = pair.values[1];
  }
}

// One element.
template <class H>
GPU_FUNCTION float load_one(const RowArray& array, std::int64_t row, int i) {
  const std::int64_t at = row * array.stride + i;
  if (array.is_float) return static_cast<const float*>(array.data)[at];
  return to_float(static_cast<const H*>(array.data)[at]);
}

}  // namespace gpu
}  // namespace llm_decoder
