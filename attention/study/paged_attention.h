// PagedAttention (arXiv 2309.06180), the form of its second version: Flash-Decoding over keys that lie in pages, found
// through a table. Bytes as Flash-Decoding, and a table entry a page; memory holds what is used and no more.
#pragma once

#include "flash_decoding.h"

namespace llm_decoder {
namespace gpu {
namespace study {

// grid: tiles of queries, n_heads, n_batch * n_splits.
GPU_KERNEL paged_decoding_kernel(const StudyArgs args) {
  const int split = block_index().z % args.n_splits;
  const KeyRange keys = split_of(args, split);
  attend_queries(
      args, block_index().z / args.n_splits, keys.begin, keys.end, paged_key_at,
      [&](int row, const RowState& state) { store_state(args, std::int64_t{row} * args.n_splits + split, state); });
}

}  // namespace study
}  // namespace gpu
}  // namespace llm_decoder
