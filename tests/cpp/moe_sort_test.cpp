// Sorting pairs by expert on the host machine, against a stable sort: every size of chunk, maps, ids that are none.
#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "check.h"
#include "moe_sort_launch.h"

namespace {

using namespace llm_decoder;
using namespace llm_decoder::gpu;

constexpr int kUntouched = -99;

struct Case {
  int n_pairs, n_experts, tile_rows;
  int n_ids = 0;      // 0: those here, without a map
  double skew = 1.0;  // above 1: the first experts have the most
  bool has_bad_ids = false;
};

struct Problem {
  explicit Problem(const Case& c_) : c(c_) {
    if (c.n_ids == 0) {
      c.n_ids = c.n_experts;
    } else {
      // Experts here are spread over the ids, in a mixed order.
      map.assign(static_cast<std::size_t>(c.n_ids), kNotHere);
      for (int e = 0; e < c.n_experts; ++e) map[static_cast<std::size_t>(e)] = e;
      std::shuffle(map.begin(), map.end(), random);
    }
    std::uniform_real_distribution<double> uniform;
    for (int i = 0; i < c.n_pairs; ++i) {
      ids.push_back(static_cast<int>(std::pow(uniform(random), c.skew) * c.n_ids));
      if (c.has_bad_ids && i % 5 == 0) ids.back() = i % 2 == 0 ? -1 : std::numeric_limits<int>::max();
      if (c.has_bad_ids && i % 7 == 0) ids.back() = c.n_ids;
    }
    sorted.assign(ids.size(), kUntouched);
    tiles.assign(static_cast<std::size_t>(max_moe_tiles(c.n_pairs, c.n_experts, c.tile_rows)),
                 {kUntouched, kUntouched, kUntouched});
    chunk_begin.assign(static_cast<std::size_t>(n_sort_chunks(c.n_pairs) * c.n_experts), kUntouched);
    expert_begin.assign(static_cast<std::size_t>(c.n_experts), kUntouched);
  }

  Case c;
  std::mt19937_64 random{11};
  std::vector<int> ids, map, sorted, chunk_begin, expert_begin;
  std::vector<MoeTile> tiles;
  int n_tiles = kUntouched;

  MoeSortArgs args() {
    MoeSortArgs a;
    a.pairs.ids = ids.data();
    if (!map.empty()) a.pairs.expert_map = map.data();
    a.pairs.n_pairs = c.n_pairs;
    a.pairs.n_ids = c.n_ids;
    a.pairs.n_experts = c.n_experts;
    a.tile_rows = c.tile_rows;
    a.sorted_pairs = sorted.data();
    a.tiles = tiles.data();
    a.n_tiles = &n_tiles;
    a.chunk_begin = chunk_begin.data();
    a.expert_begin = expert_begin.data();
    return a;
  }

  void check(const std::string& name) const {
    std::vector<std::pair<int, int>> want;  // expert, pair
    for (int i = 0; i < c.n_pairs; ++i) {
      const int id = ids[static_cast<std::size_t>(i)];
      if (id < 0 || id >= c.n_ids) continue;
      const int expert = map.empty() ? id : map[static_cast<std::size_t>(id)];
      if (expert != kNotHere) want.emplace_back(expert, i);
    }
    std::sort(want.begin(), want.end());
    for (std::size_t i = 0; i < sorted.size(); ++i) {
      const int pair = i < want.size() ? want[i].second : kUntouched;
      if (sorted[i] != pair) {
        check::fail(__FILE__, __LINE__, name, ": place ", i, ": pair ", sorted[i], ", want ", pair);
      }
    }
    std::size_t tile = 0, begin = 0;
    while (begin < want.size()) {
      std::size_t end = begin;
      while (end < want.size() && want[end].first == want[begin].first && end - begin < std::size_t(c.tile_rows)) ++end;
      CHECK(tile < tiles.size());
      CHECK_EQ(tiles[tile].expert, want[begin].first);
      CHECK_EQ(tiles[tile].begin, static_cast<int>(begin));
      CHECK_EQ(tiles[tile].n, static_cast<int>(end - begin));
      ++tile;
      begin = end;
    }
    CHECK_EQ(n_tiles, static_cast<int>(tile));
    for (; tile < tiles.size(); ++tile) CHECK_EQ(tiles[tile].expert, kUntouched);
  }
};

void check_case(const Case& c, const std::string& name) {
  for (const Order& order : {Order{}, Order{Order::Kind::descending, 0}, Order{Order::Kind::shuffled, 3}}) {
    set_host_order(order);
    Problem problem(c);
    moe_sort(problem.args(), nullptr);
    set_host_order({});
    problem.check(name);
  }
}

TEST(pairs_come_by_expert_and_in_order_within_it) {
  for (const int n_pairs : {1, 2, 31, 33, 127, 512, 513, 4096}) {
    for (const int n_experts : {1, 3, 8, 60, 256}) {
      check_case({n_pairs, n_experts, 16}, concat(n_pairs, " pairs, ", n_experts, " experts"));
    }
  }
  check_case({700, 1024, 8}, "1024 experts");
}

TEST(pairs_of_several_chunks_come_in_order_too) {
  check_case({4097, 5, 128}, "a pair more than a chunk");
  check_case({40000, 100, 64}, "ten chunks");
  check_case({9000, 1024, 8}, "three chunks, 1024 experts");
}

TEST(experts_may_have_nothing_or_all) {
  check_case({300, 64, 32, 0, 8.0}, "most to the first");
  check_case({5000, 64, 32, 0, 30.0}, "almost all to the first, two chunks");
}

TEST(pairs_that_go_elsewhere_or_nowhere_are_left_out) {
  check_case({500, 8, 16, 64}, "a map");
  check_case({500, 64, 16, 64, 1.0, true}, "a map and ids that are none");
  check_case({6000, 8, 16, 32, 1.0, true}, "two chunks");
  check_case({100, 8, 16, 0, 1.0, true}, "ids that are none");
  Problem nobody({40, 4, 16});
  std::fill(nobody.ids.begin(), nobody.ids.end(), -1);
  moe_sort(nobody.args(), nullptr);
  nobody.check("nothing is here");
}

TEST(the_most_tiles_that_can_be_are_not_more_than_there_is_room_for) {
  // One pair more than whole tiles at each of the experts.
  Problem problem({3 * 9, 3, 8});
  for (int i = 0; i < 27; ++i) problem.ids[static_cast<std::size_t>(i)] = i % 3;
  moe_sort(problem.args(), nullptr);
  problem.check("nine pairs each");
  CHECK_EQ(problem.n_tiles, max_moe_tiles(27, 3, 8));
}

TEST(no_pairs_are_no_tiles) {
  Problem problem({0, 4, 16});
  moe_sort(problem.args(), nullptr);
  problem.check("no pairs");
}

TEST(what_cannot_be_sorted_is_refused) {
  Problem problem({4, 4, 16});
  MoeSortArgs args = problem.args();
  args.pairs.n_experts = 1025;
  CHECK_THROWS(std::invalid_argument, "n_experts must be 1 to 1024, got 1025", moe_sort(args, nullptr));
  args = problem.args();
  args.tile_rows = 0;
  CHECK_THROWS(std::invalid_argument, "tile_rows must be positive, got 0", moe_sort(args, nullptr));
}

}  // namespace
