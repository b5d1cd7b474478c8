// Joins what several items found over different keys for the same rows: the FlashDecoding merge by log-sum-exp, in
// ascending order of the states, whoever came first.
#pragma once

#include "machine.h"
#include "paged_attention.h"
#include "paged_flash_attention.h"

namespace llm_decoder {
namespace gpu {

// What several items of one launch found.
struct MergeStatesArgs {
  const float* states = nullptr;     // [n_states, n_heads, head_dim]
  const float* state_lse = nullptr;  // [n_states, n_heads], base 2
  const int* tokens = nullptr;       // [n_tokens] that have states
  const int* state_begin = nullptr;  // [n_all_tokens]
  const int* n_states = nullptr;     // [n_all_tokens]
  const float* sinks = nullptr;      // as in PagedAttentionArgs, like the rest
  void* out = nullptr;
  std::int64_t out_token_stride = 0, out_head_stride = 0;
  float* lse = nullptr;
  int n_tokens = 0, n_heads = 0, head_dim = 0;
};

constexpr int kMaxParts = 32;

// What several calls found: parts of the caller's own, each over all tokens.
struct MergePartsArgs {
  const void* parts[kMaxParts] = {};  // [n_tokens, n_heads, head_dim]
  std::int64_t part_token_stride[kMaxParts] = {}, part_head_stride[kMaxParts] = {};
  const float* part_lse[kMaxParts] = {};  // [n_tokens, n_heads], base e
  int n_parts = 0;
  void* out = nullptr;
  std::int64_t out_token_stride = 0, out_head_stride = 0;
  float* lse = nullptr;  // [n_tokens, n_heads], base e, or null
  int n_tokens = 0, n_heads = 0, head_dim = 0;
};

constexpr int kMergeThreads = 128;

// A warp a token and head. grid.x: ceil(n_tokens * n_heads / warps of a block).
GPU_FUNCTION int merge_pair() { return block_index().x * (n_threads() / kWarpSize) + warp_index(); }

// Row `out` of n states with log-sum-exp lse_of(i), base 2, and elements value_of(i, channel), which are looked at only
// where that is finite. Returns the log-sum-exp of all, base e. sink: -infinity for none.
template <class Out, class LseOf, class ValueOf>
GPU_FUNCTION float merge_row(int n, float sink, Out* out, int head_dim, const LseOf& lse_of, const ValueOf& value_of) {
  constexpr float kInfinity = __builtin_huge_valf();
  float largest = sink;
  for (int i = 0; i < n; ++i) largest = lse_of(i) > largest ? lse_of(i) : largest;
  const float base = largest == -kInfinity ? 0.0f : largest;
  float sum = exp2(sink - base);
  for (int i = 0; i < n; ++i) sum += exp2(lse_of(i) - base);
  for (int channel = lane(); channel < head_dim; channel += kWarpSize) {
    float value = 0.0f;
    for (int i = 0; i < n; ++i) {
      if (lse_of(i) != -kInfinity) value += exp2(lse_of(i) - base) * value_of(i, channel);
    }
    out[channel] = from_float<Out>(sum > 0.0f ? value / sum : 0.0f);
  }
  return sum > 0.0f ? (base + log2(sum)) * kLn2 : -kInfinity;
}

template <class Q>
GPU_KERNEL merge_states_kernel(const MergeStatesArgs args) {
  const int pair = merge_pair();
  if (pair >= args.n_tokens * args.n_heads) return;
  const int token = args.tokens[pair / args.n_heads], head = pair % args.n_heads;
  const std::int64_t first = args.state_begin[token];
  const auto row_of = [&](int i) { return (first + i) * args.n_heads + head; };
  Q* const out = static_cast<Q*>(args.out) + token * args.out_token_stride + head * args.out_head_stride;
  const float lse = merge_row(
      args.n_states[token], args.sinks != nullptr ? args.sinks[head] * kLog2e : -__builtin_huge_valf(), out,
      args.head_dim, [&](int i) { return args.state_lse[row_of(i)]; },
      [&](int i, int channel) { return args.states[row_of(i) * args.head_dim + channel]; });
  if (args.lse != nullptr && lane() == 0) args.lse[std::int64_t{token} * args.n_heads + head] = lse;
}

template <class T>
GPU_KERNEL merge_parts_kernel(const MergePartsArgs args) {
  const int pair = merge_pair();
  if (pair >= args.n_tokens * args.n_heads) return;
  const std::int64_t token = pair / args.n_heads, head = pair % args.n_heads;
  T* const out = static_cast<T*>(args.out) + token * args.out_token_stride + head * args.out_head_stride;
  const float lse = merge_row(
      args.n_parts, -__builtin_huge_valf(), out, args.head_dim, [&](int i) { return args.part_lse[i][pair] * kLog2e; },
      [&](int i, int channel) {
        const auto* part = static_cast<const T*>(args.parts[i]);
        return to_float(part[token * args.part_token_stride[i] + head * args.part_head_stride[i] + channel]);
      });
  if (args.lse != nullptr && lane() == 0) args.lse[pair] = lse;
}

}  // namespace gpu
}  // namespace llm_decoder
