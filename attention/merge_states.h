// Joins what was found over different keys for the same rows, by log-sum-exp as FlashDecoding does: what several items
// of a step found, in ascending order of the states, whoever came first; and states of a caller's own (a prefix that
// many sequences share, a context on several machines).
#pragma once

#include "machine.h"
#include "paged_attention.h"
#include "paged_flash_attention.h"
#include "row_chunk.h"

namespace llm_decoder {
namespace gpu {

// What several states of a row sum up to. Base 2. A state that saw nothing has a log-sum-exp of -infinity.
struct StateSum {
  float base = 0.0f, sum = 0.0f;  // sum of 2^(lse - base)

  GPU_FUNCTION float weight(float lse) const { return exp2(lse - base); }
  GPU_FUNCTION bool is_empty() const { return sum == 0.0f; }
  GPU_FUNCTION float lse() const { return is_empty() ? -__builtin_huge_valf() : base + log2(sum); }
};

// lse_of(i): of state i. sink: a logit that takes part in the sum only; -infinity for none.
template <class LseOf>
GPU_FUNCTION StateSum sum_states(int n_states, float sink, const LseOf& lse_of) {
  float largest = sink;
  for (int i = 0; i < n_states; ++i) largest = lse_of(i) > largest ? lse_of(i) : largest;
  StateSum all;
  all.base = largest == -__builtin_huge_valf() ? 0.0f : largest;
  all.sum = all.weight(sink);
  for (int i = 0; i < n_states; ++i) all.sum += all.weight(lse_of(i));
  return all;
}

struct MergeStatesArgs {
  const float* states = nullptr;                // [n_states, n_heads, head_dim]
  const float* state_lse = nullptr;             // [n_states, n_heads], base 2
  const int* tokens = nullptr;                  // [n_tokens] that have states, or kNoToken
  const int* state_begin = nullptr;             // [n_all_tokens]
  const int* n_states = nullptr;                // [n_all_tokens]
  const PrefixStates* prefix_states = nullptr;  // [n_all_tokens] or null
  const float* alibi_slopes = nullptr;          // as in PagedAttentionArgs, like the rest
  const float* sinks = nullptr;
  void* out = nullptr;
  std::int64_t out_token_stride = 0, out_head_stride = 0;
  float* lse = nullptr;
  int n_tokens = 0, n_heads = 0, head_dim = 0;
};

constexpr int kMergeThreads = 128;

// A warp a token and head. grid.x: ceil(n_tokens * n_heads / warps of a block).
template <class Q>
GPU_KERNEL merge_states_kernel(const MergeStatesArgs args) {
  const int pair = block_index().x * (n_threads() / kWarpSize) + warp_index();
  if (pair >= args.n_tokens * args.n_heads) return;
  const int token = args.tokens[pair / args.n_heads], head = pair % args.n_heads;
  if (token == kNoToken) return;
  const std::int64_t first = args.state_begin[token];
  const int n_states = args.n_states[token];
  const bool is_slanted = args.prefix_states != nullptr && args.alibi_slopes != nullptr;
  const PrefixStates prefix = is_slanted ? args.prefix_states[token] : PrefixStates{};
  // So much more, for every key of the prefix, than its distance was taken for.
  const float further = is_slanted ? args.alibi_slopes[head] * kLog2e * static_cast<float>(prefix.n_between) : 0.0f;
  const auto lse_of = [&](int i) {
    return args.state_lse[(first + i) * args.n_heads + head] - (i < prefix.n ? further : 0.0f);
  };

  const float sink = args.sinks != nullptr ? sink_of(args.sinks[head]) : -__builtin_huge_valf();
  const StateSum all = sum_states(n_states, sink, lse_of);
  Q* const out = static_cast<Q*>(args.out) + token * args.out_token_stride + head * args.out_head_stride;
  for (int channel = lane(); channel < args.head_dim; channel += kWarpSize) {
    float value = 0.0f;
    for (int i = 0; i < n_states; ++i) {
      value += all.weight(lse_of(i)) * args.states[((first + i) * args.n_heads + head) * args.head_dim + channel];
    }
    out[channel] = from_float<Q>(all.is_empty() ? 0.0f : value / all.sum);
  }
  if (args.lse != nullptr && lane() == 0) {
    args.lse[std::int64_t{token} * args.n_heads + head] = all.lse() * kLn2;
  }
}

// What attention over some keys gave for each head of each token.
struct StateRows {
  const void* values = nullptr;                    // [n_tokens, n_heads, head_dim]
  std::int64_t token_stride = 0, head_stride = 0;  // elements
  const float* lse = nullptr;                      // [n_tokens, n_heads], base e
};

constexpr int kMaxParts = 32;

struct MergePartsArgs {
  StateRows parts[kMaxParts];
  int n_parts = 0;
  void* out = nullptr;  // like the values; they may be those of a part
  std::int64_t out_token_stride = 0, out_head_stride = 0;
  float* lse = nullptr;  // [n_tokens, n_heads], base e, or null; may be that of a part
  int n_tokens = 0, n_heads = 0, head_dim = 0;
  int row_lanes = 0;  // row_lanes_of(head_dim), the launcher's
};

// T: of the values. Memory bounds it: a row of each part is read and one written, each once, 8 channels a lane.
// grid.x: ceil(n_tokens * n_heads / rows of a block).
template <class T>
GPU_KERNEL merge_parts_kernel(const MergePartsArgs args) {
  const int warp = block_index().x * (kMergeThreads / kWarpSize) + warp_index();
  const int row = warp * (kWarpSize / args.row_lanes) + lane() / args.row_lanes;
  const int token = row / args.n_heads, head = row % args.n_heads, channel = lane() % args.row_lanes * kChunk;
  const bool is_here = token < args.n_tokens && channel < args.head_dim;
  StateSum all;
  float out[kChunk] = {};
  if (is_here) {
    const auto lse_of = [&](int i) { return args.parts[i].lse[row] * kLog2e; };
    all = sum_states(args.n_parts, -__builtin_huge_valf(), lse_of);
    for (int i = 0; i < args.n_parts; ++i) {
      const StateRows& part = args.parts[i];
      float x[kChunk];
      load_chunk(static_cast<const T*>(part.values) + token * part.token_stride + head * part.head_stride + channel, x);
      const float weight = all.is_empty() ? 0.0f : all.weight(lse_of(i)) / all.sum;
      GPU_UNROLL
      for (int j = 0; j < kChunk; ++j) out[j] += weight == 0.0f ? 0.0f : weight * x[j];  // nothing seen, anything held
    }
  }
  sync_warp();  // all lanes have read their row: it may change
  if (!is_here) return;
  store_chunk(static_cast<T*>(args.out) + token * args.out_token_stride + head * args.out_head_stride + channel, out);
  if (args.lse != nullptr && channel == 0) args.lse[row] = all.lse() * kLn2;
}

}  // namespace gpu
}  // namespace llm_decoder
