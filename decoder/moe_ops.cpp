#include "moe_ops.h"

#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "products.h"
#include "workspace.h"

namespace llm_decoder {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

std::size_t index(std::int64_t i) { return static_cast<std::size_t>(i); }

// Of one token.
class Router {
 public:
  explicit Router(const MoeRoutingCall& call)
      : call_(call),
        scores_(index(call.logits.n_cols)),
        choices_(scores_.size()),
        experts_(scores_.size()),
        groups_(index(call.n_groups)) {}

  void route(std::int64_t token) {
    score(token);
    std::iota(experts_.begin(), experts_.end(), 0);
    auto end = experts_.end();
    if (call_.n_groups > 1) end = leave_best_groups();
    std::partial_sort(experts_.begin(), experts_.begin() + call_.top_k, end, [&](std::int32_t a, std::int32_t b) {
      return choice(a) > choice(b) || (choice(a) == choice(b) && a < b);
    });
    float sum = 0.0f;
    for (std::int32_t i = 0; i < call_.top_k; ++i) sum += scores_[index(experts_[index(i)])];
    const float factor = !call_.is_normalized ? call_.scale : sum > 0.0f ? call_.scale / sum : 0.0f;
    for (std::int32_t i = 0; i < call_.top_k; ++i) {
      const std::int64_t at = token * call_.top_k + i;
      call_.ids[at] = experts_[index(i)];
      call_.weights[at] = scores_[index(experts_[index(i)])] * factor;
    }
  }

 private:
  float choice(std::int32_t expert) const { return choices_[index(expert)]; }

  void score(std::int64_t token) {
    call_.logits.read(token, scores_.data());
    float largest = -kInfinity, sum = 0.0f;
    for (float& x : scores_) {
      if (std::isnan(x)) x = -kInfinity;
      largest = std::max(largest, x);
    }
    const float base = largest == -kInfinity ? 0.0f : largest;
    for (float& x : scores_) {
      x = call_.is_sigmoid ? 1.0f / (1.0f + std::exp(-x)) : std::exp(x - base);
      sum += x;
    }
    for (std::size_t i = 0; i < scores_.size(); ++i) {
      if (!call_.is_sigmoid) scores_[i] = sum > 0.0f ? scores_[i] / sum : 0.0f;
      const float biased = scores_[i] + (call_.bias != nullptr ? call_.bias[i] : 0.0f);
      choices_[i] = std::isnan(biased) ? -kInfinity : biased;
    }
  }

  // Puts the experts of the best groups first; returns their end.
  std::vector<std::int32_t>::iterator leave_best_groups() {
    const std::int32_t group_size = call_.logits.n_cols / call_.n_groups;
    std::vector<std::int32_t> order(groups_.size());
    std::iota(order.begin(), order.end(), 0);
    for (std::int32_t group = 0; group < call_.n_groups; ++group) {
      float best = -kInfinity, second = -kInfinity;
      for (std::int32_t expert = group * group_size; expert < (group + 1) * group_size; ++expert) {
        second = std::max(second, std::min(best, choice(expert)));
        best = std::max(best, choice(expert));
      }
      groups_[index(group)] = call_.group_best == 2 ? best + second : best;
    }
    std::stable_sort(order.begin(), order.end(),
                     [&](std::int32_t a, std::int32_t b) { return groups_[index(a)] > groups_[index(b)]; });
    auto to = experts_.begin();
    for (std::int32_t i = 0; i < call_.top_k_groups; ++i) {
      std::iota(to, to + group_size, order[index(i)] * group_size);
      to += group_size;
    }
    return to;
  }

  const MoeRoutingCall& call_;
  std::vector<float> scores_, choices_;
  std::vector<std::int32_t> experts_;
  std::vector<float> groups_;
};

// An expert's weights, packed as float32.
class ExpertMatrix {
 public:
  ExpertMatrix(std::int32_t n, std::int32_t k, const ThreadPool& pool)
      : n_(n),
        k_(k),
        packed_(index(packed_f32_bytes(n, k))),
        rows_(index(pool.n_threads()) * index(kPanelWidth) * index(k)) {}

  Matrix pack(const OpRows& weights, const float* scale, std::int64_t expert, ThreadPool& pool) {
    pool.parallel_for(n_panels(n_), [&](std::int64_t panel, int thread) {
      float* const rows = rows_.data() + std::int64_t{thread} * kPanelWidth * k_;
      const std::int64_t first = panel * kPanelWidth, n = std::min<std::int64_t>(kPanelWidth, n_ - first);
      for (std::int64_t i = 0; i < n; ++i) {
        float* const row = rows + i * k_;
        const std::int64_t at = expert * n_ + first + i;
        weights.read(at, row);
        if (scale == nullptr) continue;
        for (std::int32_t j = 0; j < k_; ++j) row[j] *= scale[at];
      }
      pack_f32(rows, k_, n, k_, packed_.as<float>() + first * k_);
    });
    Matrix matrix;
    matrix.n = n_;
    matrix.k = k_;
    matrix.data = packed_.as<void>();
    return matrix;
  }

