// Six ways to compute attention, each in the shape that its paper gave it and nothing more, on the same inputs: what
// docs/attention.md tells about, and benchmarks/attention_methods.py times. They are for reading. The kernels that run
// models are in the folder above, and take the best of these.
//
//   naive.h                 scores in memory
//   flash_attention_1.h     tiles of keys outside, queries inside; states in memory
//   flash_attention_2.h     queries outside, keys inside; states in registers
//   flash_decoding.h        keys split over blocks, then merged
//   flash_decoding_pp.h     one maximum for all: nothing to rescale, and a way back when it was wrong
//   paged_attention.h       keys wherever a table says
#pragma once

#include "machine.h"

namespace llm_decoder {
namespace gpu {
namespace study {

// The queries are the last n_queries positions of their sequence; each sees the keys up to its own position.
struct StudyArgs {
  const Bf16* q = nullptr;                // [n_batch, n_queries, n_heads, head_dim]
  const Bf16 *k = nullptr, *v = nullptr;  // [n_batch, n_keys, n_kv_heads, head_dim]; paged: [n_pages, page_size, ...]
  Bf16* out = nullptr;                    // as q
  int n_batch = 0, n_queries = 0, n_keys = 0, n_heads = 0, n_kv_heads = 0;
  int head_dim = 0;  // a multiple of 8 up to kMaxStudyHeadDim
  float scale = 1.0f;

  const int* block_table = nullptr;  // [n_batch, n_keys / page_size, rounded up]; paged alone
  int page_size = 0;

