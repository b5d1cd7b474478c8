// Which experts a token goes to, and with what weight: scores of the router's logits, the best top_k of them, weights.
//
// A warp a token: its lanes hold a score of every 32nd expert in registers, and each choice is a reduction over the
// warp, so nothing meets in shared memory. Reads the logits once; latency, not bandwidth, is what it costs.
//
// An expert is chosen by its score (softmax or sigmoid) plus, where there is one, a bias that does not reach its
// weight. Equal choices go to the lowest expert. With groups, experts of the top_k_groups best groups alone are chosen
// from; a group is as good as its best expert, or as its best two together. A logit that is NaN counts as minus
// infinity.
#pragma once

#include "machine.h"

namespace llm_decoder {
namespace gpu {

constexpr int kMaxRoutedExperts = 1024;
constexpr int kMaxTopK = kWarpSize;
constexpr int kMaxExpertGroups = kWarpSize;
constexpr int kRoutingThreads = 128;

struct MoeRoutingArgs {
  const void* logits = nullptr;  // [n_tokens, n_experts]
  std::int64_t logits_stride = 0;
  const float* bias = nullptr;  // [n_experts] or null
  float* weights = nullptr;     // [n_tokens, top_k], the best first
  int* ids = nullptr;           // the same shape
  int n_tokens = 0, n_experts = 0, top_k = 0;
  bool is_sigmoid = false;     // scores; softmax otherwise
  bool is_normalized = false;  // weights of a token sum to 1 before they are scaled
  float scale = 1.0f;          // of the weights
  int n_groups = 1, top_k_groups = 1;
  int group_best = 1;  // experts, 1 or 2, whose sum a group is judged by
};

// n_experts is at most 32 kPerLane.
template <class T, int kPerLane>
class RoutedToken {
 public:
  GPU_FUNCTION RoutedToken(const MoeRoutingArgs& args, std::int64_t token) : args_(args), token_(token) {}

  GPU_FUNCTION void run() {
    score();
    if (args_.n_groups > 1) leave_best_groups();
    choose();
  }

 private:
  struct Choice {
    float value;
    int expert;
  };

  static GPU_FUNCTION int expert_of(int i) { return i * kWarpSize + lane(); }
  static GPU_FUNCTION float larger(float a, float b) { return a > b ? a : b; }
  static GPU_FUNCTION float smaller(float a, float b) { return a < b ? a : b; }

  GPU_FUNCTION void score() {
    const T* const logits = static_cast<const T*>(args_.logits) + token_ * args_.logits_stride;
    float largest = -kInfinity;
    GPU_UNROLL
    for (int i = 0; i < kPerLane; ++i) {
      const bool is_expert = expert_of(i) < args_.n_experts;
      const float logit = is_expert ? to_float(logits[expert_of(i)]) : -kInfinity;
      scores_[i] = logit == logit ? logit : -kInfinity;
      largest = larger(largest, scores_[i]);
      if (is_expert) available_ |= 1u << i;
    }
    if (args_.is_sigmoid) {
      GPU_UNROLL
      for (int i = 0; i < kPerLane; ++i) scores_[i] = reciprocal(1.0f + exp2(-scores_[i] * kLog2e));
    } else {
      GPU_UNROLL
      for (int mask = kWarpSize / 2; mask > 0; mask /= 2) largest = larger(largest, shuffle_xor(largest, mask));
      const float base = largest == -kInfinity ? 0.0f : largest;
      float sum = 0.0f;
      GPU_UNROLL
      for (int i = 0; i < kPerLane; ++i) {
        scores_[i] = exp2((scores_[i] - base) * kLog2e);
        sum += scores_[i];
      }
      GPU_UNROLL
      for (int mask = kWarpSize / 2; mask > 0; mask /= 2) sum += shuffle_xor(sum, mask);
      GPU_UNROLL
      for (int i = 0; i < kPerLane; ++i) scores_[i] = sum > 0.0f ? scores_[i] / sum : 0.0f;
    }
    GPU_UNROLL
    for (int i = 0; i < kPerLane; ++i) {
      const bool is_biased = args_.bias != nullptr && (available_ >> i & 1u) != 0;
      choices_[i] = is_biased ? scores_[i] + args_.bias[expert_of(i)] : scores_[i];
    }
  }

