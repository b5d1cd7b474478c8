// The ring between who fills and who uses, played by threads that take turns in any order: nothing is filled before it
// was used, nothing used before it was filled, and nobody waits for ever.
#include <random>
#include <vector>

#include "check.h"
#include "tile_ring.h"

namespace {

using namespace llm_decoder::gpu;

// A barrier as the PTX manual tells of it: phases that are over when all have come.
struct Barrier {
  int n_arrivals, n_missing, phase = 0;
  explicit Barrier(int n) : n_arrivals(n), n_missing(n) {}
  void arrive() {
    CHECK(n_missing > 0);
    if (--n_missing == 0) n_missing = n_arrivals, ++phase;
  }
  bool passes(int parity) const { return phase % 2 != parity; }
};

// What a thread does next: wait for a parity of a barrier, or something at once.
struct Step {
  enum Kind { wait, arrive, begin_fill, use } kind;
  int barrier;  // of wait and arrive
  int parity;
  int ring, tile;  // of the others
};

constexpr int kFillers = 4, kUsers = 8, kLate = 2;

template <int n_stages>
struct Play {
  using Ring = TileRing<n_stages>;
  std::vector<Barrier> barriers;
  std::vector<std::vector<Step>> threads;

  static int full(int ring, int n) { return 2 * ring * n_stages + Ring::stage(n); }
  static int empty(int ring, int n) { return (2 * ring + 1) * n_stages + Ring::stage(n); }

  // Tiles of each piece of work; whether a tile comes at once (by tensor map) or `kLate` tiles later (key by key).
  Play(const std::vector<int>& n_tiles, std::mt19937& random) {
    for (int ring = 0; ring < 2; ++ring) {
      for (int stage = 0; stage < n_stages; ++stage) barriers.emplace_back(kFillers);
      for (int stage = 0; stage < n_stages; ++stage) barriers.emplace_back(kUsers);
    }
    std::vector<std::pair<int, int>> order;  // (ring, tile) as they are asked for
    std::vector<bool> at_once;
    int n = 0;
    for (const int count : n_tiles) {
      for (int t = 0; t < count; ++t) {
        if (t == 0) order.push_back({0, n});
        if (t + 1 < count) order.push_back({0, n + t + 1});
        order.push_back({1, n + t});
      }
      n += count;
    }
    for (std::size_t i = 0; i < order.size(); ++i) at_once.push_back(random() % 2 == 0);
    for (int filler = 0; filler < kFillers; ++filler) threads.push_back(filler_steps(order, at_once));
    for (int user = 0; user < kUsers; ++user) threads.push_back(user_steps(n_tiles, user / 4 * random()));
  }

  static std::vector<Step> filler_steps(const std::vector<std::pair<int, int>>& order,
                                        const std::vector<bool>& at_once) {
    std::vector<Step> steps;
    const auto arrive = [&](std::size_t i) {
      steps.push_back({Step::arrive, full(order[i].first, order[i].second), 0, order[i].first, order[i].second});
    };
    for (std::size_t i = 0; i < order.size() + kLate; ++i) {
      if (i < order.size()) {
        const auto [ring, tile] = order[i];
        steps.push_back({Step::wait, empty(ring, tile), Ring::empty_parity(tile), 0, 0});
        steps.push_back({Step::begin_fill, 0, 0, ring, tile});
        if (at_once[i]) arrive(i);
      }
      if (i >= kLate && !at_once[i - kLate]) arrive(i - kLate);
    }
    return steps;
  }

  // As HopperMultiplier goes over its tiles; bits of `skipped`: work of which it sees none.
  static std::vector<Step> user_steps(const std::vector<int>& n_tiles, unsigned skipped) {
    std::vector<Step> steps;
    const auto take = [&](int ring, int tile) {
      steps.push_back({Step::wait, full(ring, tile), Ring::full_parity(tile), 0, 0});
      steps.push_back({Step::use, 0, 0, ring, tile});
    };
    const auto leave = [&](int ring, int tile) { steps.push_back({Step::arrive, empty(ring, tile), 0, ring, tile}); };
    int n = 0;
    for (std::size_t i = 0; i < n_tiles.size(); ++i) {
      const int count = n_tiles[i];
      for (int t = 0; t < count; ++t) {
        if (skipped >> i & 1u) {
          for (const int ring : {0, 1}) take(ring, n + t), leave(ring, n + t);
          continue;
        }
        if (t == 0) take(0, n), leave(0, n);
        if (t + 1 < count) take(0, n + t + 1);
        take(1, n + t);
        if (t + 1 < count) leave(0, n + t + 1);
        leave(1, n + t);
      }
      n += count;
    }
    return steps;
  }

