// The n best tokens of rows, in order. For beams the rows of a group compete, each token with its beam's score before
// it, and equal scores go to the lower beam, then the lower id, as in a flat view of [n_beams, vocab_size].
#pragma once

#include "best_keys.h"

namespace llm_decoder {
namespace gpu {

// grid {n_draws, n_splits}
template <class H>
GPU_KERNEL best_of_split_kernel(const BestArgs args) {
  const int draw = block_index().x, split = block_index().y, n = args.vocab_size;
  const RowSums sums = sums_of_row(args.summaries + std::int64_t{draw} * args.n_splits, args.n_splits);
  const int n_kept = args.best.n_of_split;
  std::uint64_t* const keys = args.best.of_splits + (std::int64_t{draw} * args.n_splits + split) * n_kept;
  if (!sums.is_usable) {
    keep_bad(n_kept, keys);
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
      fn(token < n ? token_key(x[i], first_id + token) : 0);
    }
  };
  keep_best(visit, n_kept, keys);
}

// grid {n_groups}
GPU_KERNEL merge_best_kernel(const BestKeys best) {
  const std::int64_t group = block_index().x, n_keys = std::int64_t{best.n_splits} * best.n_of_split;
  const std::uint64_t* const keys = best.of_splits + group * n_keys;
  std::uint64_t* const to = best.of_groups + group * best.n;
  const auto visit = [&](const auto& fn) {
    for (std::int64_t i = thread_index(); i < n_keys; i += kSampleThreads) fn(keys[i]);
  };
  bool is_bad = false;
  visit([&](std::uint64_t key) { is_bad = is_bad || key == kBadKey; });
  if (sync_block_or(is_bad)) {
    if (thread_index() == 0) to[0] = kBadKey;
  } else {
    keep_best(visit, best.n, to);
  }
}

// grid {n_groups, ceil(n / threads of a block)}
GPU_KERNEL report_best_kernel(const BestArgs args) {
  const std::int64_t group = block_index().x, first = group * args.best.n;
  const std::uint64_t* const keys = args.best.of_groups + first;
  const int i = block_index().y * kSampleThreads + thread_index();
  const bool is_usable = keys[0] != kBadKey;
  float log_sum_exp = 0.0f;
  if (args.beam_scores == nullptr) {
    log_sum_exp = sums_of_row(args.summaries + group * args.n_splits, args.n_splits).log_sum_exp;
  }
  if (i >= args.best.n) return;
  const std::int64_t at = first + (is_usable ? place_of_key(keys, args.best.n, i) : i);
  const int id = is_usable ? id_of_key(keys[i]) : 0;
  args.tokens[at] = is_usable ? id % args.vocab_size : kNotFinite;
  args.scores[at] = is_usable ? value_of_key(keys[i]) - log_sum_exp : __builtin_nanf("");
  if (args.beams != nullptr) args.beams[at] = is_usable ? id / args.vocab_size : -1;
}

}  // namespace gpu
}  // namespace llm_decoder
