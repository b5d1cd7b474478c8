// Sums and maxima over a block, in an order that depends on the number of threads alone. Every thread of the block must
// come and all receive the result. `scratch` has an element a warp and is free again afterwards.
#pragma once

#include "machine.h"

namespace llm_decoder {
namespace gpu {

GPU_FUNCTION std::uint64_t warp_max(std::uint64_t x) {
  const auto high = static_cast<std::uint32_t>(x >> 32), low = static_cast<std::uint32_t>(x);
  const std::uint32_t max_high = reduce_max(high);
  return std::uint64_t{max_high} << 32 | reduce_max(high == max_high ? low : 0);
}
GPU_FUNCTION std::uint32_t warp_max(std::uint32_t x) { return reduce_max(x); }

template <class T>
GPU_FUNCTION T warp_sum(T x) {
  for (int mask = kWarpSize / 2; mask > 0; mask /= 2) x += shuffle_xor(x, mask);
  return x;
}

// The sum over this lane and those before it.
template <class T>
GPU_FUNCTION T warp_running_sum(T x) {
  for (int distance = 1; distance < kWarpSize; distance *= 2) {
    const T before = shuffle(x, lane() >= distance ? lane() - distance : lane());
    if (lane() >= distance) x += before;
  }
  return x;
}

template <class T>
GPU_FUNCTION T block_max(const Shared<T>& scratch, T x) {
  x = warp_max(x);
  if (lane() == 0) scratch.store(warp_index(), x);
  sync_block();
  for (int i = 0; i < n_threads() / kWarpSize; ++i) {
    const T other = scratch.load(i);
    x = other > x ? other : x;
  }
  sync_block();
  return x;
}

template <class T>
GPU_FUNCTION T block_sum(const Shared<T>& scratch, T x) {
  x = warp_sum(x);
  if (lane() == 0) scratch.store(warp_index(), x);
  sync_block();
  T sum = scratch.load(0);
  for (int i = 1; i < n_threads() / kWarpSize; ++i) sum += scratch.load(i);
  sync_block();
  return sum;
}

}  // namespace gpu
}  // namespace llm_decoder
