// The likeliest continuations of rows of logits, on the device.
#pragma once

#include "sampling_launch.h"

namespace llm_decoder {
namespace gpu {

// Parameters lie on the device: their limits are for the caller to check. A draw's score of a token is its log
// probability after the draw's edits, and where its temperature is above 0 that over the temperature, for the tokens
// that top_k, top_p and min_p leave; its key the same, and Gumbel noise of (seed, position, token) where the
// temperature is above 0.
struct ContinuationLaunch {
  LogitRowsTensor logits;
  DrawParams params;
  int n_draws = 0;
  int n = 0;  // of a draw, 1 to vocab_size
  // [n_draws, n], by descending key, then ascending id. tokens: -1 where no more are left; the first may be kNotFinite
  // or kNoTokenLeft. The others hold NaN, ranks 0, without a token.
  std::int32_t* tokens = nullptr;
  float* scores = nullptr;
  float* keys = nullptr;
  float* logprobs = nullptr;      // of the raw logits
  std::int32_t* ranks = nullptr;  // or null; 1 + how many raw logits are larger
  BestTokens best;                // of the raw logits
  void* workspace = nullptr;      // workspace_bytes(launch), aligned to 16
};

std::int64_t workspace_bytes(const ContinuationLaunch& launch);

// Throws std::invalid_argument for sizes and dtypes that no kernel takes.
void find_continuations(const ContinuationLaunch& launch, Stream stream);

}  // namespace gpu
}  // namespace llm_decoder
