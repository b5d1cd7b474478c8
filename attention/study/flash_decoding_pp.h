// FlashDecoding++ (arXiv 2311.01282), its three ideas:
//  - one maximum for all rows, guessed: exp(x - guess) needs no running maximum, nothing is rescaled, splits only add.
//    Where a logit lies too far from the guess the row is marked, and computed again by Flash-Decoding.
//  - flat products: the few queries that meet the same keys (a group of heads) go through together, padded to 8 rows
//    and not to 64, and the next tile is on its way meanwhile.
//  - the flow is chosen by the shape: choose_splits.
// Bytes: keys and values once a KV head.
#pragma once

#include "flash_decoding.h"

namespace llm_decoder {
namespace gpu {
namespace study {

constexpr int kFlatRows = 8;
// Base 2: sums of exp2 of what lies within stay exact enough in float32 and far from its ends.
constexpr float kTrustedDistance = 60.0f;

// Blocks for each KV head: enough for every multiprocessor, of at least four tiles.
constexpr int choose_splits(int n_blocks_unsplit, int n_keys, int n_multiprocessors) {
  const int wanted = (2 * n_multiprocessors + n_blocks_unsplit - 1) / n_blocks_unsplit;
  const int most = n_keys / (4 * kStudyKeys);
  return most < 1 ? 1 : wanted < most ? wanted : most;
}

// Rows [first, first + kFlatRows) of the group * n_queries rows that meet one KV head.
// grid: tiles of kFlatRows rows, n_kv_heads, n_batch * n_splits.
GPU_KERNEL unified_max_kernel(const StudyArgs args) {
  const int group = args.n_heads / args.n_kv_heads, batch = block_index().z / args.n_splits;
  const int split = block_index().z % args.n_splits, kv_head = block_index().y;
  const KeyRange keys = split_of(args, split);
  const KeyTile tile = make_tile(args);
  constexpr int kRows = kFlatRows / kStudyWarps;
  RowState states[kRows];
  bool is_wrong[kRows] = {};
  int rows[kRows], seen[kRows];
  for (int i = 0; i < kRows; ++i) {
    const int flat = block_index().x * kFlatRows + warp_index() * kRows + i;
    const bool is_row = flat < group * args.n_queries;
    const int query = is_row ? flat / group : 0;
    rows[i] = is_row ? (batch * args.n_queries + query) * args.n_heads + kv_head * group + flat % group : -1;
    seen[i] = is_row ? n_seen(args, query) : 0;
  }
  const RowPlace place{batch, 0, kv_head * group, kv_head};
  for (int begin = keys.begin; begin < keys.end; begin += kStudyKeys) {
    const int n = keys.end - begin < kStudyKeys ? keys.end - begin : kStudyKeys;
    sync_block();
    load_tile(args, tile, begin, n, [&](int key) { return key_at(args, place, key); });
    sync_block();
    for (int i = 0; i < kRows; ++i) {
      if (rows[i] < 0 || seen[i] <= begin) continue;
      const int n_mine = seen[i] - begin < n ? seen[i] - begin : n;
      const float distance =
          logit_of(args, tile, args.q + std::int64_t{rows[i]} * args.head_dim, n_mine) - args.unified_max;
      is_wrong[i] |= any(lane() < n_mine && (distance > kTrustedDistance || distance < -kTrustedDistance));
      const float p = exp2(distance);
      states[i].sum += sum_of_warp(p);
      add_values(args, tile, p, n_mine, states[i]);
    }
  }
  for (int i = 0; i < kRows; ++i) {
    if (rows[i] < 0) continue;
    states[i].max = args.unified_max;
    store_state(args, std::int64_t{rows[i]} * args.n_splits + split, states[i]);
    if (is_wrong[i] && lane() == 0) args.is_wrong[rows[i]] = 1;
  }
}

// A warp a row: splits only add. What is wrong is left to recompute_wrong_kernel.
GPU_KERNEL add_splits_kernel(const StudyArgs args) {
  const int row = block_index().x * kStudyWarps + warp_index();
  if (row >= n_rows(args)) return;
  RowState total;
  for (int split = 0; split < args.n_splits; ++split) {
    const RowState state = load_state(args, std::int64_t{row} * args.n_splits + split);
    total.sum += state.sum;
    for (int i = 0; i < kLaneChannels; ++i) total.out[i] += state.out[i];
  }
  store_out(args, row, total);
}

// A warp a row that was marked, over all its keys: rare, so simple.
GPU_KERNEL recompute_wrong_kernel(const StudyArgs args) {
  const int row = block_index().x;
  if (args.is_wrong[row] == 0) return;  // the whole block
  const RowPlace place = place_of(args, row);
  const KeyTile tile = make_tile(args);
  const int seen = n_seen(args, place.query);
  RowState state;
  for (int begin = 0; begin < seen; begin += kStudyKeys) {
    const int n = seen - begin < kStudyKeys ? seen - begin : kStudyKeys;
    sync_block();
    load_tile(args, tile, begin, n, [&](int key) { return key_at(args, place, key); });
    sync_block();
    if (warp_index() == 0) add_tile(args, tile, args.q + std::int64_t{row} * args.head_dim, n, state);
  }
  if (warp_index() == 0) store_out(args, row, state);
}

}  // namespace study
}  // namespace gpu
}  // namespace llm_decoder
