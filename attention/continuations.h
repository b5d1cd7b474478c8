// The likeliest continuations of rows of logits, as a beam search wants them: the first n tokens of each draw by their
// score, or by their score and noise. Kernels over (draw, part of the row), but cut_row, which is a block a draw:
//
//   summarise_split     maximum and sum of each part of the raw logits (logit_rows.h)
//   edit_split          log probabilities after the draw's edits, where it has edits or a temperature
//   cut_row             the last token that top_k and top_p leave, by selection over the whole row (select_key.h)
//   continue_split      scores and noise; each part's own best (best_keys.h), which merge_best joins
//   report_continuations
//
// Noise is Gumbel's, -log(-log(u)) with u of the same generator and the same counters as on the CPU, in float64 as
// there: so that the two give the same tokens, and differ only where two keys are within the rounding of the log
// probabilities that are in them.
#pragma once

#include "best_keys.h"
#include "bin_ladder.h"
#include "split_edits.h"
#include "token_weights.h"

namespace llm_decoder {
namespace gpu {

struct ContinuationArgs {
  // Results are of all continuations, n_tokens of a draw. edited: null where no draw has edits or a temperature.
  SamplingArgs rows;
  float* largest = nullptr;       // [n_draws, n_splits], of the edited log probabilities
  std::uint64_t* last = nullptr;  // [n_draws], the last key that top_k and top_p leave; null: they cut nothing
  BestKeys best;
  float* scores = nullptr;  // [n_draws, n_tokens], what a beam's score grows by; NaN without a token
  float* keys = nullptr;    // [n_draws, n_tokens], scores with the noise that chooses among them
};

// Weights are compared down to the smallest that float64 has.
constexpr float kLeastOctaves = 1075.0f;

// A draw, and its tokens' order before noise.
struct Continued {
  int draw;
  float temperature;
  bool is_random, is_plain;

  GPU_FUNCTION Continued(const SamplingArgs& args, int draw_)
      : draw(draw_),
        temperature(param(args.params.temperature, draw_, 0.0f)),
        is_random(temperature > 0.0f),
        is_plain(!is_random && !has_edits(args.params, draw_)) {}

  // A plain draw is in the order of its logits, of which log probabilities, being rounded, may make ties.
  GPU_FUNCTION RowArray rows(const SamplingArgs& args) const {
    if (is_plain) return args.logits;
    return {args.edited.data, args.edited.stride, args.edited.is_float, args.edited.is_aligned};
  }
  GPU_FUNCTION int row(const SamplingArgs& args) const { return is_plain ? row_of_draw(args.params, draw) : draw; }

  // Of the edited log probabilities; every lane must come.
  GPU_FUNCTION float largest(const ContinuationArgs& args) const {
    std::uint32_t key = 0;
    for (int i = lane(); i < args.rows.n_splits; i += kWarpSize) {
      const std::uint32_t other = value_key(args.largest[std::int64_t{draw} * args.rows.n_splits + i]);
      key = other > key ? other : key;
    }
    return value_of_key(std::uint64_t{reduce_max(key)} << 32);
  }
  GPU_FUNCTION TokenWeights weights(float max) const { return {max, kLog2OfE / temperature}; }
};

GPU_FUNCTION RowSums sums_of_draw(const SamplingArgs& args, int draw) {
  return sums_of_row(args.summaries + std::int64_t{draw} * args.n_splits, args.n_splits);
}

// Shared memory: scratch of a reduction, then the edits.
constexpr int kEditScratchBytes = 64;
constexpr int kEditSplitSharedBytes = kEditScratchBytes + SplitEdits::kSharedBytes;

// grid {n_draws, n_splits}
template <class H>
GPU_KERNEL edit_split_kernel(const ContinuationArgs args) {
  const int split = block_index().y, n = args.rows.vocab_size;
  const Continued draw(args.rows, block_index().x);
  const RowSums sums = sums_of_draw(args.rows, draw.draw);
  if (draw.is_plain || !sums.is_usable) return;
  const auto scratch = shared_array<std::uint32_t>(0, kSampleThreads / kWarpSize);
  float x[kTokensPerThread];
  load_split<H>(args.rows.logits, row_of_draw(args.rows.params, draw.draw), split, n, x);
  GPU_UNROLL
  for (int i = 0; i < kTokensPerThread; ++i) x[i] -= sums.log_sum_exp;
  if (has_edits(args.rows.params, draw.draw)) {
    SplitEdits(kEditScratchBytes, args.rows.params, draw.draw, split).apply(x);
  }
  const int n_stored = static_cast<int>(args.rows.edited.stride);  // whole vectors
  float largest = -kInf;
  GPU_UNROLL
  for (int v = 0; v < 2; ++v) {
    float values[kEight];
    GPU_UNROLL
    for (int k = 0; k < kEight; ++k) {
      values[k] = x[v * kEight + k];
      largest = values[k] > largest ? values[k] : largest;
    }
    store_eight<H>(args.rows.edited, draw.draw, split_token(split, v * kEight), n_stored, values);
  }
  const std::uint32_t key = block_max(scratch, value_key(largest));
  if (thread_index() == 0) {
    args.largest[std::int64_t{draw.draw} * args.rows.n_splits + split] = value_of_key(std::uint64_t{key} << 32);
  }
}

// Finds the last token that top_k, then top_p leave.
class RowCut {
 public:
  static constexpr int kSharedBytes = KeySelector::kSharedBytes + 64;