 private:
  std::int32_t n_, k_;
  AlignedBuffer packed_;
  std::vector<float> rows_;
};

}  // namespace

void moe_routing_op(const MoeRoutingCall& call, ThreadPool& pool) {
  std::vector<Router> routers(index(pool.n_threads()), Router(call));
  for_rows(pool, call.logits.n_rows, [&](std::int64_t token, int thread) { routers[index(thread)].route(token); });
}

std::int32_t MoePairs::expert_of(std::int64_t pair) const {
  const std::int32_t id = ids[pair];
  if (id < 0 || id >= n_ids) return -1;
  const std::int32_t expert = expert_map != nullptr ? expert_map[id] : id;
  return expert >= 0 && expert < n_experts ? expert : -1;
}

void sort_pairs(const MoePairs& pairs, const SortedPairs& to) {
  std::fill_n(to.begin, pairs.n_experts + 1, 0);
  for (std::int64_t pair = 0; pair < pairs.n_pairs; ++pair) {
    const std::int32_t expert = pairs.expert_of(pair);
    if (expert >= 0) ++to.begin[expert + 1];
  }
  std::partial_sum(to.begin, to.begin + pairs.n_experts + 1, to.begin);
  std::vector<std::int64_t> next(to.begin, to.begin + pairs.n_experts);
  for (std::int64_t pair = 0; pair < pairs.n_pairs; ++pair) {
    const std::int32_t expert = pairs.expert_of(pair);
    if (expert >= 0) to.sorted[next[index(expert)]++] = static_cast<std::int32_t>(pair);
  }
}

void fused_moe_op(const FusedMoeCall& call, const CpuKernels& kernels, ThreadPool& pool) {
  const MoePairs& pairs = call.pairs;
  const std::int32_t k = call.hidden.n_cols, n = call.w2.n_cols;
  std::vector<std::int32_t> sorted(index(pairs.n_pairs));
  std::vector<std::int64_t> begin(index(pairs.n_experts + 1));
  sort_pairs(pairs, {sorted.data(), begin.data()});
  std::int64_t most = 0;
  for (std::int32_t e = 0; e < pairs.n_experts; ++e) most = std::max(most, begin[index(e + 1)] - begin[index(e)]);

  const std::int64_t n_here = begin.back();
  const AlignedBuffer rows(index(most * k) * sizeof(float)), wide(index(most * 2 * n) * sizeof(float)),
      inner(index(most * n) * sizeof(float)), results(index(n_here * k) * sizeof(float));
  std::vector<std::int64_t> place(index(pairs.n_pairs), -1);  // of each pair in results
  ExpertMatrix first(2 * n, k, pool), second(k, n, pool);
  for (std::int32_t e = 0; e < pairs.n_experts; ++e) {
    const std::int64_t from = begin[index(e)], m = begin[index(e + 1)] - from;
    if (m == 0) continue;
    for_rows(pool, m, [&](std::int64_t i, int) {
      const std::int32_t pair = sorted[index(from + i)];
      place[index(pair)] = from + i;
      call.hidden.read(pair / call.top_k, rows.as<float>() + i * k);
    });
    multiply(kernels, pool, first.pack(call.w1, call.w1_scale, e, pool), {rows.as<float>(), k, {}},
             static_cast<std::int32_t>(m), {wide.as<float>(), 2 * n}, {});
    for_rows(pool, m, [&](std::int64_t i, int) {
      kernels.silu_mul(wide.as<float>() + i * 2 * n, 2 * n, 1, n, inner.as<float>() + i * n, n);
    });
    multiply(kernels, pool, second.pack(call.w2, call.w2_scale, e, pool), {inner.as<float>(), n, {}},
             static_cast<std::int32_t>(m), {results.as<float>() + from * k, k}, {});
  }

  std::vector<float> sums(index(pool.n_threads()) * index(k));
  for_rows(pool, call.hidden.n_rows, [&](std::int64_t token, int thread) {
    float* const sum = sums.data() + std::int64_t{thread} * k;
    std::fill_n(sum, k, 0.0f);
    for (std::int64_t pair = token * call.top_k; pair < (token + 1) * call.top_k; ++pair) {
      if (place[index(pair)] < 0) continue;
      const float *result = results.as<float>() + place[index(pair)] * k, weight = call.topk_weights[pair];
      for (std::int32_t i = 0; i < k; ++i) sum[i] += weight * result[i];
    }
    call.out.write(token, sum);
  });
}

}  // namespace llm_decoder
