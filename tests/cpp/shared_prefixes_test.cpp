// Which sequences of a step share pages.
#include "shared_prefixes.h"

#include <string>
#include <vector>

#include "check.h"
#include "llm_decoder/errors.h"

namespace {

using namespace llm_decoder;
using namespace llm_decoder::gpu;

constexpr std::int32_t kPageSize = 32;

struct Owner {
  std::vector<std::int32_t> pages;
  std::int32_t n_tokens;
};

std::string found(const std::vector<Owner>& owners) {
  std::vector<PrefixOwner> sequences;
  for (const Owner& owner : owners) sequences.push_back({Span<const std::int32_t>(owner.pages), owner.n_tokens});
  std::string text;
  for (const SharedPrefix& p : find_shared_prefixes(sequences, kPageSize)) {
    text += concat(p.first, "+", p.n, ":", p.n_keys, " ");
  }
  return text;
}

TEST(sequences_without_pages_in_common_share_nothing) {
  CHECK_EQ(found({}), "");
  CHECK_EQ(found({{{1, 2, 3}, 96}}), "");
  CHECK_EQ(found({{{1, 2, 3}, 96}, {{4, 5, 6}, 96}}), "");
}

TEST(neighbours_share_the_full_pages_that_both_begin_with) {
  CHECK_EQ(found({{{1, 2, 3, 9}, 100}, {{1, 2, 3, 8}, 100}}), "0+2:96 ");
  CHECK_EQ(found({{{1, 2, 3}, 96}, {{1, 2, 3}, 70}}), "0+2:64 ");  // a page that is not full before the step
  CHECK_EQ(found({{{7}, 3}, {{1, 2, 3}, 96}, {{1, 2, 4}, 96}, {{7, 7, 7}, 96}}), "1+2:64 ");
}

TEST(less_than_a_tile_of_keys_is_not_worth_it) { CHECK_EQ(found({{{1, 2}, 40}, {{1, 2}, 40}}), ""); }

TEST(the_run_that_spares_most_reads_is_taken) {
  const std::vector<std::int32_t> prompt = {1, 2, 3, 4};
  std::vector<Owner> beams;
  for (const std::int32_t tail : {11, 11, 12, 13}) {
    Owner owner{prompt, 5 * kPageSize};
    owner.pages.push_back(tail);
    beams.push_back(owner);
  }
  CHECK_EQ(found(beams), "0+4:128 ");  // 3 times 4 pages, not once 5
  CHECK_EQ(found({{{1, 2, 3, 4, 5, 6, 7}, 224}, {{1, 2, 3, 4, 5, 6, 7}, 224}, {{1, 2, 9, 9, 9, 9, 9}, 224}}),
           "0+2:224 ");  // once 7, not twice 2
}

TEST(runs_follow_each_other) {
  CHECK_EQ(found({{{1, 2}, 64}, {{1, 2}, 64}, {{5, 6, 7}, 96}, {{5, 6, 7}, 96}, {{5, 6, 7}, 96}}), "0+2:64 2+3:96 ");
}

}  // namespace
