// Memory, copies and streams where the host plays the device, and pages that go between the device and the host.
#include "device_memory.h"

#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "check.h"
#include "elements.h"
#include "swap_blocks.h"

namespace {

using namespace llm_decoder;
using namespace llm_decoder::gpu;

TEST(new_memory_holds_nan_and_is_aligned) {
  const DeviceArray<float> device(1001);
  const PinnedArray<Bf16> pinned(77);
  CHECK_EQ(device.size(), 1001);
  CHECK_EQ(pinned.n_bytes(), 154);
  CHECK_EQ(reinterpret_cast<std::uintptr_t>(device.data()) % 256, 0u);
  for (int i = 0; i < 1001; ++i) CHECK(std::isnan(device.data()[i]));
  for (int i = 0; i < 77; ++i) CHECK(std::isnan(to_float(pinned.data()[i])));
}

TEST(an_array_has_one_owner) {
  DeviceArray<int> first(4), second;
  CHECK(second.data() == nullptr);
  int* const memory = first.data();
  second = std::move(first);
  CHECK(second.data() == memory);
  const DeviceArray<int> third(std::move(second));
  CHECK(third.data() == memory);
  CHECK_EQ(third.size(), 4);
  CHECK_EQ(second.size(), 0);
  CHECK(DeviceArray<int>(0).data() == nullptr);
}

TEST(memory_that_is_not_there_is_refused_with_what_is_free) {
  const std::int64_t total = memory_info().total_bytes;
  CHECK(memory_info().free_bytes > 0);
  CHECK(memory_info().free_bytes <= total);
  CHECK_THROWS(std::bad_alloc, concat("needs ", total + 1, " bytes"), DeviceArray<char>(total + 1));
  CHECK_THROWS(OutOfMemory, concat("of ", total, " are free"), PinnedArray<char>(total + 1));
  CHECK_THROWS(std::invalid_argument, "got -1", DeviceArray<int>(-1));
  CHECK_THROWS(std::invalid_argument, "the number of elements",
               DeviceArray<int>(std::numeric_limits<std::int64_t>::max() / 2));
}

TEST(copies_go_between_any_two_kinds_of_memory) {
  const std::vector<int> in = {3, 1, 4, 1, 5};
  std::vector<int> out(5);
  const PinnedArray<int> pinned(5);
  const DeviceArray<int> device(5);
  const OwnedStream stream;
  copy_memory(pinned.data(), in.data(), pinned.n_bytes(), stream.get());
  copy_memory(device.data(), pinned.data(), device.n_bytes(), stream.get());
  copy_memory(out.data(), device.data(), device.n_bytes(), stream.get());
  synchronize(stream.get());
  CHECK(out == in);
}

TEST(the_host_is_one_device) {
  CHECK_EQ(n_devices(), 1);
  CHECK_EQ(device_properties(0).name, "host machine");
  CHECK(device_properties(0).n_sms > 0);
  use_device(0);
  CHECK_THROWS(std::invalid_argument, "device must be 0", use_device(1));
  CHECK_THROWS(std::invalid_argument, "got -1", device_properties(-1));
}

// ---- pages -----------------------------------------------------------------------------------------------------

std::string runs_of(const std::vector<std::int64_t>& pairs) {
  std::string text;
  for (const PageRun& run : join_pages(pairs)) text += concat(run.from, ">", run.to, "x", run.n, " ");
  return text;
}

TEST(neighbours_on_both_sides_go_together) {
  CHECK_EQ(runs_of({}), "");
  CHECK_EQ(runs_of({7, 2}), "7>2x1 ");
  CHECK_EQ(runs_of({1, 5, 2, 6, 3, 7}), "1>5x3 ");
  CHECK_EQ(runs_of({3, 7, 1, 5, 2, 6}), "1>5x3 ");               // in any order
  CHECK_EQ(runs_of({1, 5, 2, 4}), "1>5x1 2>4x1 ");               // neighbours, but turned round
  CHECK_EQ(runs_of({1, 2, 2, 9}), "1>2x1 2>9x1 ");               // neighbours at one side alone
  CHECK_EQ(runs_of({1, 5, 3, 6}), "1>5x1 3>6x1 ");               // neighbours at one side alone
  CHECK_EQ(runs_of({4, 0, 4, 9, 5, 1, 5, 10}), "4>0x2 4>9x2 ");  // one source, two destinations
}

struct Pools {
  static constexpr std::int64_t kPageBytes = 96;
  PinnedArray<std::uint8_t> host{9 * kPageBytes};
  DeviceArray<std::uint8_t> device{5 * kPageBytes};

