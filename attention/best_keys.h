// The n keys that come first among those of a group of rows, without sorting: each part of a row finds its own
// (select_key.h), then a block joins them. They are in no order; where one stands among the others is counted when it
// is reported.
#pragma once

#include "logit_split.h"
#include "select_key.h"

namespace llm_decoder {
namespace gpu {

// A key is 0 where there are no more. In place of the first one, kBadKey: a row of the group is not finite.
struct BestKeys {
  int n = 0;                           // of a group
  int n_splits = 0;                    // of a group: the parts of all its rows
  int n_of_split = 0;                  // of a part: n, but no more than it may have
  std::uint64_t* of_splits = nullptr;  // [n_groups, n_splits, n_of_split]
  std::uint64_t* of_groups = nullptr;  // [n_groups, n]
};

struct BestArgs {
  RowArray logits;  // [n_rows, vocab_size]
  int vocab_size = 0, n_splits = 0;
  const std::int32_t* rows = nullptr;       // [n_draws], or null for row i
  const SplitSummary* summaries = nullptr;  // [n_draws, n_splits]
  int n_beams = 1;                          // draws of a group, which are consecutive
  const float* beam_scores = nullptr;       // [n_draws], or null: the order is that of the raw logits
  BestKeys best;
  // Results, [n_groups, n], the best first. -1 and NaN where a row of the group is not finite.
  std::int32_t* tokens = nullptr;
  std::int32_t* beams = nullptr;  // within the group; null without beams
  float* scores = nullptr;        // beam score + log probability, or the log probability
};

constexpr int kKeepBestSharedBytes = KeySelector::kSharedBytes + 64 + 16;

// The first n of the keys that a block brings go to `to`, zeros behind them where there are fewer. visit(fn) calls
// fn(key) for each key that this thread brings, 0 for none; the block brings no key twice. Every thread must come.
template <class Visit>
GPU_FUNCTION void keep_best(const Visit& visit, int n, std::uint64_t* to) {
  const auto scratch = shared_array<std::uint32_t>(KeySelector::kSharedBytes, kSampleThreads / kWarpSize);
  const auto n_kept = shared_array<std::uint32_t>(KeySelector::kSharedBytes + 64, 1);
  const auto visit_keys = [&](const auto& fn) {
    visit([&](std::uint64_t key) {
      if (key != 0) fn(key);
    });
  };
  if (thread_index() == 0) n_kept.store(0, 0);
  std::uint32_t n_keys = 0;
  visit_keys([&](std::uint64_t) { ++n_keys; });
  n_keys = block_sum(scratch, n_keys);
  std::uint64_t last = 1;
  if (n_keys > static_cast<std::uint32_t>(n)) {
    last = KeySelector(0).select(visit_keys, CountKeys{}, static_cast<std::uint64_t>(n)).key;
  }
  visit_keys([&](std::uint64_t key) {
    if (key >= last) to[n_kept.atomic_add(0, 1)] = key;
  });
  for (int i = static_cast<int>(n_keys) + thread_index(); i < n; i += kSampleThreads) to[i] = 0;
}

// What a part of a row leaves where the row is not finite.
GPU_FUNCTION void keep_bad(int n, std::uint64_t* to) {
  for (int i = thread_index(); i < n; i += kSampleThreads) to[i] = kBadKey;
}

// How many of n keys come before number i. Zeros come last, each at a place of its own.
GPU_FUNCTION int place_of_key(const std::uint64_t* keys, int n, int i) {
  const std::uint64_t key = keys[i];
  int place = 0;
  for (int j = 0; j < n; ++j) place += keys[j] > key || (keys[j] == key && j < i) ? 1 : 0;
  return place;
}

}  // namespace gpu
}  // namespace llm_decoder
