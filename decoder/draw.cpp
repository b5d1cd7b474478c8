#include "draw.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>

namespace llm_decoder {
namespace {

// Most draws end among this many candidates; when not, that many times more are looked at, while they are few among
// all, and then all.
constexpr std::int32_t kFirstCandidates = 128;
constexpr std::int32_t kMoreCandidates = 8;
constexpr std::int32_t kFewAmongAll = 32;
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

// Where the running sum over candidates in order, `sum` before the first, makes reaches(sum, target) true, or `end`.
// Only as much order is made as that needs: a quickselect on sums. Candidates before the result come before it in
// order, too.
template <class Reaches>
Iterator find_sum(Iterator begin, Iterator end, double sum, double target, const Reaches& reaches) {
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

double weight_of(float value, const Distribution& distribution) {
  return std::exp((static_cast<double>(value) - distribution.max) / distribution.temperature);
}

// Leaves out candidates whose weight is 0.
void weigh(const std::vector<Candidate>& candidates, const Distribution& distribution,
           std::vector<WeightedCandidate>& weighted) {
  weighted.clear();
  for (const Candidate& candidate : candidates) {
    const double weight = weight_of(candidate.value, distribution);
    if (weight > 0.0) weighted.push_back({weight, candidate});
  }
}

// Keeps the shortest run of candidates that has top_p of `sum`. False when these are too few to tell.
bool cut_top_p(double top_p, double sum, std::vector<WeightedCandidate>& weighted) {
  const Iterator last = find_sum(weighted.begin(), weighted.end(), 0.0, top_p * sum, std::greater_equal<double>());
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

// The drawn candidate among the first ones of a row, or null when it may lie beyond them; never among top_k.
const WeightedCandidate* draw_among(const std::vector<Candidate>& candidates, bool has_top_k,
                                    const Distribution& distribution, double uniform,
                                    std::vector<WeightedCandidate>& weighted) {
  weigh(candidates, distribution, weighted);
  // Once one candidate has weight 0 or is cut off, so is everything beyond.
  bool is_complete = has_top_k || weighted.size() < candidates.size();
  double sum = has_top_k ? sum_of_weights(weighted.begin(), weighted.end()) : distribution.sum_of_all;
  if (distribution.top_p < 1.0 || distribution.min_p > 0.0) {
    if (distribution.top_p < 1.0) is_complete = cut_top_p(distribution.top_p, sum, weighted) || is_complete;
    is_complete = cut_min_p(distribution.min_p, weighted) || is_complete;
    if (!is_complete) return nullptr;
    sum = sum_of_weights(weighted.begin(), weighted.end());
  }
  const Iterator drawn = find_sum(weighted.begin(), weighted.end(), 0.0, uniform * sum, std::greater<double>());
  if (drawn != weighted.end()) return &*drawn;
  if (!is_complete) return nullptr;
  // Rounding has kept the sum below the target.
  return &*std::max_element(weighted.begin(), weighted.end(), comes_before_weighted);
}

// All ids of a row in buckets of descending logits: where a running sum over candidates in order falls, is looked for
// in one bucket alone.
class BucketedRow {
 public:
  // Leaves out ids whose weight is 0 or below min_p.
  BucketedRow(const float* x, std::int32_t n, const Distribution& distribution, DrawScratch& scratch)
      : x_(x), n_(n), max_(distribution.max), last_{distribution.max, 0}, scratch_(scratch) {
    for (std::int32_t id = 0; id < n; ++id) {
      const double weight = weight_of(x[id], distribution);
      const bool is_kept = weight > 0.0 && weight >= distribution.min_p;
      scratch.weights[at(id)] = is_kept ? weight : 0.0;
      if (is_kept && x[id] <= last_.value) last_ = {x[id], id};
    }
    const double range = static_cast<double>(max_) - last_.value;
    buckets_per_logit_ = range > 0.0 ? kBuckets / range : 0.0;
    for (std::int32_t id = 0; id < n; ++id) {
      const double weight = scratch.weights[at(id)];
      const std::size_t bucket = weight > 0.0 ? bucket_of(x[id]) : kNoBucket;
      scratch.buckets[at(id)] = static_cast<std::uint16_t>(bucket);
      sums_[bucket] += weight;
    }
  }

  const Candidate& last() const { return last_; }

  struct Found {
    Candidate candidate;
    double sum;  // up to it
  };
  // Where the running sum over candidates in order first makes reaches(sum, target) true, or `last`.
  template <class Reaches>
  Found find(double target, const Reaches& reaches, const Candidate& last) {
    const std::size_t last_bucket = bucket_of(last.value);
    double sum = 0.0;
    std::size_t bucket = 0;
    for (; bucket < last_bucket && !reaches(sum + sums_[bucket], target); ++bucket) sum += sums_[bucket];
    gather(bucket, last);
    const Iterator begin = scratch_.weighted.begin(), end = scratch_.weighted.end();
    const Iterator found = find_sum(begin, end, sum, target, reaches);
    if (found != end) return {found->candidate, sum + sum_of_weights(begin, found + 1)};
    return {std::max_element(begin, end, comes_before_weighted)->candidate, sum + sum_of_weights(begin, end)};
  }

 private:
  static constexpr std::size_t kBuckets = 2048, kNoBucket = kBuckets;

  static std::size_t at(std::int32_t id) { return static_cast<std::size_t>(id); }

  std::size_t bucket_of(float value) const {
    const double bucket = (static_cast<double>(max_) - value) * buckets_per_logit_;
    return std::min(static_cast<std::size_t>(bucket), kBuckets - 1);
  }

  // The candidates of a bucket that do not come after `last`.
  void gather(std::size_t bucket, const Candidate& last) {
    scratch_.weighted.clear();
    for (std::int32_t id = 0; id < n_; ++id) {
      if (scratch_.buckets[at(id)] != bucket) continue;
      const Candidate candidate = {x_[id], id};
      if (!comes_before(last, candidate)) scratch_.weighted.push_back({scratch_.weights[at(id)], candidate});
    }
  }

  const float* x_;
  std::int32_t n_;
  float max_;
  Candidate last_;  // in order
  double buckets_per_logit_;
  double sums_[kBuckets + 1] = {};
  DrawScratch& scratch_;
};

// Where top_p and min_p cut all candidates of a row, and the sum up to there.
BucketedRow::Found cut_all(BucketedRow& row, const Distribution& distribution) {
  if (distribution.top_p == 1.0 && distribution.min_p == 0.0) return {row.last(), distribution.sum_of_all};
  const double target =
      distribution.top_p < 1.0 ? distribution.top_p * distribution.sum_of_all : std::numeric_limits<double>::infinity();
  return row.find(target, std::greater_equal<double>(), row.last());
}

std::int32_t draw_among_all(const float* x, std::int32_t n, const Distribution& distribution, double uniform,
                            DrawScratch& scratch) {
  BucketedRow row(x, n, distribution, scratch);
  const BucketedRow::Found cut = cut_all(row, distribution);
  return row.find(uniform * cut.sum, std::greater<double>(), cut.candidate).candidate.id;
}

}  // namespace

void DrawScratch::reserve(std::int32_t n) {
  top.reserve(n);
  weighted.reserve(static_cast<std::size_t>(n));
  weights.resize(static_cast<std::size_t>(n));
  buckets.resize(static_cast<std::size_t>(n));
}

std::int32_t draw_token(const float* x, std::int32_t n, const Distribution& distribution, double uniform,
                        DrawScratch& scratch) {
  const auto draw_first = [&](std::int32_t m, bool has_top_k) {
    return draw_among(scratch.top.gather(m), has_top_k, distribution, uniform, scratch.weighted);
  };
  scratch.top.reset(x, n);
  if (distribution.top_k < n) return draw_first(distribution.top_k, true)->candidate.id;
  for (std::int32_t m = kFirstCandidates; m <= n / kFewAmongAll; m *= kMoreCandidates) {
    if (const WeightedCandidate* drawn = draw_first(m, false)) return drawn->candidate.id;
  }
  return draw_among_all(x, n, distribution, uniform, scratch);
}

Candidate last_left(const float* x, std::int32_t n, const Distribution& distribution, DrawScratch& scratch) {
  if (distribution.top_k == n) {
    BucketedRow row(x, n, distribution, scratch);
    return cut_all(row, distribution).candidate;
  }
  scratch.top.reset(x, n);
  std::vector<WeightedCandidate>& weighted = scratch.weighted;
  weigh(scratch.top.gather(distribution.top_k), distribution, weighted);
  const double sum = sum_of_weights(weighted.begin(), weighted.end());
  if (distribution.top_p < 1.0) cut_top_p(distribution.top_p, sum, weighted);
  cut_min_p(distribution.min_p, weighted);
  return std::max_element(weighted.begin(), weighted.end(), comes_before_weighted)->candidate;
}

}  // namespace llm_decoder
