// Sampling from rows of logits without sorting them and without a token's logits leaving the device. Four kernels, each
// over (draw, part of the row) but the last, which is a block a draw:
//
//   summarise_split   edits the logits; maximum, sum and best token of each part
//   weigh_split       what the tokens weigh, in 2048 bins of equal width in log weight
//   gather_split      tokens of the bins that the draw can end in, those of a bin together
//   draw_token        the cuts of top_k, top_p and min_p and the draw itself: each is a place in the one order of
//   tokens
//                     (by descending logit, then ascending id), found by bins and then within a bin (select_key.h)
//
// The row comes from memory once and from the second cache twice; a part is 16 KB, so that a single row of 150k logits
// is spread over 37 multiprocessors: latency bounds one row, bytes bound many.
//
// Weights are 2^-t of float32, t = (max - logit) / temperature in octaves, as whole multiples of 2^-44: their sums are
// exact, so that nothing depends on the order in which threads come, nor on the batch. What weighs less than 2^-44 of
// the likeliest token is never drawn. The draw is the CPU's, on the same number of the same generator. It gives another
// token only where that number falls within the rounding of float32 weights (about 2^-20 of the sum) of a boundary
// between two tokens, for the CPU's weights are float64.
#pragma once

#include "llm_decoder/philox.h"
#include "logit_split.h"
#include "select_key.h"

namespace llm_decoder {
namespace gpu {

constexpr float kOctaves = 44.0f;       // weights from 1 down to 2^-44
constexpr int kMaxVocabSize = 1 << 19;  // of so many weights the sum stays below 2^63

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
         !p.allowed.is_empty(draw);
}

// What a draw's lists say of the tokens of one part of its row.
class SplitEdits {
 public:
  static constexpr int kSharedBytes = 2 * kSplitTokens * 4;

  GPU_FUNCTION SplitEdits(const DrawParams& params, int draw, int split)
      : params_(params),
        draw_(draw),
        first_(split * kSplitTokens),
        marks_(shared_array<std::uint32_t>(0, kSplitTokens)),
        bias_(shared_array<float>(kSplitTokens * 4, kSplitTokens)) {}

  // Every thread must come.
  GPU_FUNCTION void apply(float (&x)[kTokensPerThread]) const {
    for (int i = thread_index(); i < kSplitTokens; i += kSampleThreads) {
      marks_.store(i, 0);
      bias_.store(i, 0.0f);
    }
    sync_block();
    const auto mark = [&](std::uint32_t bit) { return [this, bit](int i, std::int64_t) { marks_.atomic_or(i, bit); }; };
    for_each(params_.prompt, mark(kInPrompt));
    for_each(params_.banned, mark(kBanned));
    for_each(params_.allowed, mark(kAllowed));
    for_each(params_.output, [&](int i, std::int64_t) { marks_.atomic_add(i, 1); });
    for_each(params_.bias, [&](int i, std::int64_t at) { bias_.store(i, params_.bias_values[at]); });
    sync_block();
    const float repetition = param(params_.repetition_penalty, draw_, 1.0f);
    const float presence = param(params_.presence_penalty, draw_, 0.0f);
    const float frequency = param(params_.frequency_penalty, draw_, 0.0f);
    const bool allows_all = params_.allowed.is_empty(draw_);
    GPU_UNROLL
    for (int i = 0; i < kTokensPerThread; ++i) {
      const int at = split_token(0, i);
      const std::uint32_t marks = marks_.load(at), n_used = marks & kCount;
      // Products are rounded by themselves, as on the CPU: made in float64 they cannot become part of an fma.
      if (repetition != 1.0f && (n_used > 0 || (marks & kInPrompt) != 0)) {
        x[i] = x[i] < 0.0f ? static_cast<float>(double{x[i]} * double{repetition}) : x[i] / repetition;
      }
      if (n_used > 0) x[i] -= static_cast<float>(static_cast<double>(n_used) * double{frequency}) + presence;
      x[i] += bias_.load(at);
      if ((marks & kBanned) != 0 || (!allows_all && (marks & kAllowed) == 0)) x[i] = -kInf;
    }
  }

