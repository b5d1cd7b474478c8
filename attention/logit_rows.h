// What launches over rows of logits begin and end with: what the parts of a row sum up to, and the ranks of tokens.
#pragma once

#include "logit_split.h"
#include "split_edits.h"

namespace llm_decoder {
namespace gpu {

// Shared memory: scratch of reductions, then the edits where there are any.
constexpr int kEditsAt = 96;

// grid {n_draws, n_splits}
template <class H>
GPU_KERNEL summarise_split_kernel(const SamplingArgs args) {
  const int draw = block_index().x, split = block_index().y, n = args.vocab_size;
  const auto scratch = shared_array<std::uint64_t>(0, kSampleThreads / kWarpSize);
  const auto float_scratch = shared_array<float>(64, kSampleThreads / kWarpSize);
  float x[kTokensPerThread];
  load_split<H>(args.logits, row_of_draw(args.params, draw), split, n, x);

  bool is_bad = false;
  float largest = -kInf;
  GPU_UNROLL
  for (int i = 0; i < kTokensPerThread; ++i) {
    is_bad = is_bad || !(x[i] < kInf);
    largest = x[i] > largest ? x[i] : largest;
  }
  const float raw_max = value_of_key(block_max(scratch, token_key(largest, 0)));
  float sum = 0.0f;
  GPU_UNROLL
  for (int i = 0; i < kTokensPerThread; ++i) sum += exp_below(x[i], raw_max);
  const float raw_sum = block_sum(float_scratch, sum);

  if (args.edited.data != nullptr && has_edits(args.params, draw)) {
    SplitEdits(kEditsAt, args.params, draw, split).apply(x);
    GPU_UNROLL
    for (int v = 0; v < 2; ++v) {
      float values[kEight];
      GPU_UNROLL
      for (int k = 0; k < kEight; ++k) values[k] = x[v * kEight + k];
      store_eight<H>(args.edited, draw, split_token(split, v * kEight), n, values);
    }
  }
  std::uint64_t best = 0;
  GPU_UNROLL
  for (int i = 0; i < kTokensPerThread; ++i) {
    const int token = split_token(split, i);
    const std::uint64_t key = token < n && x[i] == x[i] ? token_key(x[i], token) : 0;
    best = key > best ? key : best;
  }
  best = block_max(scratch, is_bad ? kBadKey : best);
  if (thread_index() == 0) args.summaries[std::int64_t{draw} * args.n_splits + split] = {best, raw_max, raw_sum};

  if (args.bins == nullptr) return;
  BinTable& bins = args.bins[draw];
  for (int i = split * kSampleThreads + thread_index(); i < kBins; i += args.n_splits * kSampleThreads) {
    bins.weight[i] = 0;
    bins.n[i] = bins.n_gathered[i] = 0;
    if (i == 0) bins.weight_min_p = 0;
  }
}

// Adds to each token's rank how many logits of a part of its row are larger. grid {n_draws, n_splits}
template <class H>
GPU_KERNEL count_larger_kernel(const SamplingArgs args) {
  const int draw = block_index().x, split = block_index().y;
  const std::int32_t* const tokens = args.targets != nullptr ? args.targets : args.tokens;
  const std::int64_t first = std::int64_t{draw} * args.n_tokens;
  const int row = row_of_draw(args.params, draw);
  float x[kTokensPerThread];
  load_split<H>(args.logits, row, split, args.vocab_size, x);
  for (std::int64_t at = first; at < first + args.n_tokens; ++at) {
    if (args.ranks[at] == 0) continue;
    const float own = load_one<H>(args.logits, row, tokens[at]);
    std::uint32_t n_larger = 0;
    GPU_UNROLL
    for (int i = 0; i < kTokensPerThread; ++i) n_larger += x[i] > own ? 1 : 0;
    n_larger = reduce_add(n_larger);
    if (lane() == 0 && n_larger > 0) atomic_add(&args.ranks[at], static_cast<std::int32_t>(n_larger));
  }
}

}  // namespace gpu
}  // namespace llm_decoder
