// All that a launch of attention over pages reads and writes, in memory of exactly the right size, and the formula in
// double to judge it by: pages in any order, NaN wherever nothing may look.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "check.h"
#include "paged_attention_launch.h"
#include "paged_attention_plan.h"

namespace attention_problem {

using namespace llm_decoder;
using namespace llm_decoder::gpu;

template <class T>
Dtype dtype_of() {
  if constexpr (std::is_same_v<T, Bf16>) return Dtype::bf16;
  if constexpr (std::is_same_v<T, Fp16>) return Dtype::f16;
  if constexpr (std::is_same_v<T, Fp8>) return Dtype::fp8;
  return Dtype::s8;
}

constexpr double kInf = std::numeric_limits<double>::infinity();

struct Sequence {
  int n_queries, n_keys;  // the queries are the last of the keys' positions
};

struct Case {
  std::vector<Sequence> sequences;
  int n_heads = 4, n_kv_heads = 2, head_dim = 64, page_size = 16;
  bool is_causal = true;
  int window_left = kUnbounded, window_right = kUnbounded;
  float softcap = 0.0f;
  bool has_alibi = false, has_sinks = false;
  enum Scale { none, per_head, per_slot } scale = none;
  int fixed_split = 0, n_blocks = 1;
  std::vector<SharedPrefix> prefixes = {};
  AttentionPath path = AttentionPath::mma_sync;
  int wide_rows = kWideRows;
  bool are_heads_first = false;  // pages [heads, slots, head_dim] instead of [slots, heads, head_dim]
};

// All that a launch reads and writes, in memory of exactly the right size.
template <class Q, class Kv>
struct Problem {
  explicit Problem(const Case& c_, std::uint64_t seed = 1) : c(c_), random(seed) {
    cu_seqlens_q.push_back(0);
    for (const Sequence& s : c.sequences) {
      seq_lens.push_back(s.n_keys);
      cu_seqlens_q.push_back(cu_seqlens_q.back() + s.n_queries);
    }
    n_tokens = cu_seqlens_q.back();
    make_pages();
    make_inputs();
  }

  const Case c;
  std::mt19937_64 random;
  std::normal_distribution<float> normal;
  std::vector<int> seq_lens, cu_seqlens_q, block_table;
  int n_tokens = 0, n_pages = 0, table_stride = 0;
  std::vector<Q> q, out;
  std::vector<Kv> k, v;
  std::vector<float> k_head_scale, v_head_scale, k_slot_scale, v_slot_scale, slopes, sinks, lse;

  std::size_t slot_of(int sequence, int key) const {
    const int page = block_table[static_cast<std::size_t>(sequence * table_stride + key / c.page_size)];
    return static_cast<std::size_t>(page * c.page_size + key % c.page_size);
  }

  // Where the row of a slot and KV head begins in k and v.
  std::size_t row_at(std::size_t slot, std::size_t kv_head) const {
    const auto heads = static_cast<std::size_t>(c.n_kv_heads), slots = static_cast<std::size_t>(c.page_size);
    const std::size_t row =
        c.are_heads_first ? (slot / slots * heads + kv_head) * slots + slot % slots : slot * heads + kv_head;
    return row * static_cast<std::size_t>(c.head_dim);
  }

  // Pages in a random order, shared where a prefix says so; entries past a sequence's end are what nobody may follow.
  void make_pages() {
    for (const Sequence& s : c.sequences) {
      table_stride = std::max(table_stride, s.n_keys / c.page_size + 2);
      n_pages += s.n_keys / c.page_size + 1;
    }
    n_pages += 3;
    std::vector<int> free(static_cast<std::size_t>(n_pages));
    for (int i = 0; i < n_pages; ++i) free[static_cast<std::size_t>(i)] = i;
    std::shuffle(free.begin(), free.end(), random);
    block_table.assign(c.sequences.size() * static_cast<std::size_t>(table_stride), std::numeric_limits<int>::min());
    for (std::size_t s = 0; s < c.sequences.size(); ++s) {
      for (int page = 0; page * c.page_size < c.sequences[s].n_keys; ++page) {
        int& entry = block_table[s * static_cast<std::size_t>(table_stride) + static_cast<std::size_t>(page)];
        entry = free.back();
        free.pop_back();
      }
    }
    for (const SharedPrefix& prefix : c.prefixes) {
      for (int s = prefix.first + 1; s < prefix.first + prefix.n; ++s) {
        for (int page = 0; page < prefix.n_keys / c.page_size; ++page) {
          block_table[static_cast<std::size_t>(s * table_stride + page)] =
              block_table[static_cast<std::size_t>(prefix.first * table_stride + page)];
        }
      }
    }
  }

