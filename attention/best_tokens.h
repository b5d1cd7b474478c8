// The n best tokens of rows, in order, without sorting rows: each part of a row finds its own n best (select_key.h),
// then a block joins them. For beams the rows of a group compete, each token with its beam's score before it, and equal
// scores go to the lower beam, then the lower id, as in a flat view of [n_beams, vocab_size].
#pragma once

#include "logit_split.h"
#include "select_key.h"

namespace llm_decoder {
namespace gpu {

struct BestArgs {
  RowArray logits;  // [n_rows, vocab_size]
  int vocab_size = 0, n_splits = 0;
  const std::int32_t* rows = nullptr;       // [n_draws], or null for row i
  const SplitSummary* summaries = nullptr;  // [n_draws, n_splits]
  int n_best = 0;
  int n_beams = 1;                     // draws of a group, which are consecutive
  const float* beam_scores = nullptr;  // [n_draws], or null: the order is that of the raw logits
  std::uint64_t* keys = nullptr;       // [n_draws, n_splits, n_best]
  // Results, [n_groups, n_best], the best first. -1 and NaN where a row of the group is not finite.
  std::int32_t* tokens = nullptr;
  std::int32_t* beams = nullptr;  // within the group; null without beams
  float* scores = nullptr;        // beam score + log probability, or the log probability
};

constexpr int kBestSharedBytes = KeySelector::kSharedBytes + 64 + 16;

// grid {n_draws, n_splits}
template <class H>
GPU_KERNEL best_of_split_kernel(const BestArgs args) {
  const int draw = block_index().x, split = block_index().y, n = args.vocab_size;
  const SplitSummary* const summaries = args.summaries + std::int64_t{draw} * args.n_splits;
  const RowSums sums = sums_of_row(summaries, args.n_splits);
  std::uint64_t* const keys = args.keys + (std::int64_t{draw} * args.n_splits + split) * args.n_best;
  const auto n_found = shared_array<std::uint32_t>(KeySelector::kSharedBytes + 64, 1);
  if (thread_index() == 0) n_found.store(0, 0);
  sync_block();
  if (!sums.is_usable) {
    for (int i = thread_index(); i < args.n_best; i += kSampleThreads) keys[i] = kBadKey;
    return;
  }
  float x[kTokensPerThread];
  load_split<H>(args.logits, args.rows != nullptr ? args.rows[draw] : draw, split, n, x);
  const int first_id = args.beam_scores != nullptr ? draw % args.n_beams * n : 0;
  if (args.beam_scores != nullptr) {
    const float before = args.beam_scores[draw];
    GPU_UNROLL
    for (int i = 0; i < kTokensPerThread; ++i) x[i] = (x[i] - sums.log_sum_exp) + before;
  }
  const auto visit = [&](const auto& fn) {
    GPU_UNROLL
    for (int i = 0; i < kTokensPerThread; ++i) {
      const int token = split_token(split, i);
      if (token < n) fn(token_key(x[i], first_id + token));
    }
  };
  const int n_tokens = n - split * kSplitTokens < kSplitTokens ? n - split * kSplitTokens : kSplitTokens;
  std::uint64_t last = 0;
  if (n_tokens > args.n_best) {
    last = KeySelector(0).select(visit, CountKeys{}, static_cast<std::uint64_t>(args.n_best)).key;
  }
  visit([&](std::uint64_t key) {
    if (key >= last) keys[n_found.atomic_add(0, 1)] = key;
  });
  for (int i = n_tokens + thread_index(); i < args.n_best; i += kSampleThreads) keys[i] = 0;
}

constexpr int kMergeSharedBytes = KeySelector::kSharedBytes + kMaxBest * 8 + 16;

// grid {n_groups}
GPU_KERNEL merge_best_kernel(const BestArgs args) {
  const std::int64_t group = block_index().x;
  const int n_keys = args.n_beams * args.n_splits * args.n_best;
  const std::uint64_t* const keys = args.keys + group * n_keys;
  const auto best = shared_array<std::uint64_t>(KeySelector::kSharedBytes, kMaxBest);
  const auto n_found = shared_array<std::uint32_t>(KeySelector::kSharedBytes + kMaxBest * 8, 1);
  if (thread_index() == 0) n_found.store(0, 0);
  const auto visit = [&](const auto& fn) {
    for (int i = thread_index(); i < n_keys; i += kSampleThreads) {
      if (keys[i] != 0) fn(keys[i]);
    }
  };
  bool is_bad = false;
  visit([&](std::uint64_t key) { is_bad = is_bad || key == kBadKey; });
  const std::int64_t first_out = group * args.n_best;
  if (sync_block_or(is_bad)) {
    for (int i = thread_index(); i < args.n_best; i += kSampleThreads) {
      args.tokens[first_out + i] = kNotFinite;
      args.scores[first_out + i] = __builtin_nanf("");
      if (args.beams != nullptr) args.beams[first_out + i] = -1;
    }
    return;
  }
  const std::uint64_t last = KeySelector(0).select(visit, CountKeys{}, static_cast<std::uint64_t>(args.n_best)).key;
  visit([&](std::uint64_t key) {
    if (key >= last) best.store(static_cast<int>(n_found.atomic_add(0, 1)), key);
  });
  const float log_sum_exp = args.beam_scores != nullptr
                                ? 0.0f
                                : sums_of_row(args.summaries + group * args.n_splits, args.n_splits).log_sum_exp;
  sync_block();
  for (int i = thread_index(); i < args.n_best; i += kSampleThreads) {
    const std::uint64_t key = best.load(i);
    int rank = 0;
    for (int j = 0; j < args.n_best; ++j) rank += best.load(j) > key ? 1 : 0;
    const int id = id_of_key(key);
    args.tokens[first_out + rank] = id % args.vocab_size;
    args.scores[first_out + rank] = value_of_key(key) - log_sum_exp;
    if (args.beams != nullptr) args.beams[first_out + rank] = id / args.vocab_size;
  }
}

}  // namespace gpu
}  // namespace llm_decoder