 private:
  // How often a token is in the output, and whether it is in a list.
  static constexpr std::uint32_t kCount = (1u << 29) - 1, kInPrompt = 1u << 29, kBanned = 1u << 30, kAllowed = 1u << 31;

  template <class Fn>
  GPU_FUNCTION void for_each(const TokenLists& lists, const Fn& fn) const {
    const std::int64_t end = lists.end(draw_);
    for (std::int64_t at = lists.begin(draw_) + thread_index(); at < end; at += kSampleThreads) {
      const int i = lists.ids[at] - first_;
      if (i >= 0 && i < kSplitTokens) fn(i, at);
    }
  }

  const DrawParams& params_;
  const int draw_, first_;
  const Shared<std::uint32_t> marks_;
  const Shared<float> bias_;
};

constexpr int kSummariseScratchAt = SplitEdits::kSharedBytes;
constexpr int kSummariseSharedBytes = kSummariseScratchAt + 64 + 32;

// grid {n_draws, n_splits}
template <class H>
GPU_KERNEL summarise_split_kernel(const SamplingArgs args) {
  const int draw = block_index().x, split = block_index().y, n = args.vocab_size;
  const auto scratch = shared_array<std::uint64_t>(kSummariseScratchAt, kSampleThreads / kWarpSize);
  const auto float_scratch = shared_array<float>(kSummariseScratchAt + 64, kSampleThreads / kWarpSize);
  float x[kTokensPerThread];
  load_split<H>(args.logits, row_of_draw(args.params, draw), split, n, x);

  bool is_bad = false;
  float largest = -kInf;
  GPU_UNROLL
  for (int i = 0; i < kTokensPerThread; ++i) {
    is_bad = is_bad || !(x[i] < kInf);
    largest = x[i] > largest ? x[i] : largest;
  }
  const float raw_max = value_of_key(block_max(scratch, token_key(largest, 0)));
  float sum = 0.0f;
  GPU_UNROLL
  for (int i = 0; i < kTokensPerThread; ++i) sum += exp_below(x[i], raw_max);
  const float raw_sum = block_sum(float_scratch, sum);

  if (args.edited.data != nullptr && has_edits(args.params, draw)) {
    SplitEdits(args.params, draw, split).apply(x);
    GPU_UNROLL
    for (int v = 0; v < 2; ++v) {
      float values[kEight];
      GPU_UNROLL
      for (int k = 0; k < kEight; ++k) values[k] = x[v * kEight + k];
      store_eight<H>(args.edited, draw, split_token(split, v * kEight), n, values);
    }
  }
  std::uint64_t best = 0;
  GPU_UNROLL
  for (int i = 0; i < kTokensPerThread; ++i) {
    const int token = split_token(split, i);
    const std::uint64_t key = token < n && x[i] == x[i] ? token_key(x[i], token) : 0;
    best = key > best ? key : best;
  }
  best = block_max(scratch, is_bad ? kBadKey : best);
  if (thread_index() == 0) args.summaries[std::int64_t{draw} * args.n_splits + split] = {best, raw_max, raw_sum};

  if (args.bins == nullptr) return;
  BinTable& bins = args.bins[draw];
  for (int i = split * kSampleThreads + thread_index(); i < kBins; i += args.n_splits * kSampleThreads) {
    bins.weight[i] = 0;
    bins.n[i] = bins.n_gathered[i] = 0;
    if (i == 0) bins.weight_min_p = 0;
  }
}

// What tokens weigh in one draw.
struct Weights {
  float max, octaves_per_unit;

