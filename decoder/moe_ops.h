// llm_decoder.ops on the CPU: mixtures of experts. Which experts, whose tokens, what they make of them.
#pragma once

#include "op_rows.h"

namespace llm_decoder {

struct MoeRoutingCall {
  OpRows logits;                // [n_tokens, n_experts]
  const float* bias = nullptr;  // [n_experts] or null: added to scores for the choice alone
  float* weights = nullptr;     // [n_tokens, top_k], the best first
  std::int32_t* ids = nullptr;
  std::int32_t top_k = 0;
  bool is_sigmoid = false;     // scores; softmax otherwise
  bool is_normalized = false;  // weights of a token sum to 1 before they are scaled
  float scale = 1.0f;
  std::int32_t n_groups = 1, top_k_groups = 1;
  std::int32_t group_best = 1;  // experts, 1 or 2, whose sum a group is judged by
};

// Equal choices go to the lowest expert. A logit that is NaN counts as minus infinity. top_k is at most what
// top_k_groups groups have.
void moe_routing_op(const MoeRoutingCall& call, ThreadPool& pool);

// Pair p is choice p % top_k of token p / top_k.
struct MoePairs {
  const std::int32_t* ids = nullptr;         // [n_pairs] experts; any other value is none
  const std::int32_t* expert_map = nullptr;  // [n_ids] which expert of those here an id is, or -1; null: the id itself
  std::int64_t n_pairs = 0;
  std::int32_t n_ids = 0, n_experts = 0;

  // The expert here that a pair goes to, or -1.
  std::int32_t expert_of(std::int64_t pair) const;
};

// Pairs by expert, then in their own order: those of expert e are sorted[begin[e] .. begin[e + 1]).
struct SortedPairs {
  std::int32_t* sorted = nullptr;  // [n_pairs]; those not here are left out
  std::int64_t* begin = nullptr;   // [n_experts + 1]
};

void sort_pairs(const MoePairs& pairs, const SortedPairs& to);

struct FusedMoeCall {
  OpRows hidden, out;               // [n_tokens, k]
  OpRows w1;                        // [n_experts * 2 n, k], the rows of the gate first
  OpRows w2;                        // [n_experts * k, n]
  const float* w1_scale = nullptr;  // [n_experts, 2 n] and [n_experts, k], of int8 weights, or null
  const float* w2_scale = nullptr;
  const float* topk_weights = nullptr;  // [n_tokens, top_k]
  MoePairs pairs;
  std::int32_t top_k = 0;
};

// Weights become float32 an expert at a time, and meet rows in float32. A token's result depends on nothing else of the
// batch. out may be hidden.
void fused_moe_op(const FusedMoeCall& call, const CpuKernels& kernels, ThreadPool& pool);

}  // namespace llm_decoder
