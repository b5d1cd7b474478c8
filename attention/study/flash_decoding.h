// Flash-Decoding (Dao and others, 2023): with few queries the keys are spread over blocks too; each writes its state,
// and a second kernel merges them. Bytes as FlashAttention-2, and n_splits states a row.
#pragma once

#include "flash_attention_2.h"

namespace llm_decoder {
namespace gpu {
namespace study {

struct KeyRange {
  int begin, end;
};
GPU_FUNCTION KeyRange split_of(const StudyArgs& args, int split) {
  const int n_tiles = (args.n_keys + kStudyKeys - 1) / kStudyKeys;
  const auto first_key = [&](int i) {
    return static_cast<int>(std::int64_t{n_tiles} * i / args.n_splits) * kStudyKeys;
  };
  const int end = first_key(split + 1);
  return {first_key(split), end < args.n_keys ? end : args.n_keys};
}

// grid: tiles of queries, n_heads, n_batch * n_splits.
GPU_KERNEL flash_decoding_kernel(const StudyArgs args) {
  const int split = block_index().z % args.n_splits;
  const KeyRange keys = split_of(args, split);
  attend_queries(
      args, block_index().z / args.n_splits, keys.begin, keys.end, key_at,
      [&](int row, const RowState& state) { store_state(args, std::int64_t{row} * args.n_splits + split, state); });
}

// A warp a row.
GPU_KERNEL merge_splits_kernel(const StudyArgs args) {
  const int row = block_index().x * kStudyWarps + warp_index();
  if (row >= n_rows(args)) return;
  RowState merged;
  for (int split = 0; split < args.n_splits; ++split) {
    const RowState state = load_state(args, std::int64_t{row} * args.n_splits + split);
    if (state.sum == 0.0f) continue;  // it saw no key
    const float largest = state.max > merged.max ? state.max : merged.max;
    const float mine = exp2(merged.max - largest), theirs = exp2(state.max - largest);
    merged.max = largest;
    merged.sum = merged.sum * mine + state.sum * theirs;
    for (int i = 0; i < kLaneChannels; ++i) merged.out[i] = merged.out[i] * mine + state.out[i] * theirs;
  }
  store_out(args, row, merged);
}

}  // namespace study
}  // namespace gpu
}  // namespace llm_decoder