  int n_splits = 1;            // of the keys, where they are split
  float* scores = nullptr;     // naive: [n_rows, n_keys]
  float* states = nullptr;     // [n_rows, n_splits, head_dim]
  float* state_max = nullptr;  // [n_rows, n_splits]
  float* state_sum = nullptr;  // [n_rows, n_splits]
  int* is_wrong = nullptr;     // [n_rows], zeros: rows whose unified maximum did not do
  float unified_max = 0.0f;    // FlashDecoding++: logits, base 2
};

constexpr int kMaxStudyHeadDim = 128;
constexpr int kStudyThreads = 128;
constexpr int kStudyWarps = kStudyThreads / kWarpSize;
constexpr int kStudyKeys = 32;  // of a tile: one a lane
constexpr int kLaneChannels = kMaxStudyHeadDim / kWarpSize;
constexpr float kInfinity = __builtin_huge_valf();
constexpr float kStudyLog2e = 1.4426950408889634f;

// A row is a query of a head: rows are [n_batch, n_queries, n_heads].
struct RowPlace {
  int batch, query, head, kv_head;
};
GPU_FUNCTION RowPlace place_of(const StudyArgs& args, int row) {
  const int head = row % args.n_heads, token = row / args.n_heads;
  return {token / args.n_queries, token % args.n_queries, head, head / (args.n_heads / args.n_kv_heads)};
}
GPU_FUNCTION int n_rows(const StudyArgs& args) { return args.n_batch * args.n_queries * args.n_heads; }
GPU_FUNCTION int n_seen(const StudyArgs& args, int query) { return args.n_keys - args.n_queries + query + 1; }

// Where the vector of a key of this sequence and head begins, in a cache that lies in one piece.
GPU_FUNCTION std::int64_t key_at(const StudyArgs& args, const RowPlace& row, int key) {
  return ((std::int64_t{row.batch} * args.n_keys + key) * args.n_kv_heads + row.kv_head) * args.head_dim;
}
// The same in pages.
GPU_FUNCTION std::int64_t paged_key_at(const StudyArgs& args, const RowPlace& row, int key) {
  const int n_pages = (args.n_keys + args.page_size - 1) / args.page_size;
  const std::int64_t page = args.block_table[std::int64_t{row.batch} * n_pages + key / args.page_size];
  return ((page * args.page_size + key % args.page_size) * args.n_kv_heads + row.kv_head) * args.head_dim;
}

GPU_FUNCTION float max_of_warp(float x) {
  for (int mask = kWarpSize / 2; mask > 0; mask /= 2) {
    const float other = shuffle_xor(x, mask);
    x = other > x ? other : x;
  }
  return x;
}
GPU_FUNCTION float sum_of_warp(float x) {
  for (int mask = kWarpSize / 2; mask > 0; mask /= 2) x += shuffle_xor(x, mask);
  return x;
}

// kStudyKeys keys and values in shared memory. A row is a word longer than its vector, so that the lanes, one key each,
// read from different banks.
struct KeyTile {
  Shared<Bf16> k, v;
  int stride;
};

GPU_FUNCTION KeyTile make_tile(const StudyArgs& args) {
  const int stride = args.head_dim + 2, n = kStudyKeys * stride;
  return {shared_array<Bf16>(0, n), shared_array<Bf16>((n * 2 + kSharedAlign - 1) / kSharedAlign * kSharedAlign, n),
          stride};
}
constexpr int study_shared_bytes(int head_dim) {
  return 2 * ((kStudyKeys * (head_dim + 2) * 2 + kSharedAlign - 1) / kSharedAlign * kSharedAlign);
}

// The whole block brings keys [begin, begin + n) of a sequence and head. Barriers before and after are the caller's.
template <class KeyAt>
GPU_FUNCTION void load_tile(const StudyArgs& args, const KeyTile& tile, int begin, int n, const KeyAt& key_at) {
  const int pairs = args.head_dim / 2;
  for (int i = thread_index(); i < n * pairs; i += n_threads()) {
    const int key = i / pairs, channel = i % pairs * 2;
    const std::int64_t at = key_at(begin + key) + channel;
    tile.k.store_vec(key * tile.stride + channel, load_vec<2>(args.k + at));
    tile.v.store_vec(key * tile.stride + channel, load_vec<2>(args.v + at));
  }
}

// Lane l's key of the tile: its logit in base 2, -inf past n.
GPU_FUNCTION float logit_of(const StudyArgs& args, const KeyTile& tile, const Bf16* q, int n) {
  if (lane() >= n) return -kInfinity;
  float sum = 0.0f;
  for (int channel = 0; channel < args.head_dim; channel += 2) {
    const Vec<Bf16, 2> k = tile.k.load_vec<2>(lane() * tile.stride + channel), x = load_vec<2>(q + channel);
    sum += to_float(x.values[0]) * to_float(k.values[0]) + to_float(x.values[1]) * to_float(k.values[1]);
  }
  return sum * args.scale * kStudyLog2e;
}

// What a warp knows of a row after some of its keys: lane l has channels l, l + 32, ...
struct RowState {
  float max = -kInfinity, sum = 0.0f;
  float out[kLaneChannels] = {};
};

// out += p . V over the tile; p of key j is lane j's.
GPU_FUNCTION void add_values(const StudyArgs& args, const KeyTile& tile, float p, int n, RowState& state) {
  for (int j = 0; j < n; ++j) {
    const float weight = shuffle(p, j);
    for (int i = 0; i < kLaneChannels; ++i) {
      const int channel = lane() + i * kWarpSize;
      if (channel < args.head_dim) state.out[i] += weight * to_float(tile.v.load(j * tile.stride + channel));
    }
  }
}

// The online softmax: what was summed before is scaled to the new maximum. A warp a row.
GPU_FUNCTION void add_tile(const StudyArgs& args, const KeyTile& tile, const Bf16* q, int n, RowState& state) {
  if (n <= 0) return;
  const float logit = logit_of(args, tile, q, n);
  const float tile_max = max_of_warp(logit);
  const float largest = tile_max > state.max ? tile_max : state.max;
  const float kept = exp2(state.max - largest), p = exp2(logit - largest);
  state.max = largest;
  state.sum = state.sum * kept + sum_of_warp(p);
  for (float& x : state.out) x *= kept;
  add_values(args, tile, p, n, state);
}

// float32 [n_rows, n_splits] and [n_rows, n_splits, head_dim].
GPU_FUNCTION void store_state(const StudyArgs& args, std::int64_t index, const RowState& state) {
  for (int i = 0; i < kLaneChannels; ++i) {
    const int channel = lane() + i * kWarpSize;
    if (channel < args.head_dim) args.states[index * args.head_dim + channel] = state.out[i];
  }
  if (lane() == 0) {
    args.state_max[index] = state.max;
    args.state_sum[index] = state.sum;
  }
}

GPU_FUNCTION RowState load_state(const StudyArgs& args, std::int64_t index) {
  RowState state;
  for (int i = 0; i < kLaneChannels; ++i) {
    const int channel = lane() + i * kWarpSize;
    if (channel < args.head_dim) state.out[i] = args.states[index * args.head_dim + channel];
  }
  state.max = args.state_max[index];
  state.sum = args.state_sum[index];
  return state;
}

GPU_FUNCTION void store_out(const StudyArgs& args, std::int64_t row, const RowState& state) {
  for (int i = 0; i < kLaneChannels; ++i) {
    const int channel = lane() + i * kWarpSize;
    if (channel < args.head_dim) args.out[row * args.head_dim + channel] = from_float<Bf16>(state.out[i] / state.sum);
  }
}

}  // namespace study
}  // namespace gpu
}  // namespace llm_decoder
