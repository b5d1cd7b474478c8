// The best continuations of groups of beams.
#pragma once

#include "sampler.h"

namespace llm_decoder {

// Of all (beam, token) of a group those n with the highest scores[beam] + log probability, then the lowest beam, then
// the lowest token. Rows of a group follow each other.
struct BeamCall {
  LogitsView logits;
  std::int32_t n_beams = 1;
  const float* scores = nullptr;  // [n_rows]
  std::int32_t n = 0;
  // [n_rows / n_beams, n], the best first. kNotFinite, -1 and NaN where a row of the group is not finite.
  std::int32_t* tokens = nullptr;
  std::int32_t* beams = nullptr;  // within the group
  float* new_scores = nullptr;
};

// Throws std::invalid_argument for rows that are no whole groups and an n that they have not.
void best_of_beams_op(const BeamCall& call, const CpuKernels& kernels, ThreadPool& pool);

}  // namespace llm_decoder
