// Drawn tokens in the place of the ids that name them.
#include <algorithm>
#include <vector>

#include "check.h"
#include "feed_tokens_launch.h"

namespace {

using namespace llm_decoder::gpu;

TEST(an_id_below_zero_is_the_token_of_its_draw) {
  std::vector<std::int32_t> ids(300), want(300);
  const std::vector<std::int32_t> drawn = {70, -1, 90, -2};
  for (int i = 0; i < 300; ++i) {
    const auto at = static_cast<std::size_t>(i);
    ids[at] = i % 5 == 4 ? i : -1 - i % 5;
    want[at] = i % 5 == 4 ? i : std::max(drawn[at % 5], 0);
  }
  ids.back() = -1;  // not of the step
  feed_tokens(ids.data(), drawn.data(), 299, nullptr);
  CHECK_EQ(ids.back(), -1);
  CHECK(std::equal(ids.begin(), ids.end() - 1, want.begin()));
}

TEST(ids_of_the_host_need_no_draws) {
  std::vector<std::int32_t> ids = {4, 0, 9};
  feed_tokens(ids.data(), nullptr, 3, nullptr);
  CHECK(ids == (std::vector<std::int32_t>{4, 0, 9}));
  feed_tokens(nullptr, nullptr, 0, nullptr);
}

}  // namespace