  // Threads take turns at random, or one runs as far as it can before another does.
  void run(std::mt19937& random, bool is_greedy) {
    std::vector<std::size_t> at(threads.size(), 0);
    std::vector<std::vector<int>> filled(2, std::vector<int>(n_stages, -1));  // which tile is, or is becoming
    std::vector<std::vector<int>> n_users(2, std::vector<int>(1000, 0));      // that have left a tile
    std::size_t current = 0;
    for (;;) {
      std::vector<std::size_t> ready;
      bool is_over = true;
      for (std::size_t t = 0; t < threads.size(); ++t) {
        if (at[t] == threads[t].size()) continue;
        is_over = false;
        const Step& step = threads[t][at[t]];
        if (step.kind != Step::wait || barriers[static_cast<std::size_t>(step.barrier)].passes(step.parity)) {
          ready.push_back(t);
        }
      }
      if (is_over) return;
      CHECK(!ready.empty());  // nobody waits for ever
      bool stays = false;
      for (const std::size_t t : ready) stays |= is_greedy && t == current;
      if (!stays) current = ready[random() % ready.size()];
      const Step& step = threads[current][at[current]++];
      const auto ring = static_cast<std::size_t>(step.ring), stage = static_cast<std::size_t>(Ring::stage(step.tile));
      if (step.kind == Step::begin_fill && filled[ring][stage] != step.tile) {
        const int before = filled[ring][stage];
        if (before >= 0) CHECK_EQ(n_users[ring][static_cast<std::size_t>(before)], kUsers);
        CHECK_EQ(before, step.tile - n_stages < 0 ? -1 : step.tile - n_stages);
        filled[ring][stage] = step.tile;
      }
      if (step.kind == Step::use) CHECK_EQ(filled[ring][stage], step.tile);
      if (step.kind == Step::arrive) {
        if (current >= kFillers) ++n_users[ring][static_cast<std::size_t>(step.tile)];
        barriers[static_cast<std::size_t>(step.barrier)].arrive();
      }
    }
  }
};

template <int n_stages>
void check_ring() {
  std::mt19937 random(n_stages);
  for (const std::vector<int>& work :
       {std::vector<int>{1}, {2}, {9}, {1, 1, 1, 1, 1, 1}, {0, 3, 0, 1, 5}, {4, 4, 4}, {2, 1, 3, 1, 7}}) {
    for (int i = 0; i < 60; ++i) Play<n_stages>(work, random).run(random, i % 2 == 0);
  }
}

TEST(a_ring_of_any_stages_loses_nothing_and_never_stops) {
  check_ring<2>();
  check_ring<3>();
  check_ring<4>();
}

TEST(every_piece_of_work_is_done_once_and_rounds_go_back_and_forth) {
  for (const int n_blocks : {1, 3, 132}) {
    for (const int n_work : {0, 1, 131, 132, 133, 1000}) {
      std::vector<int> n_done(static_cast<std::size_t>(n_work), 0);
      for (int block = 0; block < n_blocks; ++block) {
        for (int round = 0;; ++round) {
          const int work = work_of(round, block, n_blocks);
          if (work >= n_work) break;
          ++n_done[static_cast<std::size_t>(work)];
        }
      }
      for (const int n : n_done) CHECK_EQ(n, 1);
    }
  }
  CHECK_EQ(work_of(0, 0, 10), 0);   // the longest
  CHECK_EQ(work_of(1, 0, 10), 19);  // and the shortest of the next round
}

TEST(budgets_that_no_multiprocessor_has_are_told) {
  CHECK(fits({168, 24, 240}, 2));
  CHECK(fits({168, 40, 232}, 2));
  CHECK(!fits({168, 48, 232}, 2));   // more than the block was launched with
  CHECK(!fits({176, 24, 240}, 2));   // more at launch than there are
  CHECK(!fits({168, 20, 232}, 2));   // not a multiple of 8
  CHECK(!fits({168, 16, 232}, 2));   // fewer than a thread may have
  CHECK(!fits({168, 176, 160}, 2));  // takers that would give
}

}  // namespace
