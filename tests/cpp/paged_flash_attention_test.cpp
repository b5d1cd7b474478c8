// The fused attention kernel on the host machine, against the formula in double: every dtype and feature, mixed
// batches, split keys, shared prefixes, pages in any order, NaN wherever nothing may look.
#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "check.h"
#include "paged_attention_launch.h"
#include "paged_attention_plan.h"

namespace {

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
        for (std::size_t i = slot * kv_heads * dim; i < (slot + 1) * kv_heads * dim; ++i) {
          k[i] = element(normal(random));
          v[i] = element(normal(random));
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
    a.k = {k.data(), std::int64_t{c.page_size} * c.n_kv_heads * c.head_dim, std::int64_t{c.n_kv_heads} * c.head_dim,
           c.head_dim};
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
    l.n_merged_tokens = static_cast<int>(p.merged_tokens.size());
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
        const std::size_t at = (slot * static_cast<std::size_t>(c.n_kv_heads) + kv_head) * dim + d;
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
        const std::size_t at = (slot * static_cast<std::size_t>(c.n_kv_heads) + kv_head) * dim + d;
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

TEST(a_mixed_batch_of_prompts_chunks_and_decodes) {
  check_case<Bf16, Bf16>({kMixed}, "bf16");
  check_case<Fp16, Fp16>({kMixed}, "fp16");
}

TEST(keys_and_values_of_bytes) {
  for (const auto scale : {Case::none, Case::per_head, Case::per_slot}) {
    Case c{kMixed};
    c.scale = scale;
    check_case<Bf16, Fp8>(c, "fp8");
    if (scale != Case::none) check_case<Bf16, Int8>(c, "int8");
    if (scale == Case::per_slot) check_case<Fp16, Int8>(c, "int8, fp16 queries");
  }
}

TEST(heads_that_are_not_of_a_class_and_any_ratio_of_heads) {
  struct Heads {
    int n, n_kv, dim;
  };
  for (const Heads& h : {Heads{3, 3, 8}, Heads{5, 1, 40}, Heads{7, 1, 64}, Heads{8, 2, 72}, Heads{71, 1, 64},
                         Heads{6, 3, 80}, Heads{2, 1, 96}, Heads{2, 2, 128}, Heads{2, 1, 176}, Heads{4, 1, 256}}) {
    Case c{{{1, 20}, {9, 25}}};
    c.n_heads = h.n;
    c.n_kv_heads = h.n_kv;
    c.head_dim = h.dim;
    check_case<Bf16, Bf16>(c, concat("bf16 heads ", h.n, "/", h.n_kv, " of ", h.dim));
    check_case<Bf16, Fp8>(c, concat("fp8 heads ", h.n, "/", h.n_kv, " of ", h.dim));
  }
}

TEST(pages_of_any_multiple_of_16) {
  for (const int page_size : {16, 32, 48, 64, 256}) {
    Case c{{{1, 100}, {20, 90}}};
    c.page_size = page_size;
    check_case<Bf16, Bf16>(c, concat("pages of ", page_size));
  }
}

TEST(windows_softcaps_slopes_and_sinks_in_any_combination) {
  for (int bits = 0; bits < 32; ++bits) {
    Case c{{{1, 150}, {6, 80}, {1, 1}}};
    if (bits & 1) c.window_left = 20;
    if (bits & 2) c.softcap = 3.0f;
    c.has_alibi = (bits & 4) != 0;
    c.has_sinks = (bits & 8) != 0;
    c.is_causal = (bits & 16) == 0;
    if (!c.is_causal && bits & 1) c.window_right = 2;
    check_case<Bf16, Bf16>(c, concat("features ", bits));
  }
}

TEST(rows_that_see_nothing_are_zero_with_a_log_sum_exp_of_minus_infinity) {
  Case c{{{4, 2}, {1, 0}}};  // more queries than keys: the first stand before the first key
  check_case<Bf16, Bf16>(c, "nothing to see");
  c.has_sinks = true;
  check_case<Bf16, Bf16>(c, "nothing but a sink");
}

TEST(keys_split_over_blocks_merge_to_the_same) {
  for (const int n_blocks : {1, 8, 64}) {
    Case c{{{1, 700}, {1, 90}, {20, 300}}};
    c.n_blocks = n_blocks;
    check_case<Bf16, Bf16>(c, concat(n_blocks, " blocks at once"));
    c.has_sinks = true;
    c.window_left = 280;
    check_case<Bf16, Int8>(
        [&] {
          Case d = c;
          d.scale = Case::per_slot;
          return d;
        }(),
        concat(n_blocks, " blocks, window"));
  }
}

TEST(a_shared_prefix_is_read_once_and_gives_the_same) {
  Case c{{{1, 70}, {1, 90}, {2, 66}, {1, 40}}};
  c.prefixes = {{0, 3, 64}};
  check_case<Bf16, Bf16>(c, "shared prefix");
  c.n_blocks = 64;
  check_case<Bf16, Bf16>(c, "shared prefix, split");
}

TEST(with_a_fixed_split_a_sequence_gives_the_same_bits_alone_and_in_a_batch) {
  Case c{{{1, 200}, {7, 77}, {1, 333}}};
  c.fixed_split = 64;
  c.n_blocks = 40;
  Problem<Bf16, Bf16> batch(c);
  batch.run();
  batch.check("fixed split");
  for (std::size_t s = 0; s < c.sequences.size(); ++s) {
    Problem<Bf16, Bf16> alone(c);
    const auto row = static_cast<std::size_t>(c.n_heads * c.head_dim);
    const auto begin = static_cast<std::size_t>(batch.cu_seqlens_q[s]),
               end = static_cast<std::size_t>(batch.cu_seqlens_q[s + 1]);
    alone.seq_lens = {batch.seq_lens[s]};
    alone.cu_seqlens_q = {0, static_cast<int>(end - begin)};
    alone.q.assign(batch.q.begin() + static_cast<std::ptrdiff_t>(begin * row),
                   batch.q.begin() + static_cast<std::ptrdiff_t>(end * row));
    alone.k = batch.k;
    alone.v = batch.v;
    alone.block_table.assign(batch.block_table.begin() + static_cast<std::ptrdiff_t>(s) * batch.table_stride,
                             batch.block_table.begin() + static_cast<std::ptrdiff_t>(s + 1) * batch.table_stride);
    alone.run();
    for (std::size_t i = 0; i < (end - begin) * row; ++i) CHECK_EQ(alone.out[i].bits, batch.out[begin * row + i].bits);
  }
}

TEST(no_order_of_threads_changes_a_bit) {
  Case c{{{1, 150}, {20, 60}}};
  c.n_blocks = 16;
  Problem<Bf16, Bf16> first(c);
  first.run();
  for (const Order& order : {Order{Order::Kind::descending, 0}, Order{Order::Kind::shuffled, 5}}) {
    set_host_order(order);
    Problem<Bf16, Bf16> again(c);
    again.run();
    set_host_order({});
    for (std::size_t i = 0; i < first.out.size(); ++i) CHECK_EQ(again.out[i].bits, first.out[i].bits);
  }
}

TEST(plans_refuse_lengths_that_cannot_be) {
  const std::vector<int> lens = {5}, cu = {0, 1}, falling = {0, -1};
  PlanRequest r;
  r.seq_lens = lens;
  r.cu_seqlens_q = cu;
  r.n_heads = 4;
  r.n_kv_heads = 3;
  CHECK_THROWS(std::invalid_argument, "n_heads must be a multiple", plan_paged_attention(r));
  r.n_kv_heads = 2;
  r.cu_seqlens_q = falling;
  CHECK_THROWS(std::invalid_argument, "must not fall", plan_paged_attention(r));
  r.cu_seqlens_q = lens;
  CHECK_THROWS(std::invalid_argument, "an entry more", plan_paged_attention(r));
  r.cu_seqlens_q = cu;
  const SharedPrefix prefix{0, 1, 5};
  r.prefixes = Span<const SharedPrefix>(&prefix, 1);
  CHECK_THROWS(std::invalid_argument, "has 4 before its tokens", plan_paged_attention(r));
  r.window_left = 8;
  CHECK_THROWS(std::invalid_argument, "without a window", plan_paged_attention(r));
}

TEST(plans_fill_the_device_and_no_more) {
  const std::vector<int> lens = {8000, 100, 3000}, cu = {0, 1, 2, 3};
  PlanRequest r;
  r.seq_lens = lens;
  r.cu_seqlens_q = cu;
  r.n_heads = 32;
  r.n_kv_heads = 8;
  r.n_blocks = 264;
  const PagedAttentionPlan plan = plan_paged_attention(r);
  CHECK(plan.wide.empty());
  CHECK(plan.narrow.size() * 8 <= 264);
  CHECK(plan.narrow.size() * 8 > 200);
  int n_keys = 0;
  for (const PagedAttentionItem& item : plan.narrow) n_keys += item.key_end - item.key_begin;
  CHECK_EQ(n_keys, 11100);
  for (std::size_t i = 1; i < plan.narrow.size(); ++i) {
    CHECK(plan.narrow[i].key_end - plan.narrow[i].key_begin <=
          plan.narrow[i - 1].key_end - plan.narrow[i - 1].key_begin);
  }
}

}  // namespace