  static Kv element(float x) {
    if constexpr (std::is_same_v<Kv, Int8>) {
      return Int8{static_cast<std::int8_t>(std::lround(std::min(127.0f, std::max(-127.0f, x * 40))))};
    } else {
      return from_float<Kv>(x);
    }
  }
  // What must never reach a result: NaN where the type has one.
  static Kv poison() {
    if constexpr (std::is_same_v<Kv, Int8>) return Int8{-128};
    if constexpr (std::is_same_v<Kv, Fp8>) return Fp8{0x7f};
    if constexpr (sizeof(Kv) == 2) return Kv{0x7fff};
  }

  void make_inputs() {
    const float nan = std::numeric_limits<float>::quiet_NaN();
    const auto heads = static_cast<std::size_t>(c.n_heads), kv_heads = static_cast<std::size_t>(c.n_kv_heads);
    const auto dim = static_cast<std::size_t>(c.head_dim);
    const std::size_t n_slots = static_cast<std::size_t>(n_pages * c.page_size);
    q.resize(static_cast<std::size_t>(n_tokens) * heads * dim);
    for (Q& x : q) x = from_float<Q>(normal(random));
    out.assign(q.size(), Q{0x7fff});
    lse.assign(static_cast<std::size_t>(n_tokens) * heads, nan);
    k.assign(n_slots * kv_heads * dim, poison());
    v = k;
    k_slot_scale.assign(n_slots * kv_heads, nan);
    v_slot_scale = k_slot_scale;
    for (std::size_t s = 0; s < c.sequences.size(); ++s) {
      for (int key = first_live_key(c.sequences[s]); key < c.sequences[s].n_keys; ++key) {
        const std::size_t slot = slot_of(static_cast<int>(s), key);
        for (std::size_t i = 0; i < kv_heads * dim; ++i) {
          const std::size_t at = row_at(slot, i / dim) + i % dim;
          k[at] = element(normal(random));
          v[at] = element(normal(random));
        }
        for (std::size_t i = slot * kv_heads; i < (slot + 1) * kv_heads; ++i) {
          k_slot_scale[i] = 0.01f + 0.02f * std::abs(normal(random));
          v_slot_scale[i] = 0.01f + 0.02f * std::abs(normal(random));
        }
      }
    }
    for (std::size_t h = 0; h < kv_heads; ++h) {
      k_head_scale.push_back(0.03f + 0.01f * static_cast<float>(h));
      v_head_scale.push_back(0.05f + 0.02f * static_cast<float>(h));
    }
    for (std::size_t h = 0; h < heads; ++h) {
      slopes.push_back(std::exp2(-static_cast<float>(h + 1)));
      sinks.push_back(normal(random));
    }
  }

  // Keys left of every token's window lie on pages that others may have by now.
  int first_live_key(const Sequence& s) const { return std::max(0, s.n_keys - s.n_queries - c.window_left); }

