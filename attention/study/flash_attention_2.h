// FlashAttention-2 (arXiv 2307.08691): queries are the outer loop, spread over blocks, and their states stay in
// registers until all keys have passed; warps share the queries, so that they need not talk to each other.
// Bytes: keys and values once a query head and tile of queries. With one query there is one block a head: a GPU of 132
// multiprocessors stands still.
#pragma once

#include "study.h"

namespace llm_decoder {
namespace gpu {
namespace study {

constexpr int kRowsPerWarp = 4;
constexpr int kBlockQueries = kRowsPerWarp * kStudyWarps;

// Goes over keys [key_begin, key_end) for the block's queries of one head; finish(row, state) at the end.
// grid: tiles of queries, n_heads, and what the caller makes of z.
template <class KeyAt, class Finish>
GPU_FUNCTION void attend_queries(const StudyArgs& args, int batch, int key_begin, int key_end, const KeyAt& key_at,
                                 const Finish& finish) {
  const int first_query = block_index().x * kBlockQueries + warp_index() * kRowsPerWarp, head = block_index().y;
  const KeyTile tile = make_tile(args);
  const auto row_of = [&](int query) { return (batch * args.n_queries + query) * args.n_heads + head; };
  const RowPlace place = place_of(args, row_of(0));
  const int last_query = (block_index().x + 1) * kBlockQueries - 1;
  const int seen_by_any = n_seen(args, last_query < args.n_queries ? last_query : args.n_queries - 1);
  const int end = key_end < seen_by_any ? key_end : seen_by_any;

  RowState states[kRowsPerWarp];
  for (int begin = key_begin; begin < end; begin += kStudyKeys) {
    const int n = end - begin < kStudyKeys ? end - begin : kStudyKeys;
    sync_block();
    load_tile(args, tile, begin, n, [&](int key) { return key_at(args, place, key); });
    sync_block();
    for (int i = 0; i < kRowsPerWarp; ++i) {
      const int query = first_query + i;
      if (query >= args.n_queries) break;
      const int seen = n_seen(args, query) - begin;
      add_tile(args, tile, args.q + std::int64_t{row_of(query)} * args.head_dim, seen < n ? seen : n, states[i]);
    }
  }
  for (int i = 0; i < kRowsPerWarp && first_query + i < args.n_queries; ++i) finish(row_of(first_query + i), states[i]);
}

// grid: tiles of queries, n_heads, n_batch.
GPU_KERNEL flash_attention_2_kernel(const StudyArgs args) {
  attend_queries(args, block_index().z, 0, args.n_keys, key_at,
                 [&](int row, const RowState& state) { store_out(args, row, state); });
}

}  // namespace study
}  // namespace gpu
}  // namespace llm_decoder
