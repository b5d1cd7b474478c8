// What sampling on the device is asked, as kernels see it. All pointers are the device's.
#pragma once

#include "row_array.h"

namespace llm_decoder {
namespace gpu {

// In the place of a token, as on the CPU.
constexpr int kNotFinite = -1;    // the row holds NaN or +inf, or nothing above -inf
constexpr int kNoTokenLeft = -2;  // the row is sound, but the draw's own edits leave nothing to choose

// A run of token ids for each draw, ids[offsets[draw] .. offsets[draw + 1]); null offsets: none for any.
struct TokenLists {
  const std::int64_t* offsets = nullptr;
  const std::int32_t* ids = nullptr;

  GPU_FUNCTION std::int64_t begin(int draw) const { return offsets != nullptr ? offsets[draw] : 0; }
  GPU_FUNCTION std::int64_t end(int draw) const { return offsets != nullptr ? offsets[draw + 1] : 0; }
  GPU_FUNCTION bool is_empty(int draw) const { return begin(draw) == end(draw); }
};

// Which tokens a draw may give, a bit each: token t is bit t % 32 of word t / 32; null: all tokens for every draw.
struct TokenMasks {
  const std::int32_t* of_draw = nullptr;  // [n_draws], -1: all tokens
  const std::uint32_t* words = nullptr;   // [n_masks, n_words]
  int n_words = 0;                        // of a mask, all its tokens and no more

  GPU_FUNCTION bool has(int draw) const { return of_draw != nullptr && of_draw[draw] >= 0; }
  // The word that token / 32 is in; 0 past the last one.
  GPU_FUNCTION std::uint32_t word(int draw, int index) const {
    return index < n_words ? words[std::int64_t{of_draw[draw]} * n_words + index] : 0;
  }
};

// One entry a draw. Null: switched off for all, with the value in brackets.
struct DrawParams {
  const std::int32_t* rows = nullptr;         // [row i for draw i]; several draws may come from one row
  const float* temperature = nullptr;         // [0: the largest]
  const std::int32_t* top_k = nullptr;        // [0]
  const float* top_p = nullptr;               // [1]
  const float* min_p = nullptr;               // [0]
  const float* repetition_penalty = nullptr;  // [1], of tokens in prompt or output (Keskar et al. 2019)
  const float* presence_penalty = nullptr;    // [0], of tokens in output
  const float* frequency_penalty = nullptr;   // [0], of each time a token is in output
  const std::uint64_t* seed = nullptr;        // [0]
  const std::int64_t* position = nullptr;     // [0], of the drawn token in its sequence
  TokenLists prompt, output;
  TokenLists bias;                     // a token once at most
  const float* bias_values = nullptr;  // beside bias.ids
  TokenLists banned;
  TokenLists allowed;  // an empty run allows all
  TokenMasks masks;
};

template <class T>
GPU_FUNCTION T param(const T* values, int draw, T off) {
  return values != nullptr ? values[draw] : off;
}

GPU_FUNCTION int row_of_draw(const DrawParams& p, int draw) { return param(p.rows, draw, std::int32_t{draw}); }

// Whether a draw changes its logits at all.
GPU_FUNCTION bool has_edits(const DrawParams& p, int draw) {
  const bool has_history = !p.prompt.is_empty(draw) || !p.output.is_empty(draw);
  const bool has_penalty = param(p.repetition_penalty, draw, 1.0f) != 1.0f ||
                           param(p.presence_penalty, draw, 0.0f) != 0.0f ||
                           param(p.frequency_penalty, draw, 0.0f) != 0.0f;
  return (has_history && has_penalty) || !p.bias.is_empty(draw) || !p.banned.is_empty(draw) ||
         !p.allowed.is_empty(draw) || p.masks.has(draw);
}

// Of a part of a row: what its blocks leave to the kernels that follow.
struct SplitSummary {
  std::uint64_t best;  // token_key of the largest edited logit; kBadKey where the part holds NaN or +inf
  float raw_max;       // of the raw logits
  float raw_sum;       // of exp(logit - raw_max)
};
constexpr std::uint64_t kBadKey = ~std::uint64_t{0};

// Tokens in bins of equal width in log weight: how many, what they weigh together.
constexpr int kBins = 2048;
struct BinTable {
  std::uint64_t weight[kBins];
  std::uint32_t n[kBins];
  std::uint32_t n_gathered[kBins];
  std::uint64_t weight_min_p;  // of all tokens that min_p keeps
};

struct SamplingArgs {
  RowArray logits;  // [n_rows, vocab_size]
  int vocab_size = 0, n_splits = 0, n_draws = 0;
  DrawParams params;
  SplitSummary* summaries = nullptr;  // [n_draws, n_splits]
  OutRowArray edited;                 // [n_draws, vocab_size] float32; rows of draws without edits stay as they are
  BinTable* bins = nullptr;           // [n_draws]
  std::int32_t* gathered = nullptr;   // [n_draws, vocab_size], tokens of a bin together
  // Results.
  int n_tokens = 1;                       // of a draw
  std::int32_t* tokens = nullptr;         // [n_draws, n_tokens]
  const std::int32_t* targets = nullptr;  // [n_draws, n_tokens], given tokens in the place of drawn ones
  float* logprobs = nullptr;              // [n_draws, n_tokens] of the raw logits; NaN without a token
  // [n_draws, n_tokens] or null, 1 + how many raw logits are larger; 0 without a token
  std::int32_t* ranks = nullptr;
};

}  // namespace gpu
}  // namespace llm_decoder