  // x: [n], a row of edit_split, whose memory is whole vectors.
  GPU_FUNCTION RowCut(const float* x, int n, const TokenWeights& weights)
      : x_(x),
        n_(n),
        weights_(weights),
        selector_(0),
        scratch_(shared_array<std::uint64_t>(KeySelector::kSharedBytes, kSampleThreads / kWarpSize)) {}

  // Every thread must come, to both.
  GPU_FUNCTION std::uint64_t last_of_count(std::uint64_t count) const {
    return selector_.select([this](const auto& fn) { for_each_key(fn); }, CountKeys{}, count).key;
  }
  // Among the keys from `first` on: the share is of what these weigh.
  GPU_FUNCTION std::uint64_t last_of_share(double share, std::uint64_t first) const {
    const auto visit = [this, first](const auto& fn) {
      for_each_key([&](std::uint64_t key) {
        if (key >= first) fn(key);
      });
    };
    const auto measure = [this](std::uint64_t key) -> std::uint64_t {
      const float octaves = weights_.octaves(value_of_key(key));
      return TokenWeights::has_weight(octaves) ? TokenWeights::whole(TokenWeights::weight(octaves)) : 0;
    };
    std::uint64_t sum = 0;
    visit([&](std::uint64_t key) { sum += measure(key); });
    sum = block_sum(scratch_, sum);
    return selector_.select(visit, measure, share_of(sum, share, true)).key;
  }

 private:
  template <class Fn>
  GPU_FUNCTION void for_each_key(const Fn& fn) const {
    for (int first = 4 * thread_index(); first < n_; first += 4 * kSampleThreads) {
      const Vec<float, 4> x = load_vec<4>(x_ + first);
      GPU_UNROLL
      for (int k = 0; k < 4; ++k) {
        if (first + k < n_) fn(token_key(x.values[k], first + k));
      }
    }
  }