  // Octaves below the likeliest token.
  GPU_FUNCTION float octaves(float logit) const {
    const float below = max - logit;
    return below > 0.0f ? below * octaves_per_unit : 0.0f;
  }
  static GPU_FUNCTION bool has_weight(float octaves) { return octaves < kOctaves; }
  static GPU_FUNCTION int bin(float octaves) { return static_cast<int>(octaves * (kBins / kOctaves)); }
  static GPU_FUNCTION float weight(float octaves) { return exp2(-octaves); }
  // In units of 2^-44. The exponent says where the mantissa goes.
  static GPU_FUNCTION std::uint64_t whole(float weight) {
    const std::uint32_t bits = float_bits(weight);
    const std::uint64_t mantissa = (bits & 0x7fffffu) | 0x800000u;
    const int shift = static_cast<int>(bits >> 23) - (127 + 23 - 44);
    return shift >= 0 ? mantissa << shift : shift > -24 ? mantissa >> -shift : 0;
  }
};

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
  GPU_FUNCTION Weights weights() const { return {value_of_key(best), kLog2OfE / temperature}; }
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
  const Weights weights = draw.weights();
  const float min_p = param(args.params.min_p, draw.draw, 0.0f);
  std::uint64_t kept = 0;
  GPU_UNROLL
  for (int i = 0; i < kTokensPerThread; ++i) {
    const float octaves = weights.octaves(x[i]);
    if (!Weights::has_weight(octaves)) continue;
    const float weight = Weights::weight(octaves);
    const std::uint64_t whole = Weights::whole(weight);
    counts.atomic_add(Weights::bin(octaves), 1);
    sums.add(Weights::bin(octaves), whole);
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

// Running sums over the bins of a draw, the heaviest tokens' first. Made by a block, then read by any thread.
class BinLadder {
 public:
  static constexpr int kSharedBytes = kBins * (8 + 4) + 2 * 64;

  struct Bin {
    int index;
    std::uint64_t weight_before;
    std::uint32_t n_before, n;
  };

  GPU_FUNCTION explicit BinLadder(int byte_offset)
      : weight_(shared_array<std::uint64_t>(byte_offset, kBins)),
        n_(shared_array<std::uint32_t>(byte_offset + kBins * 8, kBins)),
        warp_weight_(shared_array<std::uint64_t>(byte_offset + kBins * 12, kSampleThreads / kWarpSize)),
        warp_n_(shared_array<std::uint32_t>(byte_offset + kBins * 12 + 64, kSampleThreads / kWarpSize)) {}

  GPU_FUNCTION void climb(const BinTable& bins) const {
    constexpr int kPerThread = kBins / kSampleThreads;
    const int first = thread_index() * kPerThread;
    std::uint64_t weight = 0;
    std::uint32_t n = 0;
    std::uint64_t weights[kPerThread];
    std::uint32_t ns[kPerThread];
    GPU_UNROLL
    for (int i = 0; i < kPerThread; ++i) {
      weights[i] = weight += bins.weight[first + i];
      ns[i] = n += bins.n[first + i];
    }
    const std::uint64_t weight_through = warp_running_sum(weight);
    const std::uint32_t n_through = warp_running_sum(n);
    if (lane() == kWarpSize - 1) {
      warp_weight_.store(warp_index(), weight_through);
      warp_n_.store(warp_index(), n_through);
    }
    sync_block();
    std::uint64_t weight_before = weight_through - weight;
    std::uint32_t n_before = n_through - n;
    for (int i = 0; i < warp_index(); ++i) {
      weight_before += warp_weight_.load(i);
      n_before += warp_n_.load(i);
    }
    GPU_UNROLL
    for (int i = 0; i < kPerThread; ++i) {
      weight_.store(first + i, weight_before + weights[i]);
      n_.store(first + i, n_before + ns[i]);
    }
    sync_block();
  }

  GPU_FUNCTION std::uint64_t weight() const { return weight_.load(kBins - 1); }
  GPU_FUNCTION std::uint32_t n() const { return n_.load(kBins - 1); }
  GPU_FUNCTION std::uint32_t n_before(int bin) const { return bin > 0 ? n_.load(bin - 1) : 0; }

  // The first bin through which the sum reaches target, from 1 to the whole sum.
  GPU_FUNCTION Bin bin_of_weight(std::uint64_t target) const {
    return first_bin([&](int bin) { return weight_.load(bin) >= target; });
  }
  GPU_FUNCTION Bin bin_of_count(std::uint32_t target) const {
    return first_bin([&](int bin) { return n_.load(bin) >= target; });
  }

 private:
  template <class Reaches>
  GPU_FUNCTION Bin first_bin(const Reaches& reaches) const {
    int low = 0, high = kBins - 1;
    while (low < high) {
      const int middle = (low + high) / 2;
      if (reaches(middle)) {
        high = middle;
      } else {
        low = middle + 1;
      }
    }
    return {low, low > 0 ? weight_.load(low - 1) : 0, n_before(low), n_.load(low) - n_before(low)};
  }

  Shared<std::uint64_t> weight_;  // through each bin
  Shared<std::uint32_t> n_;
  Shared<std::uint64_t> warp_weight_;
  Shared<std::uint32_t> warp_n_;
};

// A share of a sum, rounded up where that is asked; from 1 to the sum.
GPU_FUNCTION std::uint64_t share_of(std::uint64_t sum, double share, bool rounds_up) {
  const double exact = share * static_cast<double>(sum);
  auto whole = static_cast<std::uint64_t>(exact);
  if (rounds_up && static_cast<double>(whole) < exact) ++whole;
  return whole < 1 ? 1 : whole > sum ? sum : whole;
}

// The cuts of a draw as places in the order of tokens.
struct Cuts {
  std::uint32_t top_k;  // 0: none
  double top_p;         // 1: none
  bool has_min_p;
  double uniform;

  GPU_FUNCTION Cuts(const SamplingArgs& args, int draw, std::uint32_t n_weighed)
      : top_k(static_cast<std::uint32_t>(param(args.params.top_k, draw, 0))),
        top_p(param(args.params.top_p, draw, 1.0f)),
        has_min_p(param(args.params.min_p, draw, 0.0f) > 0.0f),
        uniform(philox_uniform(param(args.params.seed, draw, std::uint64_t{0}),
                               param(args.params.position, draw, std::int64_t{0}))) {
    if (top_k >= n_weighed) top_k = 0;  // what lies beyond weighs nothing
  }
  GPU_FUNCTION bool has_top_p() const { return top_p < 1.0; }
  // The running sum that the nucleus reaches.
  GPU_FUNCTION std::uint64_t nucleus(std::uint64_t sum) const { return share_of(sum, top_p, true); }
  // The running sum that the drawn token reaches, the first to be more than the uniform share.
  GPU_FUNCTION std::uint64_t drawn(std::uint64_t sum) const {
    const std::uint64_t below = static_cast<std::uint64_t>(uniform * static_cast<double>(sum));
    return below < sum ? below + 1 : sum;
  }
};

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
  const Weights weights = draw.weights();
  std::int32_t* const gathered = args.gathered + std::int64_t{draw.draw} * args.vocab_size;
  GPU_UNROLL
  for (int i = 0; i < kTokensPerThread; ++i) {
    const float octaves = weights.octaves(x[i]);
    if (!Weights::has_weight(octaves) || Weights::bin(octaves) > last) continue;
    const int bin = Weights::bin(octaves);
    gathered[ladder.n_before(bin) + atomic_add(&bins.n_gathered[bin], 1u)] = split_token(split, i);
  }
}

constexpr int kCachedKeys = 2048;
constexpr int kDrawKeysAt = BinLadder::kSharedBytes;
constexpr int kDrawSelectorAt = kDrawKeysAt + kCachedKeys * 8;
constexpr int kDrawSharedBytes = kDrawSelectorAt + KeySelector::kSharedBytes + 64;

// Finds places within a bin of one draw.
template <class H>
class BinSearch {
 public:
  GPU_FUNCTION BinSearch(const SamplingArgs& args, const Draw& draw)
      : rows_(draw.rows(args)),
        row_(draw.row(args)),
        weights_(draw.weights()),
        gathered_(args.gathered + std::int64_t{draw.draw} * args.vocab_size),
        keys_(shared_array<std::uint64_t>(kDrawKeysAt, kCachedKeys)),
        selector_(kDrawSelectorAt),
        scratch_(shared_array<std::uint64_t>(kDrawSelectorAt + KeySelector::kSharedBytes, kSampleThreads / kWarpSize)) {
  }

