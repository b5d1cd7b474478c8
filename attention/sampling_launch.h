// Sampling, log probabilities and the best tokens of rows of logits, on the device: only what is asked for leaves it.
// A draw's result depends on its own logits and parameters alone, bit for bit.
#pragma once

#include "row_tensor.h"
#include "sampling_args.h"

namespace llm_decoder {
namespace gpu {

// [n_rows, vocab_size] of float32, bfloat16 or float16.
struct LogitRowsTensor {
  RowTensor rows;
  int n_rows = 0, vocab_size = 0;
};

// The n best tokens, [n_draws, n], by descending log probability, then ascending id; -1 and NaN: the row is not finite.
struct BestTokens {
  int n = 0;
  std::int32_t* tokens = nullptr;
  float* logprobs = nullptr;
};

// Parameters lie on the device: their limits are for the caller to check. Kernels for random draws run where there are
// temperatures, those for edits where there are lists.
struct SampleLaunch {
  LogitRowsTensor logits;
  DrawParams params;
  int n_draws = 0;
  std::int32_t* tokens = nullptr;  // [n_draws], kNotFinite or kNoTokenLeft where there is none
  float* logprobs = nullptr;       // [n_draws], of the raw logits; NaN without a token
  std::int32_t* ranks = nullptr;   // [n_draws] or null, 1 + how many raw logits are larger; 0 without a token
  BestTokens best;                 // of the raw logits
  void* workspace = nullptr;       // workspace_bytes(launch), aligned to 16
};

struct LogProbsLaunch {
  LogitRowsTensor logits;
  const std::int32_t* targets = nullptr;  // [n_rows], which the caller checks to be in [0, vocab_size)
  float* logprobs = nullptr;              // [n_rows]; NaN where the row is not finite
  std::int32_t* ranks = nullptr;          // [n_rows] or null; 0 where the row is not finite
  BestTokens best;
  void* workspace = nullptr;
};

// The best continuations of groups of beams, whose rows follow each other: of all (beam, token) of a group those n with
// the highest scores[beam] + log probability, then the lowest beam, then the lowest token. n is 2 * n_beams for a
// search that may meet end tokens.
struct BeamLaunch {
  LogitRowsTensor logits;  // n_rows = n_groups * n_beams
  int n_beams = 1;
  const float* scores = nullptr;  // [n_rows]
  int n = 0;
  // [n_groups, n], the best first. kNotFinite, -1 and NaN where a row of the group is not finite.
  std::int32_t* tokens = nullptr;
  std::int32_t* beams = nullptr;  // within the group
  float* new_scores = nullptr;
  void* workspace = nullptr;
};

std::int64_t workspace_bytes(const SampleLaunch& launch);
std::int64_t workspace_bytes(const LogProbsLaunch& launch);
std::int64_t workspace_bytes(const BeamLaunch& launch);

// All throw std::invalid_argument for sizes and dtypes that no kernel takes.
void sample(const SampleLaunch& launch, Stream stream);
void log_probs(const LogProbsLaunch& launch, Stream stream);
void best_of_beams(const BeamLaunch& launch, Stream stream);

}  // namespace gpu
}  // namespace llm_decoder
