#include "top_candidates.h"

#include <algorithm>
#include <functional>
#include <limits>

namespace llm_decoder {
namespace {

constexpr std::int32_t kLanes = 16;
constexpr std::int32_t kBlock = 32;

// Lanes side by side, so that a compiler without any flag for it makes vectors of them.
float max_of(const float* x, std::int32_t n) {
  float largest[kLanes];
  std::fill_n(largest, kLanes, -std::numeric_limits<float>::infinity());
  std::int32_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (std::int32_t lane = 0; lane < kLanes; ++lane) largest[lane] = std::max(largest[lane], x[i + lane]);
  }
  float result = *std::max_element(largest, largest + kLanes);
  for (; i < n; ++i) result = std::max(result, x[i]);
  return result;
}

}  // namespace

void TopCandidates::reserve(std::int32_t n) {
  block_max_.reserve(static_cast<std::size_t>(n / kBlock + 1));
  selected_max_.reserve(static_cast<std::size_t>(n / kBlock + 1));
  candidates_.reserve(static_cast<std::size_t>(n));
}

void TopCandidates::reset(const float* x, std::int32_t n) {
  x_ = x;
  n_ = n;
  block_max_.clear();
  for (std::int32_t begin = 0; begin < n; begin += kBlock) {
    block_max_.push_back(max_of(x + begin, std::min(kBlock, n - begin)));
  }
}

// A value that at least m values reach: the m-th largest of the maxima.
float TopCandidates::threshold(std::int32_t m) {
  if (static_cast<std::size_t>(m) > block_max_.size()) return -std::numeric_limits<float>::infinity();
  selected_max_.assign(block_max_.begin(), block_max_.end());
  const auto nth = selected_max_.begin() + (m - 1);
  std::nth_element(selected_max_.begin(), nth, selected_max_.end(), std::greater<float>());
  return *nth;
}

std::vector<Candidate>& TopCandidates::gather(std::int32_t m) {
  candidates_.clear();
  if (m <= 0) return candidates_;
  const float least = threshold(m);
  for (std::int32_t block = 0; block < static_cast<std::int32_t>(block_max_.size()); ++block) {
    if (block_max_[static_cast<std::size_t>(block)] < least) continue;
    const std::int32_t end = std::min(n_, (block + 1) * kBlock);
    for (std::int32_t i = block * kBlock; i < end; ++i) {
      if (x_[i] >= least) candidates_.push_back({x_[i], i});
    }
  }
  if (candidates_.size() > static_cast<std::size_t>(m)) {
    std::nth_element(candidates_.begin(), candidates_.begin() + m, candidates_.end(), comes_before);
    candidates_.resize(static_cast<std::size_t>(m));
  }
  return candidates_;
}

const std::vector<Candidate>& TopCandidates::gather_sorted(std::int32_t m) {
  gather(m);
  std::sort(candidates_.begin(), candidates_.end(), comes_before);
  return candidates_;
}

}  // namespace llm_decoder
