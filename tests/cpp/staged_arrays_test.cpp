// Arrays that go to a device as one copy, and the next ones that are laid out meanwhile.
#include "staged_arrays.h"

#include <vector>

#include "check.h"

namespace {

using namespace llm_decoder;
using namespace llm_decoder::gpu;

std::vector<int> read(const int* at, std::int64_t n, Stream stream) {
  std::vector<int> out(static_cast<std::size_t>(n));
  copy_memory(out.data(), at, n * 4, stream);
  synchronize(stream);
  return out;
}

TEST(each_array_is_where_it_was_made_and_aligned) {
  const OwnedStream stream;
  StagedArrays arrays;
  arrays.begin();
  const std::vector<int> first = {1, 2, 3};
  const auto a = arrays.add<int>(first);
  const auto none = arrays.make<int>(0);
  const auto b = arrays.add_padded<int>(first, 5, 9);
  const auto large = arrays.make<int>(5000);  // moves what is there
  arrays.host(large)[4999] = 7;
  arrays.upload(stream.get());
  CHECK(read(arrays.device(a), 3, stream.get()) == first);
  CHECK(read(arrays.device(b), 5, stream.get()) == (std::vector<int>{1, 2, 3, 9, 9}));
  CHECK_EQ(read(arrays.device(large), 5000, stream.get()).back(), 7);
  for (const auto& array : {a, none, b, large}) {
    CHECK_EQ(reinterpret_cast<std::uintptr_t>(arrays.device(array)) % 16, 0u);
  }
  CHECK(arrays.device(StagedArray<int>()) == nullptr);
  CHECK_EQ(arrays.n_bytes(), 16 + 32 + 20000);
}

TEST(copies_on_their_way_are_not_changed_by_what_is_laid_out_next) {
  const OwnedStream stream;
  constexpr int kTurns = 5;
  const DeviceArray<int> seen(kTurns);
  StagedArrays arrays;
  set_late_streams(true);
  for (int turn = 0; turn < kTurns; ++turn) {
    arrays.begin();
    const auto array = arrays.make<int>(1);
    *arrays.host(array) = turn;
    arrays.upload(stream.get());
    copy_memory(seen.data() + turn, arrays.device(array), 4, stream.get());
  }
  set_late_streams(false);
  CHECK(read(seen.data(), kTurns, stream.get()) == (std::vector<int>{0, 1, 2, 3, 4}));
}

TEST(arrays_that_fit_go_to_the_same_memory) {
  const OwnedStream stream;
  StagedArrays arrays;
  const auto place_of = [&](const std::vector<std::int64_t>& sizes) {
    arrays.begin();
    const auto first = arrays.make<int>(sizes.front());
    for (std::size_t i = 1; i < sizes.size(); ++i) (void)arrays.make<int>(sizes[i]);
    arrays.upload(stream.get());
    return arrays.device(first);
  };
  int* const place = place_of({1024, 1024});
  for (const std::int64_t n : {1, 1900, 2048, 0}) CHECK(place_of({n}) == place);
  (void)place_of({100000});
  CHECK(arrays.n_device_bytes() >= 400000);
}

}  // namespace