  // Lane g judges group g.
  GPU_FUNCTION void leave_best_groups() {
    const int group_size = args_.n_experts / args_.n_groups;
    float of_my_group = -kInfinity;
    for (int group = 0; group < args_.n_groups; ++group) {
      float best = -kInfinity, second = -kInfinity;
      GPU_UNROLL
      for (int i = 0; i < kPerLane; ++i) {
        if ((available_ >> i & 1u) != 0 && expert_of(i) / group_size == group) {
          const float value = choices_[i];
          second = larger(second, smaller(best, value));
          best = larger(best, value);
        }
      }
      GPU_UNROLL
      for (int mask = kWarpSize / 2; mask > 0; mask /= 2) {
        const float other_best = shuffle_xor(best, mask), other_second = shuffle_xor(second, mask);
        second = larger(smaller(best, other_best), larger(second, other_second));
        best = larger(best, other_best);
      }
      if (lane() == group) of_my_group = args_.group_best == 2 ? best + second : best;
    }
    int n_better = 0;
    for (int group = 0; group < args_.n_groups; ++group) {
      const float other = shuffle(of_my_group, group);
      n_better += other > of_my_group || (other == of_my_group && group < lane()) ? 1 : 0;
    }
    const std::uint32_t kept = ballot(lane() < args_.n_groups && n_better < args_.top_k_groups);
    GPU_UNROLL
    for (int i = 0; i < kPerLane; ++i) {
      const bool is_expert = expert_of(i) < args_.n_experts;
      if (is_expert && (kept >> (expert_of(i) / group_size) & 1u) == 0) available_ &= ~(1u << i);
    }
  }

  // Lane r keeps choice r.
  GPU_FUNCTION void choose() {
    float weight = 0.0f;
    int id = 0;
    for (int r = 0; r < args_.top_k; ++r) {
      Choice best{-kInfinity, kNoExpert};
      float best_score = 0.0f;
      GPU_UNROLL
      for (int i = 0; i < kPerLane; ++i) {
        if ((available_ >> i & 1u) == 0) continue;
        const Choice mine{choices_[i], expert_of(i)};
        if (is_better(mine, best)) {
          best = mine;
          best_score = scores_[i];
        }
      }
      GPU_UNROLL
      for (int mask = kWarpSize / 2; mask > 0; mask /= 2) {
        const Choice other{shuffle_xor(best.value, mask), shuffle_xor(best.expert, mask)};
        const float other_score = shuffle_xor(best_score, mask);
        if (is_better(other, best)) {
          best = other;
          best_score = other_score;
        }
      }
      if (best.expert % kWarpSize == lane()) available_ &= ~(1u << (best.expert / kWarpSize));
      if (r == lane()) {
        weight = best_score;
        id = best.expert;
      }
    }
    float factor = args_.scale;
    if (args_.is_normalized) {
      float sum = 0.0f;
      for (int r = 0; r < args_.top_k; ++r) sum += shuffle(weight, r);
      factor = sum > 0.0f ? args_.scale / sum : 0.0f;
    }
    if (lane() < args_.top_k) {
      args_.weights[token_ * args_.top_k + lane()] = weight * factor;
      args_.ids[token_ * args_.top_k + lane()] = id;
    }
  }

  static GPU_FUNCTION bool is_better(const Choice& a, const Choice& b) {
    return a.value > b.value || (a.value == b.value && a.expert < b.expert);
  }

  static constexpr float kInfinity = __builtin_huge_valf();
  static constexpr float kLog2e = 1.4426950408889634f;
  static constexpr int kNoExpert = 0x7fffffff;

  const MoeRoutingArgs& args_;
  const std::int64_t token_;
  float scores_[kPerLane], choices_[kPerLane];
  std::uint32_t available_ = 0;  // bit i: expert_of(i) may still be chosen
};

// grid.x: ceil(n_tokens / warps of a block).
template <class T, int kPerLane>
GPU_KERNEL moe_routing_kernel(const MoeRoutingArgs args) {
  const std::int64_t token = std::int64_t{block_index().x} * (n_threads() / kWarpSize) + warp_index();
  if (token >= args.n_tokens) return;
  RoutedToken<T, kPerLane> routed(args, token);
  routed.run();
}

}  // namespace gpu
}  // namespace llm_decoder
