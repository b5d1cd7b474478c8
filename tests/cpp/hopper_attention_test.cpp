// Attention with products of warpgroups on the host machine, against the formula in double: what the fused kernel is
// asked, of rows that are many.
#include <cstdlib>
#include <string>
#include <vector>

#include "attention_problem.h"
#include "hopper_attention.h"
#include "hopper_attention_launch.h"

namespace {

using namespace attention_problem;

// Pages of 16 come key by key, those of 64 and more by tensor map.
Case hopper_case(std::vector<Sequence> sequences, int page_size) {
  Case c{std::move(sequences)};
  c.page_size = page_size;
  c.path = AttentionPath::wgmma;
  c.wide_rows = kHopperRows;
  return c;
}

TEST(a_mixed_batch_of_prompts_chunks_and_decodes) {
  for (const int page_size : {16, 64}) {
    const Case c = hopper_case({{1, 40}, {33, 33}, {0, 7}, {9, 140}, {70, 200}}, page_size);
    check_case<Bf16, Bf16>(c, concat("bf16, pages of ", page_size));
    check_case<Fp16, Fp16>(c, concat("fp16, pages of ", page_size));
  }
}

TEST(a_prompt_of_several_items_and_tiles) {
  Case c = hopper_case({{300, 300}}, 64);
  c.n_heads = 2;
  c.n_kv_heads = 1;
  check_case<Bf16, Bf16>(c, "prompt");
  c.wide_rows = kWideRows;
  check_case<Bf16, Bf16>(c, "items of 64 rows");
  c.is_causal = false;
  check_case<Bf16, Bf16>(c, "all see all");
}

TEST(heads_that_are_not_of_a_class_and_any_ratio_of_heads) {
  struct Heads {
    int n, n_kv, dim;
  };
  for (const Heads& h : {Heads{3, 3, 8}, Heads{5, 1, 40}, Heads{8, 2, 72}, Heads{71, 1, 64}, Heads{6, 3, 80},
                         Heads{2, 2, 128}, Heads{2, 1, 176}, Heads{2, 2, 192}, Heads{2, 1, 200}, Heads{4, 2, 256}}) {
    for (const int page_size : {48, 128}) {
      Case c = hopper_case({{20, 45}, {30, 280}}, page_size);
      c.n_heads = h.n;
      c.n_kv_heads = h.n_kv;
      c.head_dim = h.dim;
      check_case<Bf16, Bf16>(c, concat("heads ", h.n, "/", h.n_kv, " of ", h.dim, ", pages of ", page_size));
    }
  }
}

TEST(pages_whose_heads_come_before_their_slots) {
  for (const int page_size : {16, 64, 192}) {
    Case c = hopper_case({{40, 290}}, page_size);
    c.are_heads_first = true;
    check_case<Bf16, Bf16>(c, concat("pages of ", page_size));
    c.n_kv_heads = 1;
    check_case<Bf16, Bf16>(c, concat("a head, pages of ", page_size));
  }
}

TEST(windows_softcaps_slopes_and_sinks_in_any_combination) {
  for (int bits = 0; bits < 32; ++bits) {
    Case c = hopper_case({{20, 290}, {10, 12}}, bits % 2 == 0 ? 64 : 32);
    if (bits & 1) c.window_left = 70;
    if (bits & 2) c.softcap = 3.0f;
    c.has_alibi = (bits & 4) != 0;
    c.has_sinks = (bits & 8) != 0;
    c.is_causal = (bits & 16) == 0;
    if (!c.is_causal && bits & 1) c.window_right = 2;
    check_case<Bf16, Bf16>(c, concat("features ", bits));
  }
}

TEST(windows_that_leave_whole_pages_behind) {
  Case c = hopper_case({{70, 500}}, 64);
  c.window_left = 130;
  check_case<Bf16, Bf16>(c, "window");
  c.scale = Case::per_head;
  check_case<Fp16, Fp16>(c, "window, a scale a head");
}

TEST(rows_that_see_nothing_are_zero_with_a_log_sum_exp_of_minus_infinity) {
  Case c = hopper_case({{40, 2}, {20, 0}}, 64);  // more queries than keys: the first stand before the first key
  check_case<Bf16, Bf16>(c, "nothing to see");
  c.has_sinks = true;
  check_case<Bf16, Bf16>(c, "nothing but a sink");
}

TEST(keys_split_over_blocks_merge_to_the_same) {
  Case c = hopper_case({{20, 700}, {1, 90}}, 64);
  c.n_blocks = 64;
  check_case<Bf16, Bf16>(c, "split");
  c.has_sinks = true;
  c.fixed_split = 192;  // not a whole number of tiles
  check_case<Bf16, Bf16>(c, "fixed split");
  Case window = hopper_case({{130, 700}}, 64);  // of a split some warpgroups see nothing
  window.window_left = 40;
  window.fixed_split = 128;
  check_case<Bf16, Bf16>(window, "fixed split, window");
}

TEST(a_shared_prefix_is_read_once_and_gives_the_same) {
  Case c = hopper_case({{12, 290}, {9, 201}, {1, 40}}, 64);
  c.prefixes = {{0, 2, 192}};
  check_case<Bf16, Bf16>(c, "shared prefix");
  c.has_alibi = c.has_sinks = true;
  c.softcap = 3.0f;
  check_case<Bf16, Bf16>(c, "shared prefix, every feature");
}

TEST(with_a_fixed_split_a_prompt_gives_the_same_bits_beside_others) {
  Case c = hopper_case({{40, 230}}, 64);
  c.fixed_split = 64;
  Problem<Bf16, Bf16> alone(c);
  alone.run();
  Case both = c;
  both.sequences.push_back({60, 60});
  both.n_blocks = 40;
  Problem<Bf16, Bf16> batch(both);
  std::copy(alone.q.begin(), alone.q.end(), batch.q.begin());
  for (int key = 0; key < 230; ++key) {
    for (std::size_t head = 0; head < static_cast<std::size_t>(c.n_kv_heads); ++head) {
      const std::size_t from = alone.row_at(alone.slot_of(0, key), head),
                        to = batch.row_at(batch.slot_of(0, key), head);
      std::copy_n(&alone.k[from], c.head_dim, &batch.k[to]);
      std::copy_n(&alone.v[from], c.head_dim, &batch.v[to]);
    }
  }
  batch.run();
  for (std::size_t i = 0; i < alone.out.size(); ++i) CHECK_EQ(batch.out[i].bits, alone.out[i].bits);
}

TEST(no_order_of_threads_changes_a_bit) {
  for (const int page_size : {32, 64}) {
    const Case c = hopper_case({{80, 300}, {40, 40}}, page_size);
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
}

TEST(items_for_larger_blocks_are_shared_by_smaller_ones) {
  Case c = hopper_case({{70, 90}, {1, 40}, {33, 33}}, 16);
  c.path = AttentionPath::mma_sync;
  check_case<Bf16, Bf16>(c, "mma.sync");
  c.scale = Case::per_slot;
  check_case<Bf16, Fp8>(c, "fp8 pages");
}

TEST(what_was_asked_for_and_cannot_be_is_refused) {
  Case c = hopper_case({{20, 20}}, 64);
  CHECK_THROWS(std::invalid_argument, "pages must be of the queries' dtype", check_case<Bf16, Int8>(c, "int8"));
  c.scale = Case::per_slot;
  CHECK_THROWS(std::invalid_argument, "got one a slot", check_case<Bf16, Bf16>(c, "scale a slot"));
  c.path = AttentionPath::chosen;
  check_case<Bf16, Bf16>(c, "scale a slot, chosen");
  c.scale = Case::none;
  c.path = AttentionPath::wgmma;
  c.wide_rows = 2 * kHopperRows;
  CHECK_THROWS(std::invalid_argument, "up to 128 rows", check_case<Bf16, Bf16>(c, "rows"));
}

// The one variable of the environment that the launcher reads.
class PathVariable {
 public:
  explicit PathVariable(const char* value) { setenv(kName, value, 1); }
  ~PathVariable() { unsetenv(kName); }

 private:
  static constexpr char kName[] = "LLM_DECODER_ATTENTION_PATH";
};

TEST(the_environment_chooses_where_the_launch_does_not) {
  Case c = hopper_case({{20, 20}}, 64);
  c.path = AttentionPath::chosen;
  const DeviceProperties host = device_properties(0);
  DeviceProperties h200 = host;
  h200.compute_major = 9;
  CHECK_EQ(wide_rows_for(host), kWideRows);
  CHECK_EQ(wide_rows_for(h200), kHopperRows);
  h200.has_warpgroups = false;
  CHECK_EQ(wide_rows_for(h200), kWideRows);
  {
    const PathVariable wgmma("wgmma");
    CHECK_EQ(wide_rows_for(host), kHopperRows);
    check_case<Bf16, Bf16>(c, "wgmma by the environment");
    CHECK_THROWS(std::invalid_argument, "wgmma was asked for", check_case<Bf16, Int8>(c, "int8"));
  }
  const PathVariable wrong("tensor cores");
  CHECK_THROWS(std::invalid_argument, "must be mma_sync or wgmma", check_case<Bf16, Bf16>(c, "nonsense"));
}

TEST(a_device_without_warpgroups_says_what_it_needs) {
  PagedAttentionLaunch launch;
  const DeviceProperties device{"some device", 8, 9, 100, false};
  CHECK(why_not_hopper(launch, device).find("compute capability 9.0") != std::string::npos);
  CHECK(why_not_hopper(launch, device).find("some device of 8.9") != std::string::npos);
}

TEST(plans_of_larger_items_put_those_that_see_most_first) {
  Case c = hopper_case({{300, 300}, {200, 400}}, 64);
  const Problem<Bf16, Bf16> problem(c);
  const PagedAttentionPlan plan = problem.plan();
  CHECK(plan.narrow.empty());
  CHECK_EQ(plan.wide.size(), (600u + 127u) / 128u + (400u + 127u) / 128u);
  std::vector<int> seen;  // keys of the last row, group 2
  for (const PagedAttentionItem& item : plan.wide) {
    CHECK(item.n_rows <= kHopperRows);
    seen.push_back(item.first_position + (item.row_begin + item.n_rows - 1) / 2 + 1);
  }
  CHECK(std::is_sorted(seen.rbegin(), seen.rend()));
  CHECK_EQ(seen.front(), 400);
}

template <class Tile>
void check_tile() {
  CHECK(Tile::kSharedBytes <= kMaxSharedBytes);
  CHECK(Tile::kQAt % kPatternBytes == 0 && Tile::kTilesAt % kPatternBytes == 0);
  // What a lane of a multiplying warp holds at once: scores, probabilities, sums; a fifth is left for the rest.
  const int n_held = Tile::kKeys / 2 + Tile::kKeys / 4 + Tile::kHeadDim / 2;
  CHECK(n_held * 5 <= Tile::kRegisters.multiplying * 4);
  CHECK(384 * Tile::kRegisters.launched <= 65536);
  CHECK_EQ(Tile::kRegisters.filling + 2 * Tile::kRegisters.multiplying, 3 * Tile::kRegisters.launched);
}

TEST(tiles_fit_into_the_registers_and_the_shared_memory_of_a_multiprocessor) {
  check_tile<HopperTile<Bf16, 64>>();
  check_tile<HopperTile<Bf16, 128>>();
  check_tile<HopperTile<Fp16, 192>>();
  check_tile<HopperTile<Fp16, 256>>();
}

}  // namespace
