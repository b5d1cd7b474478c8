// The fused attention kernel on the host machine, against the formula in double: every dtype and feature, mixed
// batches, split keys, shared prefixes, pages in any order, NaN wherever nothing may look.
#include <string>
#include <vector>

#include "attention_problem.h"

namespace {

using namespace attention_problem;

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

TEST(every_feature_reaches_the_keys_of_a_shared_prefix) {
  for (int bits = 0; bits < 16; ++bits) {
    Case c{{{1, 30}, {1, 270}, {3, 300}, {20, 330}, {1, 40}}};
    c.prefixes = {{1, 3, 240}, {4, 1, 16}};
    if (bits & 1) c.softcap = 3.0f;
    c.has_alibi = (bits & 2) != 0;
    c.has_sinks = (bits & 4) != 0;
    if (bits & 8) c.fixed_split = 64;
    check_case<Bf16, Bf16>(c, concat("shared prefix, features ", bits));
    c.scale = Case::per_slot;
    check_case<Fp16, Int8>(c, concat("shared prefix, int8, features ", bits));
  }
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
