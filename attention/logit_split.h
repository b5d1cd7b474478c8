// A block's part of a row of logits, in registers: 16 tokens a thread. Parts lie at multiples of kSplitTokens whatever
// the batch, so that no result depends on what else is in it.
#pragma once

#include "block_reduce.h"
#include "sampling_args.h"
#include "token_key.h"

namespace llm_decoder {
namespace gpu {

constexpr int kSampleThreads = 256;
constexpr int kTokensPerThread = 16;
constexpr int kSplitTokens = kSampleThreads * kTokensPerThread;
constexpr float kInf = __builtin_huge_valf();
constexpr float kLog2OfE = 1.4426950408889634f;
constexpr float kLnOf2 = 0.6931471805599453f;

// Token of this thread's i-th value.
GPU_FUNCTION int split_token(int split, int i) {
  return split * kSplitTokens + (i / kEight * kSampleThreads + thread_index()) * kEight + i % kEight;
}

// -inf past the end of the row.
template <class H>
GPU_FUNCTION void load_split(const RowArray& rows, std::int64_t row, int split, int n, float (&x)[kTokensPerThread]) {
  RawEight raw[2];
  GPU_UNROLL
  for (int v = 0; v < 2; ++v) raw[v] = load_eight(rows, row, split_token(split, v * kEight), n);
  GPU_UNROLL
  for (int v = 0; v < 2; ++v) {
    float values[kEight];
    to_floats<H>(raw[v], rows.is_float, values);
    GPU_UNROLL
    for (int k = 0; k < kEight; ++k) {
      x[v * kEight + k] = split_token(split, v * kEight + k) < n ? values[k] : -kInf;
    }
  }
}

// exp(x - max) where x <= max; 0 for -inf, whatever max.
GPU_FUNCTION float exp_below(float x, float max) { return x == -kInf ? 0.0f : exp2((x - max) * kLog2OfE); }

// The first part of what a row's parts say together: of the edited logits, the best token's key; kBadKey where the row
// is not finite.
GPU_FUNCTION std::uint64_t best_of_row(const SplitSummary* summaries, int n_splits) {
  std::uint64_t best = 0;
  for (int i = lane(); i < n_splits; i += kWarpSize) best = summaries[i].best > best ? summaries[i].best : best;
  return warp_max(best);
}

struct RowSums {
  float log_sum_exp;  // of the raw logits
  bool is_usable;     // no NaN, no +inf, and at least one value above -inf
};

// Every warp that wants it works it out by itself.
GPU_FUNCTION RowSums sums_of_row(const SplitSummary* summaries, int n_splits) {
  std::uint32_t largest = 0;
  bool is_bad = false;
  for (int i = lane(); i < n_splits; i += kWarpSize) {
    is_bad = is_bad || summaries[i].best == kBadKey;
    const std::uint32_t key = is_bad ? 0 : value_key(summaries[i].raw_max);
    largest = key > largest ? key : largest;
  }
  const float max = value_of_key(std::uint64_t{reduce_max(largest)} << 32);
  float sum = 0.0f;
  for (int i = lane(); i < n_splits; i += kWarpSize) {
    sum += summaries[i].raw_sum * exp_below(summaries[i].raw_max, max);
  }
  sum = warp_sum(sum);
  const bool is_usable = !any(is_bad) && max > -kInf;
  return {max + log2(sum) * kLnOf2, is_usable};
}

}  // namespace gpu
}  // namespace llm_decoder
