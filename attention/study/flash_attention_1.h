// FlashAttention (arXiv 2205.14135): scores never leave the chip. A block takes a head; tiles of keys are the outer
// loop, queries the inner one, so each query's running state goes to memory and back once a tile.
// Bytes: keys and values once a query head; states n_tiles times.
#pragma once

#include "study.h"

namespace llm_decoder {
namespace gpu {
namespace study {

// grid: n_heads, n_batch. n_splits is 1.
GPU_KERNEL flash_attention_1_kernel(const StudyArgs args) {
  const int head = block_index().x, batch = block_index().y;
  const KeyTile tile = make_tile(args);
  const auto row_of = [&](int query) { return (batch * args.n_queries + query) * args.n_heads + head; };
  const RowPlace first = place_of(args, row_of(0));

  for (int query = warp_index(); query < args.n_queries; query += kStudyWarps) {
    store_state(args, row_of(query), RowState{});
  }
  for (int begin = 0; begin < args.n_keys; begin += kStudyKeys) {
    const int n = args.n_keys - begin < kStudyKeys ? args.n_keys - begin : kStudyKeys;
    sync_block();
    load_tile(args, tile, begin, n, [&](int key) { return key_at(args, first, key); });
    sync_block();
    for (int query = warp_index(); query < args.n_queries; query += kStudyWarps) {
      const int row = row_of(query), seen = n_seen(args, query) - begin;
      sync_warp();
      RowState state = load_state(args, row);
      add_tile(args, tile, args.q + std::int64_t{row} * args.head_dim, seen < n ? seen : n, state);
      sync_warp();
      store_state(args, row, state);
    }
  }
  for (int query = warp_index(); query < args.n_queries; query += kStudyWarps) {
    sync_warp();
    store_out(args, row_of(query), load_state(args, row_of(query)));
  }
}

}  // namespace study
}  // namespace gpu
}  // namespace llm_decoder