  PagedAttentionArgs args() {
    PagedAttentionArgs a;
    a.q = q.data();
    a.out = out.data();
    a.lse = lse.data();
    a.q_head_stride = a.out_head_stride = c.head_dim;
    a.q_token_stride = a.out_token_stride = std::int64_t{c.n_heads} * c.head_dim;
    const std::int64_t head_row = c.are_heads_first ? std::int64_t{c.page_size} * c.head_dim : c.head_dim;
    const std::int64_t slot_row = c.are_heads_first ? c.head_dim : std::int64_t{c.n_kv_heads} * c.head_dim;
    a.k = {k.data(), std::int64_t{c.page_size} * c.n_kv_heads * c.head_dim, slot_row, head_row, n_pages};
    a.v = a.k;
    a.v.data = v.data();
    if (c.scale == Case::per_head) a.k_scale.per_head = k_head_scale.data(), a.v_scale.per_head = v_head_scale.data();
    if (c.scale == Case::per_slot) a.k_scale.per_slot = k_slot_scale.data(), a.v_scale.per_slot = v_slot_scale.data();
    a.block_table = block_table.data();
    a.block_table_stride = table_stride;
    a.n_heads = c.n_heads;
    a.n_kv_heads = c.n_kv_heads;
    a.head_dim = c.head_dim;
    a.page_size = c.page_size;
    a.scale = 1.0f / std::sqrt(static_cast<float>(c.head_dim));
    a.is_causal = c.is_causal;
    a.window_left = c.window_left;
    a.window_right = c.window_right;
    a.softcap = c.softcap;
    if (c.has_alibi) a.alibi_slopes = slopes.data();
    if (c.has_sinks) a.sinks = sinks.data();
    return a;
  }

  PagedAttentionPlan plan() const {
    PlanRequest r;
    r.seq_lens = seq_lens;
    r.cu_seqlens_q = cu_seqlens_q;
    r.n_heads = c.n_heads;
    r.n_kv_heads = c.n_kv_heads;
    r.is_causal = c.is_causal;
    r.window_left = c.window_left;
    r.window_right = c.window_right;
    r.n_blocks = c.n_blocks;
    r.fixed_split = c.fixed_split;
    r.prefixes = c.prefixes;
    r.wide_rows = c.wide_rows;
    return plan_paged_attention(r);
  }

  void run() {
    const PagedAttentionPlan p = plan();
    const float nan = std::numeric_limits<float>::quiet_NaN();
    std::vector<float> states(static_cast<std::size_t>(p.n_all_states * c.n_heads * c.head_dim), nan);
    std::vector<float> state_lse(static_cast<std::size_t>(p.n_all_states * c.n_heads), nan);
    PagedAttentionLaunch l;
    l.q_dtype = dtype_of<Q>();
    l.kv_dtype = dtype_of<Kv>();
    l.args = args();
    l.args.state_begin = p.state_begin.data();
    l.args.states = states.data();
    l.args.state_lse = state_lse.data();
    l.narrow = p.narrow.data();
    l.n_narrow = static_cast<int>(p.narrow.size());
    l.wide = p.wide.data();
    l.n_wide = static_cast<int>(p.wide.size());
    l.merged_tokens = p.merged_tokens.data();
    l.n_states = p.n_states.data();
    l.prefix_states = p.prefix_states.empty() ? nullptr : p.prefix_states.data();
    l.n_merged_tokens = static_cast<int>(p.merged_tokens.size());
    l.wide_rows = p.wide_rows;
    l.path = c.path;
    paged_attention(l, nullptr);
  }

  double value_of(Kv x, bool is_key, std::size_t slot, std::size_t kv_head) const {
    const auto& head_scale = is_key ? k_head_scale : v_head_scale;
    const auto& slot_scale = is_key ? k_slot_scale : v_slot_scale;
    double scale = 1.0;
    if (c.scale == Case::per_head) scale = head_scale[kv_head];
    if (c.scale == Case::per_slot) scale = slot_scale[slot * static_cast<std::size_t>(c.n_kv_heads) + kv_head];
    return to_float(x) * scale;
  }

