// The sum of what a token's experts made of it, in the order of its choices: the same bits whoever came first.
//
// Reads the rows of its pairs once and writes one, 16 bytes a load: bandwidth.
#pragma once

#include "machine.h"
#include "moe.h"

namespace llm_decoder {
namespace gpu {

struct MoeReduceArgs {
  MoePairs pairs;
  const void* rows = nullptr;  // [n_pairs, n] weighed; those of pairs that are not here hold garbage
  void* out = nullptr;         // [n_tokens, n]
  std::int64_t out_stride = 0;
  int n_tokens = 0, top_k = 0;
  int n = 0;  // a multiple of 8
};

constexpr int kReduceThreads = 256;

// A thread 8 elements. grid.x: ceil(n_tokens * n / 8 / kReduceThreads).
template <class T>
GPU_KERNEL moe_reduce_kernel(const MoeReduceArgs args) {
  const std::int64_t at = std::int64_t{block_index().x} * kReduceThreads + thread_index();
  const int n_chunks = args.n / 8;
  const std::int64_t token = at / n_chunks;
  const int column = static_cast<int>(at % n_chunks) * 8;
  if (token >= args.n_tokens) return;
  float sums[8] = {};
  for (int choice = 0; choice < args.top_k; ++choice) {
    const std::int64_t pair = token * args.top_k + choice;
    if (args.pairs.expert_of(pair) == kNotHere) continue;
    const T* const row = static_cast<const T*>(args.rows) + pair * args.n + column;
    const auto words = load_vec<4>(reinterpret_cast<const std::uint32_t*>(row));
    GPU_UNROLL
    for (int i = 0; i < 4; ++i) {
      const Vec<float, 2> two = unpack<T>(words.values[i]);
      sums[2 * i] += two.values[0];
      sums[2 * i + 1] += two.values[1];
    }
  }
  Vec<std::uint32_t, 4> out;
  GPU_UNROLL
  for (int i = 0; i < 4; ++i) out.values[i] = pack<T>(sums[2 * i], sums[2 * i + 1]);
  T* const to = static_cast<T*>(args.out) + token * args.out_stride + column;
  store_vec(reinterpret_cast<std::uint32_t*>(to), out);
}

}  // namespace gpu
}  // namespace llm_decoder