  Pools() {
    for (std::int64_t i = 0; i < host.size(); ++i) host.data()[i] = static_cast<std::uint8_t>(i % 251);
  }
  SwapBlocksArgs to_device(const std::vector<std::int64_t>& pairs) const {
    return {host.data(), device.data(), 9, 5, kPageBytes, pairs};
  }
};

TEST(pages_swapped_in_are_the_pages_and_no_other_page_changes) {
  const Pools pools;
  const OwnedStream stream;
  const std::vector<std::int64_t> pairs = {8, 0, 3, 2, 4, 3};
  swap_blocks(pools.to_device(pairs), stream.get());
  synchronize(stream.get());
  const std::int64_t source_of[] = {8, -1, 3, 4, -1};
  for (std::int64_t page = 0; page < 5; ++page) {
    for (std::int64_t i = 0; i < Pools::kPageBytes; ++i) {
      const std::int64_t source = source_of[page];
      CHECK_EQ(int{pools.device.data()[page * Pools::kPageBytes + i]},
               source < 0 ? 0xff : static_cast<int>((source * Pools::kPageBytes + i) % 251));
    }
  }
}

TEST(pages_swapped_out_and_in_again_are_the_same) {
  const Pools pools;
  const std::vector<std::int64_t> in = {8, 0, 3, 2, 4, 3}, out = {0, 8, 2, 3, 3, 4};
  swap_blocks(pools.to_device(in), nullptr);
  const std::vector<std::uint8_t> before(pools.host.data(), pools.host.data() + pools.host.size());
  for (const std::int64_t page : {8, 3, 4}) std::memset(pools.host.data() + page * Pools::kPageBytes, 0, 96);
  swap_blocks({pools.device.data(), pools.host.data(), 5, 9, Pools::kPageBytes, out}, nullptr);
  CHECK(std::equal(before.begin(), before.end(), pools.host.data()));
}

TEST(a_page_that_is_not_there_is_refused_before_anything_moves) {
  const Pools pools;
  const std::vector<std::int64_t> no_source = {3, 0, 9, 1}, no_destination = {3, 0, 4, 5}, negative = {3, 0, -1, 1},
                                  odd = {3, 0, 4};
  CHECK_THROWS(std::invalid_argument, "source pages must be 0 to 8, got 9",
               swap_blocks(pools.to_device(no_source), nullptr));
  CHECK_THROWS(std::invalid_argument, "destination pages must be 0 to 4, got 5",
               swap_blocks(pools.to_device(no_destination), nullptr));
  CHECK_THROWS(std::invalid_argument, "got -1", swap_blocks(pools.to_device(negative), nullptr));
  CHECK_THROWS(std::invalid_argument, "[n, 2]", swap_blocks(pools.to_device(odd), nullptr));
  SwapBlocksArgs nothing_in_a_page = pools.to_device(no_source);
  nothing_in_a_page.page_bytes = 0;
  CHECK_THROWS(std::invalid_argument, "page_bytes must be positive", swap_blocks(nothing_in_a_page, nullptr));
  for (std::int64_t i = 0; i < pools.device.size(); ++i) CHECK_EQ(int{pools.device.data()[i]}, 0xff);
}

}  // namespace
