#include "draw.h"

#include <algorithm>
#include <cmath>
#include <functional>

namespace llm_decoder {
namespace {

// Most draws end among this many candidates; when not, that many times more are looked at.
constexpr std::int32_t kFirstCandidates = 128;
constexpr std::int32_t kMoreCandidates = 8;
constexpr std::ptrdiff_t kFewEnoughToSort = 16;

using Iterator = std::vector<WeightedCandidate>::iterator;

bool comes_before_weighted(const WeightedCandidate& a, const WeightedCandidate& b) {
  return comes_before(a.candidate, b.candidate);
}

double sum_of_weights(Iterator begin, Iterator end) {
  double sum = 0.0;
  for (Iterator i = begin; i != end; ++i) sum += i->weight;
  return sum;
}

// Where the running sum over candidates in order first makes reaches(sum, target) true, or `end`. Only as much order is
// made as that needs: a quickselect on sums. Candidates before the result come before it in order, too.
template <class Reaches>
Iterator find_sum(Iterator begin, Iterator end, double target, const Reaches& reaches) {
  double sum = 0.0;
  Iterator last = end;
  while (last - begin > kFewEnoughToSort) {
    const Iterator middle = begin + (last - begin) / 2;
    std::nth_element(begin, middle, last, comes_before_weighted);
    const double half = sum_of_weights(begin, middle);
    if (reaches(sum + half, target)) {
      last = middle;
    } else {
      sum += half;
      begin = middle;
    }
  }
  std::sort(begin, last, comes_before_weighted);
  for (; begin != last; ++begin) {
    sum += begin->weight;
    if (reaches(sum, target)) return begin;
  }
  return last;
}

// Leaves out candidates whose weight is 0.
void weigh(const std::vector<Candidate>& candidates, const Distribution& distribution,
           std::vector<WeightedCandidate>& weighted) {
  weighted.clear();
  for (const Candidate& candidate : candidates) {
    const double exponent = (static_cast<double>(candidate.value) - distribution.max) / distribution.temperature;
    const double weight = std::exp(exponent);
    if (weight > 0.0) weighted.push_back({weight, candidate});
  }
}

// Keeps the shortest run of candidates that has top_p of `sum`. False when these are too few to tell.
bool cut_top_p(double top_p, double sum, std::vector<WeightedCandidate>& weighted) {
  const Iterator last = find_sum(weighted.begin(), weighted.end(), top_p * sum, std::greater_equal<double>());
  if (last == weighted.end()) return false;
  weighted.erase(last + 1, weighted.end());
  return true;
}

// False when no candidate is below min_p.
bool cut_min_p(double min_p, std::vector<WeightedCandidate>& weighted) {
  const auto is_below = [min_p](const WeightedCandidate& w) { return w.weight < min_p; };
  const Iterator end = std::remove_if(weighted.begin(), weighted.end(), is_below);
  const bool has_cut = end != weighted.end();
  weighted.erase(end, weighted.end());
  return has_cut;
}

// The drawn candidate among the first ones of a row, or null when it may lie beyond them; never when `is_complete`.
const WeightedCandidate* draw_among(const std::vector<Candidate>& candidates, bool is_complete, bool has_top_k,
                                    const Distribution& distribution, double uniform,
                                    std::vector<WeightedCandidate>& weighted) {
  weigh(candidates, distribution, weighted);
  // Once one candidate has weight 0 or is cut off, so is everything beyond.
  is_complete = is_complete || weighted.size() < candidates.size();
  double sum = has_top_k ? sum_of_weights(weighted.begin(), weighted.end()) : distribution.sum_of_all;
  if (distribution.top_p < 1.0 || distribution.min_p > 0.0) {
    if (distribution.top_p < 1.0) is_complete = cut_top_p(distribution.top_p, sum, weighted) || is_complete;
    is_complete = cut_min_p(distribution.min_p, weighted) || is_complete;
    if (!is_complete) return nullptr;
    sum = sum_of_weights(weighted.begin(), weighted.end());
  }
  const Iterator drawn = find_sum(weighted.begin(), weighted.end(), uniform * sum, std::greater<double>());
  if (drawn != weighted.end()) return &*drawn;
  if (!is_complete) return nullptr;
  // Rounding has kept the sum below the target.
  return &*std::max_element(weighted.begin(), weighted.end(), comes_before_weighted);
}

}  // namespace

std::int32_t draw_token(const float* x, std::int32_t n, const Distribution& distribution, double uniform,
                        TopCandidates& top, std::vector<WeightedCandidate>& scratch) {
  const bool has_top_k = distribution.top_k < n;
  top.reset(x, n);
  for (std::int64_t m = has_top_k ? distribution.top_k : kFirstCandidates;; m *= kMoreCandidates) {
    const std::vector<Candidate>& candidates = top.gather(static_cast<std::int32_t>(std::min<std::int64_t>(m, n)));
    const bool is_complete = has_top_k || m >= n;
    const WeightedCandidate* drawn = draw_among(candidates, is_complete, has_top_k, distribution, uniform, scratch);
    if (drawn != nullptr) return drawn->candidate.id;
  }
}

}  // namespace llm_decoder
