// One draw from a row of logits: temperature, top_k, top_p, min_p, inverse CDF.
#pragma once

#include <cstdint>
#include <vector>

#include "top_candidates.h"

namespace llm_decoder {

struct Distribution {
  float max;            // of all logits
  float temperature;    // above 0
  std::int32_t top_k;   // at most the number of logits
  double top_p, min_p;  // 1 and 0: off
  double sum_of_all;  // of exp((logit - max) / temperature); not needed when top_k is smaller than the number of logits
};

struct WeightedCandidate {
  double weight;  // exp((logit - max) / temperature)
  Candidate candidate;
};

// Of one thread.
struct DrawScratch {
  TopCandidates top;
  std::vector<WeightedCandidate> weighted;
  std::vector<double> weights;         // of all ids
  std::vector<std::uint16_t> buckets;  // they lie in

  // Takes the memory that rows of up to n values can ever need.
  void reserve(std::int32_t n);
};

// The id at `uniform` in [0, 1) of the inverse CDF over the candidates that are left, by descending probability, then
// ascending id. x: [n], its largest value finite.
std::int32_t draw_token(const float* x, std::int32_t n, const Distribution& distribution, double uniform,
                        DrawScratch& scratch);

// The last candidate that top_k, top_p and min_p leave, in their order. x: [n], its largest value finite.
Candidate last_left(const float* x, std::int32_t n, const Distribution& distribution, DrawScratch& scratch);

}  // namespace llm_decoder
