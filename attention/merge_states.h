// Joins what several items found over different keys for the same rows: the FlashDecoding merge by log-sum-exp, in
// ascending order of the states, whoever came first.
#pragma once

#include "machine.h"
#include "paged_attention.h"
#include "paged_flash_attention.h"

namespace llm_decoder {
namespace gpu {

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

constexpr int kMergeThreads = 128;

// A warp a token and head. grid.x: ceil(n_tokens * n_heads / warps of a block).
template <class Q>
GPU_KERNEL merge_states_kernel(const MergeStatesArgs args) {
  const int pair = block_index().x * (n_threads() / kWarpSize) + warp_index();
  if (pair >= args.n_tokens * args.n_heads) return;
  const int token = args.tokens[pair / args.n_heads], head = pair % args.n_heads;
  const std::int64_t first = args.state_begin[token];
  const int n_states = args.n_states[token];
  const auto lse_of = [&](int i) { return args.state_lse[(first + i) * args.n_heads + head]; };

  constexpr float kInfinity = __builtin_huge_valf();
  const float sink = args.sinks != nullptr ? args.sinks[head] * kLog2e : -kInfinity;
  float largest = sink;
  for (int i = 0; i < n_states; ++i) largest = lse_of(i) > largest ? lse_of(i) : largest;
  const float base = largest == -kInfinity ? 0.0f : largest;
  float sum = exp2(sink - base);
  for (int i = 0; i < n_states; ++i) sum += exp2(lse_of(i) - base);

  Q* const out = static_cast<Q*>(args.out) + token * args.out_token_stride + head * args.out_head_stride;
  for (int channel = lane(); channel < args.head_dim; channel += kWarpSize) {
    float value = 0.0f;
    for (int i = 0; i < n_states; ++i) {
      value += exp2(lse_of(i) - base) * args.states[((first + i) * args.n_heads + head) * args.head_dim + channel];
    }
    out[channel] = from_float<Q>(sum > 0.0f ? value / sum : 0.0f);
  }
  if (args.lse != nullptr && lane() == 0) {
    args.lse[std::int64_t{token} * args.n_heads + head] = sum > 0.0f ? (base + log2(sum)) * kLn2 : -kInfinity;
  }
}

}  // namespace gpu
}  // namespace llm_decoder