  const float* const x_;
  const int n_;
  const TokenWeights weights_;
  const KeySelector selector_;
  const Shared<std::uint64_t> scratch_;
};

// grid {n_draws}
GPU_KERNEL cut_row_kernel(const ContinuationArgs args) {
  const int n = args.rows.vocab_size, top_k = param(args.rows.params.top_k, block_index().x, 0);
  const float top_p = param(args.rows.params.top_p, block_index().x, 1.0f);
  const Continued draw(args.rows, block_index().x);
  if (!draw.is_random || !sums_of_draw(args.rows, draw.draw).is_usable) return;
  const float max = draw.largest(args);
  std::uint64_t last = 0;
  if (max > -kInf) {
    const auto* const rows = static_cast<const float*>(args.rows.edited.data);
    const RowCut cut(rows + draw.draw * args.rows.edited.stride, n, draw.weights(max));
    if (top_k > 0 && top_k < n) last = cut.last_of_count(static_cast<std::uint64_t>(top_k));
    if (top_p < 1.0f) last = cut.last_of_share(double{top_p}, last);
  }
  if (thread_index() == 0) args.last[draw.draw] = last;
}

// grid {n_draws, n_splits}
template <class H>
GPU_KERNEL continue_split_kernel(const ContinuationArgs args) {
  const int split = block_index().y, n = args.rows.vocab_size;
  const Continued draw(args.rows, block_index().x);
  const DrawParams& params = args.rows.params;
  const int n_kept = args.best.n_of_split;
  std::uint64_t* const keys = args.best.of_splits + (std::int64_t{draw.draw} * args.rows.n_splits + split) * n_kept;
  if (!sums_of_draw(args.rows, draw.draw).is_usable) {
    keep_bad(n_kept, keys);
    return;
  }
  float x[kTokensPerThread];
  load_split<H>(draw.rows(args.rows), draw.row(args.rows), split, n, x);
  if (draw.is_random) {
    const TokenWeights weights = draw.weights(draw.largest(args));
    const int top_k = param(params.top_k, draw.draw, 0);
    const float min_p = param(params.min_p, draw.draw, 0.0f);
    const bool has_cut = (top_k > 0 && top_k < n) || param(params.top_p, draw.draw, 1.0f) < 1.0f || min_p > 0.0f;
    const std::uint64_t last = param(args.last, draw.draw, std::uint64_t{0});
    const std::uint64_t seed = param(params.seed, draw.draw, std::uint64_t{0});
    const std::int64_t position = param(params.position, draw.draw, std::int64_t{0});
    GPU_UNROLL
    for (int i = 0; i < kTokensPerThread; i += 4) {
      const auto words = philox_words(seed, position, static_cast<std::uint32_t>(split_token(split, i)) / 4 + 1);
      GPU_UNROLL
      for (int k = 0; k < 4; ++k) {
        float& value = x[i + k];
        const float octaves = weights.octaves(value);
        const bool is_kept = token_key(value, split_token(split, i + k)) >= last && octaves < kLeastOctaves &&
                             TokenWeights::weight(octaves) >= min_p;
        const double uniform = (words[static_cast<std::size_t>(k)] + 0.5) * 0x1p-32;
        const float noise = static_cast<float>(-log(-log(uniform)));
        value = has_cut && !is_kept ? -kInf : value / draw.temperature + noise;
      }
    }
  }
  const auto visit = [&](const auto& fn) {
    GPU_UNROLL
    for (int i = 0; i < kTokensPerThread; ++i) fn(x[i] > -kInf ? token_key(x[i], split_token(split, i)) : 0);
  };
  keep_best(visit, n_kept, keys);
}

// grid {n_draws, ceil(n / threads of a block)}
template <class H>
GPU_KERNEL report_continuations_kernel(const ContinuationArgs args) {
  const SamplingArgs& rows = args.rows;
  const Continued draw(rows, block_index().x);
  const RowSums sums = sums_of_draw(rows, draw.draw);
  const int i = block_index().y * kSampleThreads + thread_index(), n = args.best.n;
  const bool has_token = sums.is_usable && (draw.is_plain || draw.largest(args) > -kInf);
  if (i >= n) return;
  const std::int64_t first = std::int64_t{draw.draw} * n;
  const std::uint64_t* const keys = args.best.of_groups + first;
  const std::uint64_t key = sums.is_usable ? keys[i] : 0;
  const int place = sums.is_usable ? place_of_key(keys, n, i) : i;
  const std::int64_t at = first + place;
  if (key == 0) {
    rows.tokens[at] = place == 0 && sums.is_usable && !has_token ? kNoTokenLeft : kNotFinite;
    args.scores[at] = args.keys[at] = rows.logprobs[at] = __builtin_nanf("");
    if (rows.ranks != nullptr) rows.ranks[at] = 0;
    return;
  }
  const int token = id_of_key(key);
  const float logprob = load_one<H>(rows.logits, row_of_draw(rows.params, draw.draw), token) - sums.log_sum_exp;
  const float own = draw.is_plain ? logprob : load_one<H>(draw.rows(rows), draw.draw, token);
  rows.tokens[at] = token;
  rows.logprobs[at] = logprob;
  args.scores[at] = draw.is_random ? own / draw.temperature : own;
  args.keys[at] = draw.is_random ? value_of_key(key) : own;
  if (rows.ranks != nullptr) rows.ranks[at] = 1;
}

}  // namespace gpu
}  // namespace llm_decoder
