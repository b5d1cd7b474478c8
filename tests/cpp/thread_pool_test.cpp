#include <atomic>
#include <chrono>
#include <memory>
#include <thread>
#include <vector>

#include "check.h"
#include "llm_decoder/parallel.h"

namespace {

using llm_decoder::ThreadPool;

// Plain ints on purpose: an item run twice at once, or a result that the caller cannot see yet, is a race for TSan.
void check_every_item_runs_once(ThreadPool& pool, int n_items) {
  std::vector<int> n_runs(static_cast<std::size_t>(n_items), 0);
  pool.parallel_for(n_items, [&](std::int64_t item, int) { ++n_runs[static_cast<std::size_t>(item)]; });
  for (int runs : n_runs) CHECK_EQ(runs, 1);
}

TEST(every_item_runs_once_whatever_the_number_of_threads) {
  for (int n_threads : {1, 2, 3, 8}) {
    ThreadPool pool(n_threads);
    CHECK_EQ(pool.n_threads(), n_threads);
    for (int n_items : {0, 1, 2, 3, 7, 64, 1000}) check_every_item_runs_once(pool, n_items);
  }
}

TEST(neighbours_are_all_items_and_those_of_a_thread_follow_each_other) {
  for (int n_threads : {1, 2, 3, 8}) {
    for (std::int64_t n_items : {1, 2, 7, 64, 1000}) {
      std::int64_t place = 0;
      for (int thread = 0; thread < n_threads; ++thread) {
        for (std::int64_t item = thread; item < n_items; item += n_threads) {
          CHECK_EQ(llm_decoder::neighbour_of(item, n_items, n_threads), place++);
        }
      }
    }
  }
}

TEST(regions_that_follow_each_other_closely_never_mix) {
  ThreadPool pool(4);
  std::vector<std::int64_t> sums(4, 0);
  std::int64_t want = 0;
  for (int region = 0; region < 20000; ++region) {
    const int n_items = 1 + region % 5;
    pool.parallel_for(n_items, [&, region](std::int64_t item, int thread) {
      sums[static_cast<std::size_t>(thread)] += region * 10 + item;
    });
    for (int item = 0; item < n_items; ++item) want += region * 10 + item;
  }
  CHECK_EQ(sums[0] + sums[1] + sums[2] + sums[3], want);
}

TEST(a_thread_index_is_used_by_one_thread_at_a_time_and_stays_in_range) {
  ThreadPool pool(3);
  std::vector<std::atomic<int>> n_inside(3);
  std::atomic<bool> is_broken{false};
  pool.parallel_for(3000, [&](std::int64_t, int thread) {
    if (thread < 0 || thread >= 3) {
      is_broken = true;
      return;
    }
    if (n_inside[static_cast<std::size_t>(thread)].fetch_add(1) != 0) is_broken = true;
    n_inside[static_cast<std::size_t>(thread)].fetch_sub(1);
  });
  CHECK(!is_broken);
}

TEST(a_thread_begins_with_items_of_its_own_in_ascending_order) {
  ThreadPool pool(2);
  std::vector<std::vector<std::int64_t>> items_of(2);
  std::atomic<int> n_begun{0};
  // No thread goes on from its first item before the other has begun, or after a time that no scheduler needs.
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  pool.parallel_for(9, [&](std::int64_t item, int thread) {
    std::vector<std::int64_t>& mine = items_of[static_cast<std::size_t>(thread)];
    mine.push_back(item);
    if (mine.size() == 1) ++n_begun;
    while (n_begun < 2 && std::chrono::steady_clock::now() < deadline) std::this_thread::yield();
  });
  for (std::int64_t thread : {0, 1}) {
    std::int64_t want = thread;
    for (std::int64_t item : items_of[static_cast<std::size_t>(thread)]) {
      if (item % 2 != thread) break;  // helps the other from here on
      CHECK_EQ(item, want);
      want += 2;
    }
    CHECK(want > thread);
  }
}

TEST(the_calling_thread_is_thread_0_and_runs_everything_alone_when_it_is_the_only_one) {
  ThreadPool pool(1);
  const std::thread::id caller = std::this_thread::get_id();
  int n_here = 0;
  pool.parallel_for(10,
                    [&](std::int64_t, int thread) { n_here += thread == 0 && std::this_thread::get_id() == caller; });
  CHECK_EQ(n_here, 10);
}

TEST(workers_take_part_after_they_have_slept) {
  ThreadPool pool(2);
  for (int round = 0; round < 3; ++round) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));  // far longer than the spin
    std::atomic<bool> has_worker_come{false};
    // The caller's item ends only when the worker has come, or after a time that no scheduler needs.
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
    pool.parallel_for(2, [&](std::int64_t, int thread) {
      if (thread != 0) has_worker_come = true;
      while (!has_worker_come && std::chrono::steady_clock::now() < deadline) std::this_thread::yield();
    });
    CHECK(has_worker_come);
  }
}

TEST(results_of_a_region_are_seen_by_the_next_one) {
  ThreadPool pool(4);
  std::vector<std::int64_t> values(64, 0);
  for (int region = 0; region < 2000; ++region) {
    const std::vector<std::int64_t> before = values;
    pool.parallel_for(64, [&](std::int64_t item, int) {
      values[static_cast<std::size_t>(item)] = before[static_cast<std::size_t>(63 - item)] + 1;
    });
  }
  for (std::int64_t value : values) CHECK_EQ(value, 2000);
}

TEST(many_more_threads_than_cores_still_finish) {
  ThreadPool pool(64);
  for (int region = 0; region < 200; ++region) check_every_item_runs_once(pool, 100);
}

TEST(pools_start_and_stop_without_work) {
  for (int round = 0; round < 50; ++round) {
    auto pool = std::make_unique<ThreadPool>(4);
    if (round % 2 == 1) check_every_item_runs_once(*pool, 4);
  }
}

TEST(a_pool_without_threads_is_refused) { CHECK_THROWS(std::invalid_argument, "n_threads", ThreadPool(0)); }

}  // namespace
