// Sampling from rows of logits without sorting them and without the logits leaving the device. Four kernels, each over
// (draw, part of the row) but the last, which is a block a draw:
//
//   summarise_split   edits the logits; maximum, sum and best token of each part (logit_rows.h)
//   weigh_split       what the tokens weigh, in 2048 bins of equal width in log weight
//   gather_split      tokens of the bins that the draw can end in, those of a bin together
//   draw_token        the cuts and the draw. top_k, top_p and the drawn number each ask for a place in the one order of
//                     tokens, by descending logit, then ascending id: a bin first (bin_ladder.h), then within the bin
//                     (bin_search.h)
//
// The row comes from memory once and from the second cache twice; a part is 16 KB, so that a single row of 150k logits
// is spread over 37 multiprocessors. A few rows are bound by latency, that of four short kernels; many by bytes and by
// the atomics of the bins, which are in shared memory and seldom meet, as logits spread over many bins.
//
// Weights are 2^-t in float32, t = (max - logit) / temperature in octaves, taken as whole multiples of 2^-44:
// their sums are exact, so that nothing depends on the order in which threads come, nor on the batch. What weighs less
// than 2^-44 of the likeliest token is never drawn. The draw is the CPU's, on the same number of the same generator. It
// gives another token only where that number falls within rounding, about 2^-20 of the sum, of a boundary between two
// tokens: weights are float32 here and float64 there, whose sum over a whole row is float32 in turn.
#pragma once

#include "bin_ladder.h"
#include "bin_search.h"
#include "logit_rows.h"

namespace llm_decoder {
namespace gpu {

// A draw as the kernels after the first see it.
struct Draw {
  int draw;
  std::uint64_t best;
  float temperature;
  bool is_edited;

  GPU_FUNCTION Draw(const SamplingArgs& args, int draw_)
      : draw(draw_),
        best(best_of_row(args.summaries + std::int64_t{draw_} * args.n_splits, args.n_splits)),
        temperature(param(args.params.temperature, draw_, 0.0f)),
        is_edited(args.edited.data != nullptr && has_edits(args.params, draw_)) {}

