// Eight neighbouring channels of a row, of any dtype in memory and floats in registers: what a lane moves at once, 16
// bytes of halves, twice 16 of floats, 8 of bytes. As words, for compilers split vectors of anything smaller.
#pragma once

#include "machine.h"

namespace llm_decoder {
namespace gpu {

constexpr int kChunk = 8;
constexpr int kMaxRowChannels = kWarpSize * kChunk;

// Lanes that share a row of at most kMaxRowChannels: as many as it has chunks, rounded up to a power of two, so that a
// warp holds whole rows.
constexpr int row_lanes_of(int n_channels) {
  int lanes = 1;
  while (lanes * kChunk < n_channels) lanes *= 2;
  return lanes;
}

template <class T>
GPU_FUNCTION void load_chunk(const T* from, float (&x)[kChunk]) {
  constexpr int kPerWord = 4 / static_cast<int>(sizeof(T));
  static_assert(sizeof(T) >= 2, "bytes are written here and read by attention alone");
  GPU_UNROLL
  for (int part = 0; part < 2; part += kPerWord) {
    const auto words = load_vec<4>(reinterpret_cast<const std::uint32_t*>(from) + part * 4);
    GPU_UNROLL
    for (int i = 0; i < 4; ++i) {
      if constexpr (sizeof(T) == 4) {
        x[part * 4 + i] = bits_float(words.values[i]);
      } else {
        x[2 * i] = to_float(T{static_cast<std::uint16_t>(words.values[i])});
        x[2 * i + 1] = to_float(T{static_cast<std::uint16_t>(words.values[i] >> 16)});
      }
    }
  }
}

// Rounded to T.
template <class T>
GPU_FUNCTION void store_chunk(T* to, const float (&x)[kChunk]) {
  constexpr int kWords = kChunk * static_cast<int>(sizeof(T)) / 4;
  constexpr int kVector = kWords < 4 ? kWords : 4;
  GPU_UNROLL
  for (int part = 0; part < kWords; part += kVector) {
    Vec<std::uint32_t, kVector> words;
    GPU_UNROLL
    for (int i = 0; i < kVector; ++i) {
      const int word = part + i;
      if constexpr (sizeof(T) == 4) {
        words.values[i] = float_bits(x[word]);
      } else if constexpr (sizeof(T) == 2) {
        words.values[i] = pack<T>(x[2 * word], x[2 * word + 1]);
      } else {
        words.values[i] = 0;
        GPU_UNROLL
        for (int j = 0; j < 4; ++j) words.values[i] |= byte_of(from_float<T>(x[4 * word + j])) << (8 * j);
      }
    }
    store_vec(reinterpret_cast<std::uint32_t*>(to) + part, words);
  }
}

}  // namespace gpu
}  // namespace llm_decoder
