// Batched sampling and log probabilities. A row's result depends on its own logits and parameters alone.
#pragma once

#include <cstdint>
#include <vector>

#include "draw.h"
#include "llm_decoder/cpu_kernels.h"
#include "llm_decoder/parallel.h"
#include "llm_decoder/types.h"
#include "top_candidates.h"

namespace llm_decoder {

struct LogitsView {
  const float* data = nullptr;  // [n_rows, vocab_size]
  std::int32_t n_rows = 0;
  std::int32_t vocab_size = 0;

  const float* row(std::int32_t index) const { return data + static_cast<std::int64_t>(index) * vocab_size; }
};

// A run of token ids for each drawn row: ids[offsets[i] .. offsets[i + 1]).
struct RaggedIds {
  Span<const std::int64_t> offsets;  // [n_draws + 1], ascending from 0
  Span<const std::int32_t> ids;

  Span<const std::int32_t> of(std::size_t draw) const {
    const std::int64_t begin = offsets[draw];
    return {ids.data + begin, static_cast<std::size_t>(offsets[draw + 1] - begin)};
  }
};

// Which tokens a draw may give, a bit each: token t is bit t % 32 of word t / 32. Several draws may share a mask.
struct TokenMasks {
  Span<const std::int32_t> of_draw;  // [n_draws], -1: all tokens; empty: all tokens for every draw
  Span<const std::uint32_t> words;   // [n_masks, n_words]
  std::int32_t n_words = 0;          // of a mask; those past the last token's are not looked at

  bool has(std::size_t draw) const { return !of_draw.empty() && of_draw[draw] >= 0; }
  const std::uint32_t* of(std::size_t draw) const {
    return words.data + static_cast<std::int64_t>(of_draw[draw]) * n_words;
  }
};

// One entry a draw; several draws may come from one row of logits. The value in brackets switches a parameter off.
struct SamplingParams {
  Span<const std::int32_t> rows;
  Span<const float> temperature;         // 0: the largest
  Span<const std::int32_t> top_k;        // [0]
  Span<const float> top_p;               // [1]
  Span<const float> min_p;               // [0]
  Span<const float> repetition_penalty;  // [1], of tokens in prompt or output (Keskar et al. 2019)
  Span<const float> presence_penalty;    // [0], of tokens in output
  Span<const float> frequency_penalty;   // [0], of each time a token is in output
  Span<const std::uint64_t> seed;
  Span<const std::int64_t> position;  // of the drawn token in its sequence
  RaggedIds prompt, output;
  RaggedIds bias;
  Span<const float> bias_values;  // beside bias.ids
  RaggedIds banned;
  RaggedIds allowed;  // an empty run allows all
  TokenMasks masks;
};

// In the place of a token. The two are told apart because only the first says that the model's own numbers, and what
// the cache keeps of them, cannot be trusted.
constexpr std::int32_t kNotFinite = -1;    // the raw row holds NaN or +inf, or nothing above -inf
constexpr std::int32_t kNoTokenLeft = -2;  // the raw row is sound, but the draw's own edits leave nothing to choose

// Filled by the sampler. Log probabilities are those of the raw logits, whatever the parameters.
struct SampleResult {
  std::int32_t* tokens = nullptr;   // [n_draws], kNotFinite or kNoTokenLeft where there is none. Not of log_probs.
  float* logprobs = nullptr;        // [n_draws]; NaN without a token
  std::int32_t* ranks = nullptr;    // [n_draws], 1 + how many logits are larger; 0 without a token
  std::int32_t* top_ids = nullptr;  // [n_draws, n_top], by descending probability, then ascending id; -1: not finite
  float* top_logprobs = nullptr;    // [n_draws, n_top]
};

// The likeliest continuations of each draw's row, the first by `key` and then the lowest id.
struct ContinuationResult {
  std::int32_t n = 0;              // of a draw
  std::int32_t* tokens = nullptr;  // [n_draws, n]; -1 where no more are left. The first may be kNotFinite, kNoTokenLeft
  float* scores = nullptr;         // [n_draws, n], what a beam's score grows by; NaN without a token
  float* keys = nullptr;           // [n_draws, n], `scores` with the noise that chooses among them
  // Of the raw logits, as in SampleResult. ranks and top_* may be null.
  float* logprobs = nullptr;      // [n_draws, n]
  std::int32_t* ranks = nullptr;  // [n_draws, n]
  std::int32_t n_top = 0;
  std::int32_t* top_ids = nullptr;  // [n_draws, n_top]
  float* top_logprobs = nullptr;    // [n_draws, n_top]
};

class Sampler {
 public:
  explicit Sampler(int n_threads) : scratch_(static_cast<std::size_t>(n_threads)) {}

  // Throws std::invalid_argument when a parameter or an id is out of its range.
  void sample(const LogitsView& logits, const SamplingParams& params, std::int32_t n_top, const CpuKernels& kernels,
              ThreadPool& pool, const SampleResult& result);

  // A score is the log probability after the draw's edits, and where its temperature is not 0 after that and its cuts,
  // each made on log probabilities and none followed by a softmax (the order of Hugging Face's beam search). Noise is
  // there with a temperature alone: Gumbel's, so that the first n by score and noise are n draws without replacement
  // (Kool et al. 2019), also among the rows of several beams.
  void continuations(const LogitsView& logits, const SamplingParams& params, const CpuKernels& kernels,
                     ThreadPool& pool, const ContinuationResult& result);

  // Of targets[i] in row i.
  void log_probs(const LogitsView& logits, Span<const std::int32_t> targets, std::int32_t n_top,
                 const CpuKernels& kernels, ThreadPool& pool, const SampleResult& result);

  // Of one thread.
  struct Scratch {
    std::vector<float> logits;         // [vocab_size], edited
    std::vector<float> scaled;         // [vocab_size], over the temperature
    std::vector<Candidate> kept;       // allowed ids and their logits
    std::vector<std::int32_t> n_seen;  // [vocab_size], zero between uses
    std::vector<float> keys;           // [vocab_size]
    DrawScratch draw;

    // Takes the memory of any draw here, on the calling thread: a region of threads must not throw.
    void reserve(std::int32_t vocab_size, std::size_t n_ids);
  };

 private:
  std::vector<Scratch> scratch_;
};

}  // namespace llm_decoder