  GPU_FUNCTION bool has_token() const { return best != kBadKey && value_of_key(best) > -kInf; }
  GPU_FUNCTION bool is_random() const { return has_token() && temperature > 0.0f; }
  GPU_FUNCTION TokenWeights weights() const { return {value_of_key(best), kLog2OfE / temperature}; }
  GPU_FUNCTION RowArray rows(const SamplingArgs& args) const {
    if (!is_edited) return args.logits;
    return {args.edited.data, args.edited.stride, args.edited.is_float, args.edited.is_aligned};
  }
  GPU_FUNCTION int row(const SamplingArgs& args) const { return is_edited ? draw : row_of_draw(args.params, draw); }
};

constexpr int kWeighSharedBytes = 3 * kBins * 4 + 64;

// grid {n_draws, n_splits}
template <class H>
GPU_KERNEL weigh_split_kernel(const SamplingArgs args) {
  const int split = block_index().y;
  const Draw draw(args, block_index().x);
  if (!draw.is_random()) return;
  const auto counts = shared_array<std::uint32_t>(0, kBins);
  const SharedSums sums{shared_array<std::uint32_t>(kBins * 4, kBins),
                        shared_array<std::uint32_t>(2 * kBins * 4, kBins)};
  for (int i = thread_index(); i < kBins; i += kSampleThreads) {
    counts.store(i, 0);
    sums.clear(i);
  }
  float x[kTokensPerThread];
  load_split<H>(draw.rows(args), draw.row(args), split, args.vocab_size, x);
  sync_block();
  const TokenWeights weights = draw.weights();
  const float min_p = param(args.params.min_p, draw.draw, 0.0f);
  std::uint64_t kept = 0;
  GPU_UNROLL
  for (int i = 0; i < kTokensPerThread; ++i) {
    const float octaves = weights.octaves(x[i]);
    if (!TokenWeights::has_weight(octaves)) continue;
    const float weight = TokenWeights::weight(octaves);
    const std::uint64_t whole = TokenWeights::whole(weight);
    counts.atomic_add(TokenWeights::bin(octaves), 1);
    sums.add(TokenWeights::bin(octaves), whole);
    if (weight >= min_p) kept += whole;
  }
  sync_block();
  BinTable& bins = args.bins[draw.draw];
  for (int i = thread_index(); i < kBins; i += kSampleThreads) {
    if (counts.load(i) == 0) continue;
    atomic_add(&bins.n[i], counts.load(i));
    atomic_add(&bins.weight[i], sums.load(i));
  }
  if (min_p > 0.0f) {
    kept = block_sum(shared_array<std::uint64_t>(3 * kBins * 4, kSampleThreads / kWarpSize), kept);
    if (thread_index() == 0) atomic_add(&bins.weight_min_p, kept);
  }
}

// grid {n_draws, n_splits}
template <class H>
GPU_KERNEL gather_split_kernel(const SamplingArgs args) {
  const int split = block_index().y;
  const Draw draw(args, block_index().x);
  if (!draw.is_random()) return;
  float x[kTokensPerThread];
  load_split<H>(draw.rows(args), draw.row(args), split, args.vocab_size, x);
  BinTable& bins = args.bins[draw.draw];
  const BinLadder ladder(0);
  ladder.climb(bins);
  const Cuts cuts(args, draw.draw, ladder.n());
  // Every place that is looked for lies in this bin or before it.
  std::uint64_t sum = ladder.weight();
  int last;
  if (cuts.top_k > 0) {
    last = ladder.bin_of_count(cuts.top_k).index;
  } else if (cuts.has_top_p()) {
    last = ladder.bin_of_weight(cuts.nucleus(sum)).index;
  } else {
    if (cuts.has_min_p && bins.weight_min_p < sum) sum = bins.weight_min_p;
    last = ladder.bin_of_weight(cuts.drawn(sum)).index;
  }
  const TokenWeights weights = draw.weights();
  std::int32_t* const gathered = args.gathered + std::int64_t{draw.draw} * args.vocab_size;
  GPU_UNROLL
  for (int i = 0; i < kTokensPerThread; ++i) {
    const float octaves = weights.octaves(x[i]);
    if (!TokenWeights::has_weight(octaves) || TokenWeights::bin(octaves) > last) continue;
    const int bin = TokenWeights::bin(octaves);
    gathered[ladder.n_before(bin) + atomic_add(&bins.n_gathered[bin], 1u)] = split_token(split, i);
  }
}

// Every thread must come.
template <class H>
GPU_FUNCTION int draw_among_bins(const SamplingArgs& args, const Draw& draw) {
  const BinTable& bins = args.bins[draw.draw];
  const BinLadder ladder(0);
  ladder.climb(bins);
  const Cuts cuts(args, draw.draw, ladder.n());
  BinSearch<H> search(BinLadder::kSharedBytes, draw.rows(args), draw.row(args), draw.weights(),
                      args.gathered + std::int64_t{draw.draw} * args.vocab_size);
  std::uint64_t sum = ladder.weight();
  if (cuts.top_k > 0) sum = search.weight_through_count(ladder.bin_of_count(cuts.top_k), cuts.top_k);
  if (cuts.has_top_p()) {
    const std::uint64_t nucleus = cuts.nucleus(sum);
    sum = search.place_of_weight(ladder.bin_of_weight(nucleus), nucleus).weight_through;
  }
  if (cuts.has_min_p && bins.weight_min_p < sum) sum = bins.weight_min_p;
  const std::uint64_t drawn = cuts.drawn(sum);
  return search.place_of_weight(ladder.bin_of_weight(drawn), drawn).token;
}

// grid {n_draws}
template <class H>
GPU_KERNEL draw_token_kernel(const SamplingArgs args) {
  const Draw draw(args, block_index().x);
  const RowSums sums = sums_of_row(args.summaries + std::int64_t{draw.draw} * args.n_splits, args.n_splits);
  int token = !sums.is_usable ? kNotFinite : !draw.has_token() ? kNoTokenLeft : id_of_key(draw.best);
  if (token >= 0 && draw.temperature > 0.0f) token = draw_among_bins<H>(args, draw);
  if (thread_index() != 0) return;
  const int row = row_of_draw(args.params, draw.draw);
  args.tokens[draw.draw] = token;
  args.logprobs[draw.draw] = token >= 0 ? load_one<H>(args.logits, row, token) - sums.log_sum_exp : __builtin_nanf("");
  if (args.ranks != nullptr) args.ranks[draw.draw] = token >= 0 ? 1 : 0;
}

// grid {ceil(n_draws / warps of a block)}
template <class H>
GPU_KERNEL report_targets_kernel(const SamplingArgs args) {
  const int draw = block_index().x * (n_threads() / kWarpSize) + warp_index();
  if (draw >= args.n_draws) return;
  const RowSums sums = sums_of_row(args.summaries + std::int64_t{draw} * args.n_splits, args.n_splits);
  if (lane() != 0) return;
  const float logit = load_one<H>(args.logits, row_of_draw(args.params, draw), args.targets[draw]);
  args.logprobs[draw] = sums.is_usable ? logit - sums.log_sum_exp : __builtin_nanf("");
  if (args.ranks != nullptr) args.ranks[draw] = sums.is_usable ? 1 : 0;
}

}  // namespace gpu
}  // namespace llm_decoder
