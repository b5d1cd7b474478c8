// The largest values of a row without sorting it: the maxima of blocks tell which blocks can hold them.
#pragma once

#include <cstdint>
#include <vector>

namespace llm_decoder {

struct Candidate {
  float value;
  std::int32_t id;
};

// The one order of candidates: larger values first, then lower ids.
inline bool comes_before(const Candidate& a, const Candidate& b) {
  return a.value > b.value || (a.value == b.value && a.id < b.id);
}

class TopCandidates {
 public:
  // Takes the memory that rows of up to n values can ever need.
  void reserve(std::int32_t n);

  // x: [n], without NaN. It is looked at again by each call of gather.
  void reset(const float* x, std::int32_t n);

  // The first min(m, n) candidates, in any order. Valid until the next call.
  std::vector<Candidate>& gather(std::int32_t m);
  // The same in order.
  const std::vector<Candidate>& gather_sorted(std::int32_t m);

 private:
  float threshold(std::int32_t m);

  const float* x_ = nullptr;
  std::int32_t n_ = 0;
  std::vector<float> block_max_, selected_max_;
  std::vector<Candidate> candidates_;
};

}  // namespace llm_decoder
