// Pages copied in pools of every size at once: the pages are the same, byte for byte, and no other byte changes.
#include <cstring>
#include <random>
#include <vector>

#include "check.h"
#include "copy_blocks.h"
#include "copy_blocks_launch.h"
#include "device_memory.h"

namespace {

using namespace llm_decoder;
using namespace llm_decoder::gpu;

const Order kOrders[] = {
    {Order::Kind::ascending, 0}, {Order::Kind::descending, 0}, {Order::Kind::shuffled, 1}, {Order::Kind::shuffled, 2}};

constexpr int kPages = 7;

// One pool a page size, of random bytes.
struct Problem {
  explicit Problem(const std::vector<std::int64_t>& sizes) : page_bytes(sizes) {
    std::mt19937 random(1);
    for (const std::int64_t bytes : page_bytes) {
      memory.emplace_back(kPages * bytes);
      for (std::int64_t i = 0; i < kPages * bytes; ++i) {
        memory.back().data()[i] = static_cast<std::byte>(random() % 256);
      }
      pools.push_back({memory.back().data(), bytes});
      before.emplace_back(memory.back().data(), memory.back().data() + kPages * bytes);
      largest = std::max(largest, bytes);
    }
  }

  std::vector<std::int64_t> page_bytes;
  std::vector<DeviceArray<std::byte>> memory;
  std::vector<std::vector<std::byte>> before;
  std::vector<PagePool> pools;
  std::int64_t largest = 0;

  void run(const std::vector<std::int64_t>& pairs, std::int64_t largest_page_bytes) {
    CopyBlocksLaunch l;
    l.pools = pools.data();
    l.n_pools = static_cast<int>(pools.size());
    l.pairs = pairs.data();
    l.n_pairs = static_cast<int>(pairs.size() / 2);
    l.largest_page_bytes = largest_page_bytes;
    copy_blocks(l, nullptr);
  }

  void check(const std::vector<std::int64_t>& pairs) const {
    std::int64_t source_of[kPages];
    for (std::int64_t page = 0; page < kPages; ++page) source_of[page] = page;
    for (std::size_t i = 0; i < pairs.size(); i += 2) source_of[pairs[i + 1]] = pairs[i];
    for (std::size_t pool = 0; pool < pools.size(); ++pool) {
      for (std::int64_t page = 0; page < kPages; ++page) {
        const std::int64_t bytes = page_bytes[pool];
        if (std::memcmp(memory[pool].data() + page * bytes, before[pool].data() + source_of[page] * bytes,
                        static_cast<std::size_t>(bytes)) != 0) {
          check::fail(__FILE__, __LINE__, "page ", page, " of ", bytes, " bytes is not page ", source_of[page]);
        }
      }
    }
  }
};

// Less than a vector a thread, one part, a part and a vector, several parts.
const std::vector<std::int64_t> kSizes = {16, 4096, kCopyPartBytes, kCopyPartBytes + 16, 3 * kCopyPartBytes - 48};

TEST(pages_are_copied_whole_in_every_pool_whatever_the_order_of_threads) {
  const std::vector<std::int64_t> pairs = {2, 0, 2, 6, 5, 3};
  for (const Order& order : kOrders) {
    set_host_order(order);
    Problem problem(kSizes);
    problem.run(pairs, problem.largest);
    set_host_order({});
    problem.check(pairs);
  }
}

TEST(one_block_a_page_copies_the_whole_page_too) {
  const std::vector<std::int64_t> pairs = {0, 1, 3, 2};
  Problem problem(kSizes);
  problem.run(pairs, 16);
  problem.check(pairs);
}

TEST(nothing_to_copy_changes_nothing) {
  Problem problem({64});
  problem.run({}, 64);
  problem.check({});
  copy_blocks({nullptr, nullptr, 0, 3, 64}, nullptr);
}

TEST(sizes_that_no_page_has_are_refused) {
  Problem problem({64});
  CHECK_THROWS(std::invalid_argument, "multiple of 16, got 24", problem.run({0, 1}, 24));
  CHECK_THROWS(std::invalid_argument, "got 0", problem.run({0, 1}, 0));
  CHECK_THROWS(std::invalid_argument, "n_pairs", copy_blocks({nullptr, nullptr, 1, -1, 64}, nullptr));
  CHECK_THROWS(std::invalid_argument, "n_pools must be 0 to 65535, got 65536",
               copy_blocks({nullptr, nullptr, 65536, 1, 64}, nullptr));
  problem.check({});
}

HOST_TEST(pages_that_are_not_aligned_are_caught) {
  Problem problem({64});
  problem.pools[0].pages += 4;
  CHECK_THROWS(std::logic_error, "not aligned to 16", problem.run({0, 1}, 64));
}

}  // namespace
