// Finds places in the order of tokens within a bin of one draw.
#pragma once

#include "bin_ladder.h"
#include "select_key.h"
#include "token_weights.h"

namespace llm_decoder {
namespace gpu {

template <class H>
class BinSearch {
 public:
  static constexpr int kCachedKeys = 2048;
  static constexpr int kSharedBytes = kCachedKeys * 8 + KeySelector::kSharedBytes + 64;

  // gathered: tokens of the row, those of a bin where the ladder says.
  GPU_FUNCTION BinSearch(int byte_offset, const RowArray& rows, int row, const TokenWeights& weights,
                         const std::int32_t* gathered)
      : rows_(rows),
        row_(row),
        weights_(weights),
        gathered_(gathered),
        keys_(shared_array<std::uint64_t>(byte_offset, kCachedKeys)),
        selector_(byte_offset + kCachedKeys * 8),
        scratch_(shared_array<std::uint64_t>(byte_offset + kSharedBytes - 64, kSampleThreads / kWarpSize)) {}

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
    return TokenWeights::whole(TokenWeights::weight(weights_.octaves(value_of_key(key))));
  }

  GPU_FUNCTION std::uint64_t load_key(int i) const {
    const int token = gathered_[begin_ + static_cast<std::uint32_t>(i)];
    return token_key(load_one<H>(rows_, row_, token), token);
  }

  // The keys of a bin are at hand from now on; a bin of too many is read where it lies. Since the bin before was looked
  // at, barriers have passed.
  GPU_FUNCTION void open(const BinLadder::Bin& bin) {
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
  const TokenWeights weights_;
  const std::int32_t* const gathered_;
  const Shared<std::uint64_t> keys_;
  const KeySelector selector_;
  const Shared<std::uint64_t> scratch_;
  std::uint32_t begin_ = 0;
  int n_ = 0;
};

}  // namespace gpu
}  // namespace llm_decoder
