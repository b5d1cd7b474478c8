// Rows in shared memory whose 16-byte chunks trade places, so that the same chunk of eight neighbouring rows lies in
// eight different groups of banks: what ldmatrix reads at once.
#pragma once

#include "machine.h"

namespace llm_decoder {
namespace gpu {

template <int row_bytes>
struct Swizzle {
  static_assert(row_bytes % kSharedAlign == 0, "whole chunks");
  static constexpr int kChunks = row_bytes / kSharedAlign;
  static constexpr int kFactor = kChunks & -kChunks;         // the power of two in it
  static constexpr int kPlaces = kFactor < 8 ? kFactor : 8;  // chunks trade places among so many
  static constexpr int kRowsPerStep = 8 / kPlaces;

  // Bytes from the first row's begin to chunk `chunk` of row `row`. What does not trade places stays outside of the
  // xor: of a constant chunk it is a constant, and goes into the instruction that reads.
  static GPU_FUNCTION int at(int row, int chunk) {
    const int place = chunk % kPlaces ^ row / kRowsPerStep % kPlaces;
    return (row * kChunks + (chunk - chunk % kPlaces) + place) * kSharedAlign;
  }
};

}  // namespace gpu
}  // namespace llm_decoder