  // The running sum through the token that is the target-th of all.
  GPU_FUNCTION std::uint64_t weight_through_count(const BinLadder::Bin& bin, std::uint32_t target) {
    open(bin);
    const auto visit = [this](const auto& fn) { for_each_key(fn); };
    const std::uint64_t last = selector_.select(visit, CountKeys{}, target - bin.n_before).key;
    std::uint64_t weight = 0;
    for_each_key([&](std::uint64_t key) { weight += key >= last ? measure(key) : 0; });
    return bin.weight_before + block_sum(scratch_, weight);
  }

  struct Place {
    int token;
    std::uint64_t weight_through;
  };

  // The first token through which the running sum reaches target.
  GPU_FUNCTION Place place_of_weight(const BinLadder::Bin& bin, std::uint64_t target) {
    open(bin);
    const auto visit = [this](const auto& fn) { for_each_key(fn); };
    const auto by_weight = [this](std::uint64_t key) { return measure(key); };
    const SelectedKey selected = selector_.select(visit, by_weight, target - bin.weight_before);
    return {id_of_key(selected.key), bin.weight_before + selected.before + measure(selected.key)};
  }

 private:
  GPU_FUNCTION std::uint64_t measure(std::uint64_t key) const {
    return Weights::whole(Weights::weight(weights_.octaves(value_of_key(key))));
  }

