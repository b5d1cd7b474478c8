#include "shared_prefixes.h"

#include <algorithm>
#include <cstddef>

namespace llm_decoder {
namespace gpu {
namespace {

// Fewer keys are not worth a state that must be merged.
constexpr std::int32_t kMinSharedKeys = kSplitUnit;

// Full pages that both begin with.
std::int32_t n_common_pages(const PrefixOwner& a, const PrefixOwner& b, std::int32_t page_size) {
  const auto most = static_cast<std::size_t>(std::min(a.n_tokens, b.n_tokens) / page_size);
  std::size_t n = 0;
  while (n < most && a.pages[n] == b.pages[n]) ++n;
  return static_cast<std::int32_t>(n);
}

}  // namespace

std::vector<SharedPrefix> find_shared_prefixes(Span<const PrefixOwner> sequences, std::int32_t page_size) {
  std::vector<std::int32_t> n_common;  // [i] of i and i + 1
  for (std::size_t i = 0; i + 1 < sequences.size; ++i) {
    n_common.push_back(n_common_pages(sequences[i], sequences[i + 1], page_size));
  }
  std::vector<SharedPrefix> prefixes;
  for (std::size_t first = 0; first < n_common.size();) {
    SharedPrefix best;
    std::int64_t most_spared = 0;
    std::int32_t n_pages = n_common[first];
    for (std::size_t last = first + 1; last < sequences.size; ++last) {
      n_pages = std::min(n_pages, n_common[last - 1]);
      if (n_pages * page_size < kMinSharedKeys) break;
      const std::int64_t spared = static_cast<std::int64_t>(last - first) * n_pages;
      if (spared <= most_spared) continue;
      most_spared = spared;
      best = {static_cast<int>(first), static_cast<int>(last - first) + 1, n_pages * page_size};
    }
    if (best.n > 0) prefixes.push_back(best);
    first += static_cast<std::size_t>(std::max(best.n, 1));
  }
  return prefixes;
}

}  // namespace gpu
}  // namespace llm_decoder
