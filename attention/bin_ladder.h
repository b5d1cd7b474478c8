// Running sums over the bins of a draw, the heaviest tokens' first, and the places in them that a draw asks for.
#pragma once

#include "block_reduce.h"
#include "llm_decoder/philox.h"
#include "logit_split.h"

namespace llm_decoder {
namespace gpu {

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

}  // namespace gpu
}  // namespace llm_decoder