  GPU_FUNCTION std::uint64_t load_key(int i) const {
    const int token = gathered_[begin_ + static_cast<std::uint32_t>(i)];
    return token_key(load_one<H>(rows_, row_, token), token);
  }

  // The keys of a bin are at hand from now on; a bin of too many is read where it lies.
  GPU_FUNCTION void open(const BinLadder::Bin& bin) {
    sync_block();  // all are done with the bin before
    begin_ = bin.n_before;
    n_ = static_cast<int>(bin.n);
    if (n_ <= kCachedKeys) {
      for (int i = thread_index(); i < n_; i += kSampleThreads) keys_.store(i, load_key(i));
    }
    sync_block();
  }

  template <class Fn>
  GPU_FUNCTION void for_each_key(const Fn& fn) const {
    for (int i = thread_index(); i < n_; i += kSampleThreads) fn(n_ <= kCachedKeys ? keys_.load(i) : load_key(i));
  }

  const RowArray rows_;
  const int row_;
  const Weights weights_;
  const std::int32_t* const gathered_;
  const Shared<std::uint64_t> keys_;
  const KeySelector selector_;
  const Shared<std::uint64_t> scratch_;
  std::uint32_t begin_ = 0;
  int n_ = 0;
};

// The drawn token. Every thread must come.
template <class H>
GPU_FUNCTION int draw_among_bins(const SamplingArgs& args, const Draw& draw) {
  const BinTable& bins = args.bins[draw.draw];
  const BinLadder ladder(0);
  ladder.climb(bins);
  const Cuts cuts(args, draw.draw, ladder.n());
  BinSearch<H> search(args, draw);
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

// Adds to each token's rank how many logits of a part of its row are larger. grid {n_draws, n_splits}
template <class H>
GPU_KERNEL count_larger_kernel(const SamplingArgs args) {
  const int draw = block_index().x, split = block_index().y;
  if (args.ranks[draw] == 0) return;
  const int row = row_of_draw(args.params, draw);
  const float own = load_one<H>(args.logits, row, args.tokens[draw]);
  float x[kTokensPerThread];
  load_split<H>(args.logits, row, split, args.vocab_size, x);
  std::uint32_t n_larger = 0;
  GPU_UNROLL
  for (int i = 0; i < kTokensPerThread; ++i) n_larger += x[i] > own ? 1 : 0;
  n_larger = reduce_add(n_larger);
  if (lane() == 0 && n_larger > 0) atomic_add(&args.ranks[draw], static_cast<std::int32_t>(n_larger));
}

// Of given tokens, in the place of drawn ones: args.tokens is read. grid {ceil(n_draws / warps of a block)}
template <class H>
GPU_KERNEL report_targets_kernel(const SamplingArgs args) {
  const int draw = block_index().x * (n_threads() / kWarpSize) + warp_index();
  if (draw >= args.n_draws) return;
  const RowSums sums = sums_of_row(args.summaries + std::int64_t{draw} * args.n_splits, args.n_splits);
  if (lane() != 0) return;
  const float logit = load_one<H>(args.logits, row_of_draw(args.params, draw), args.tokens[draw]);
  args.logprobs[draw] = sums.is_usable ? logit - sums.log_sum_exp : __builtin_nanf("");
  if (args.ranks != nullptr) args.ranks[draw] = sums.is_usable ? 1 : 0;
}

}  // namespace gpu
}  // namespace llm_decoder