  // The formula: one row. Returns the log-sum-exp; `want` receives head_dim values.
  double expect_row(int sequence, int query, int head, std::vector<double>& want) const {
    const auto kv_head = static_cast<std::size_t>(head / (c.n_heads / c.n_kv_heads));
    const auto dim = static_cast<std::size_t>(c.head_dim);
    const Sequence& s = c.sequences[static_cast<std::size_t>(sequence)];
    const std::size_t token = static_cast<std::size_t>(cu_seqlens_q[static_cast<std::size_t>(sequence)] + query);
    const Q* q_row = &q[(token * static_cast<std::size_t>(c.n_heads) + static_cast<std::size_t>(head)) * dim];
    const std::int64_t position = s.n_keys - s.n_queries + query;
    std::vector<double> logits(static_cast<std::size_t>(s.n_keys), -kInf);
    for (std::int64_t key = 0; key < s.n_keys; ++key) {
      if (key > position + (c.is_causal ? 0 : c.window_right) || key < position - c.window_left) continue;
      const std::size_t slot = slot_of(sequence, static_cast<int>(key));
      double sum = 0;
      for (std::size_t d = 0; d < dim; ++d) {
        const std::size_t at = row_at(slot, kv_head) + d;
        sum += double{to_float(q_row[d])} * value_of(k[at], true, slot, kv_head);
      }
      sum /= std::sqrt(static_cast<double>(c.head_dim));
      if (c.softcap != 0.0f) sum = c.softcap * std::tanh(sum / c.softcap);
      if (c.has_alibi) sum -= slopes[static_cast<std::size_t>(head)] * static_cast<double>(std::abs(position - key));
      logits[static_cast<std::size_t>(key)] = sum;
    }
    double largest = c.has_sinks ? sinks[static_cast<std::size_t>(head)] : -kInf;
    for (const double x : logits) largest = std::max(largest, x);
    want.assign(dim, 0.0);
    if (largest == -kInf) return -kInf;
    double sum = c.has_sinks ? std::exp(sinks[static_cast<std::size_t>(head)] - largest) : 0.0;
    for (std::size_t key = 0; key < logits.size(); ++key) {
      if (logits[key] == -kInf) continue;
      const double p = std::exp(logits[key] - largest);
      sum += p;
      const std::size_t slot = slot_of(sequence, static_cast<int>(key));
      for (std::size_t d = 0; d < dim; ++d) {
        const std::size_t at = row_at(slot, kv_head) + d;
        want[d] += p * value_of(v[at], false, slot, kv_head);
      }
    }
    for (double& x : want) x /= sum;
    return largest + std::log(sum);
  }

  void check(const std::string& name) const {
    // Probabilities are rounded to Q before they meet V: half a unit in the last place of each, and of the result.
    const double unit = std::is_same_v<Q, Bf16> ? 1.0 / 256 : 1.0 / 2048;
    std::vector<double> want;
    for (int s = 0; s < static_cast<int>(c.sequences.size()); ++s) {
      for (int query = 0; query < c.sequences[static_cast<std::size_t>(s)].n_queries; ++query) {
        for (int head = 0; head < c.n_heads; ++head) {
          const double want_lse = expect_row(s, query, head, want);
          const auto row =
              static_cast<std::size_t>((cu_seqlens_q[static_cast<std::size_t>(s)] + query) * c.n_heads + head);
          double size = 0;
          for (const double x : want) size = std::max(size, std::abs(x));
          for (std::size_t d = 0; d < want.size(); ++d) {
            const double got = to_float(out[row * want.size() + d]);
            if (!(std::abs(got - want[d]) <= 2 * unit * size)) {
              check::fail(__FILE__, __LINE__, name, ": sequence ", s, ", query ", query, ", head ", head, ", channel ",
                          d, ": got ", got, ", want ", want[d]);
            }
          }
          const double got_lse = lse[row];
          if (!(got_lse == want_lse || std::abs(got_lse - want_lse) <= 1e-3 * (1 + std::abs(want_lse)))) {
            check::fail(__FILE__, __LINE__, name, ": sequence ", s, ", query ", query, ", head ", head,
                        ": log-sum-exp ", got_lse, ", want ", want_lse);
          }
        }
      }
    }
  }
};

template <class Q, class Kv>
void check_case(const Case& c, const std::string& name) {
  Problem<Q, Kv> problem(c);
  problem.run();
  problem.check(name);
}

const std::vector<Sequence> kMixed = {{1, 1}, {1, 40}, {5, 18}, {33, 33}, {0, 7}, {3, 131}};

}  // namespace attention_problem
