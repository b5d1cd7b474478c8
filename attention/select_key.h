// Selection without sorting: the key at which a running sum over keys, the largest first, reaches a target. A block
// descends through the digits of the keys with a histogram of sums a digit, beginning at the first bit in which any
// keys differ. All sums are of whole numbers, so that they are the same in whatever order they are made.
#pragma once

#include <type_traits>

#include "block_reduce.h"
#include "machine.h"

namespace llm_decoder {
namespace gpu {

constexpr int kSelectThreads = 256;
constexpr int kDigits = 256;
constexpr int kDigitBits = 8;

// 64-bit sums in shared memory, as two words each: a carry is seen by whoever makes it.
struct SharedSums {
  Shared<std::uint32_t> low, high;

  GPU_FUNCTION void add(int i, std::uint64_t x) const {
    const auto x_low = static_cast<std::uint32_t>(x);
    const std::uint32_t old = low.atomic_add(i, x_low);
    const std::uint32_t x_high = static_cast<std::uint32_t>(x >> 32) + (old + x_low < x_low ? 1u : 0u);
    if (x_high != 0) high.atomic_add(i, x_high);
  }
  GPU_FUNCTION std::uint64_t load(int i) const { return std::uint64_t{high.load(i)} << 32 | low.load(i); }
  GPU_FUNCTION void clear(int i) const {
    low.store(i, 0);
    high.store(i, 0);
  }
};

// The measure by which every key counts as one.
struct CountKeys {
  GPU_FUNCTION std::uint64_t operator()(std::uint64_t) const { return 1; }
};

struct SelectedKey {
  std::uint64_t key;
  std::uint64_t before;  // the running sum before it
};

class KeySelector {
 public:
  static constexpr int kSharedBytes = 3 * kDigits * 4 + 2 * 8 * 8;

  GPU_FUNCTION explicit KeySelector(int byte_offset)
      : counts_(shared_array<std::uint32_t>(byte_offset, kDigits)),
        sums_{shared_array<std::uint32_t>(byte_offset + kDigits * 4, kDigits),
              shared_array<std::uint32_t>(byte_offset + 2 * kDigits * 4, kDigits)},
        scratch_(shared_array<std::uint64_t>(byte_offset + 3 * kDigits * 4, kSelectThreads / kWarpSize)),
        found_(shared_array<std::uint64_t>(byte_offset + 3 * kDigits * 4 + 64, 4)) {}

  // visit(fn) calls fn(key) for each key that this thread brings; the block brings at least one, none twice.
  // measure(key) is what a key adds to the sum. target: from 1 to the sum over all keys. Every thread must come.
  template <class Visit, class Measure>
  GPU_FUNCTION SelectedKey select(const Visit& visit, const Measure& measure, std::uint64_t target) const {
    std::uint64_t largest = 0, smallest_inverted = 0;
    visit([&](std::uint64_t key) {
      largest = key > largest ? key : largest;
      smallest_inverted = ~key > smallest_inverted ? ~key : smallest_inverted;
    });
    largest = block_max(scratch_, largest);
    const std::uint64_t differing = largest ^ ~block_max(scratch_, smallest_inverted);
    int bits_left = 64;
    while (bits_left > 0 && differing >> (bits_left - 1) == 0) --bits_left;

    SelectedKey selected{shifted(largest, bits_left), 0};  // the key's digits so far
    while (bits_left > 0) {
      const int width = bits_left < kDigitBits ? bits_left : kDigitBits;
      const Digit digit = select_digit(visit, measure, target - selected.before, selected.key, bits_left, width);
      selected.key = selected.key << width | digit.value;
      selected.before += digit.before;
      bits_left -= width;
      if (digit.n_keys == 1 && bits_left > 0) {
        visit([&](std::uint64_t key) {
          if (shifted(key, bits_left) == selected.key) found_.store(3, key);
        });
        sync_block();
        selected.key = found_.load(3);
        bits_left = 0;
      }
    }
    return selected;
  }

 private:
  struct Digit {
    std::uint64_t value, before, n_keys;
  };

  static GPU_FUNCTION std::uint64_t shifted(std::uint64_t key, int n_bits) { return n_bits < 64 ? key >> n_bits : 0; }

  // The digit below `prefix` at which the running sum reaches `target`.
  template <class Visit, class Measure>
  GPU_FUNCTION Digit select_digit(const Visit& visit, const Measure& measure, std::uint64_t target,
                                  std::uint64_t prefix, int bits_left, int width) const {
    for (int i = thread_index(); i < kDigits; i += n_threads()) {
      counts_.store(i, 0);
      if constexpr (!std::is_same_v<Measure, CountKeys>) sums_.clear(i);
    }
    sync_block();
    const std::uint64_t last = (1u << width) - 1;
    visit([&](std::uint64_t key) {
      if (shifted(key, bits_left) != prefix) return;
      const int place = static_cast<int>(last - (shifted(key, bits_left - width) & last));  // the largest digit first
      counts_.atomic_add(place, 1);
      if constexpr (!std::is_same_v<Measure, CountKeys>) sums_.add(place, measure(key));
    });
    const auto sum_of = [&](int place) -> std::uint64_t {
      if constexpr (std::is_same_v<Measure, CountKeys>) {
        return counts_.load(place);
      } else {
        return sums_.load(place);
      }
    };
    sync_block();
    if (warp_index() == 0) {
      constexpr int kPerLane = kDigits / kWarpSize;
      std::uint64_t sum = 0;
      for (int i = 0; i < kPerLane; ++i) sum += sum_of(lane() * kPerLane + i);
      std::uint64_t before = warp_running_sum(sum) - sum;
      for (int i = 0; i < kPerLane; ++i) {
        const int place = lane() * kPerLane + i;
        const std::uint64_t through = before + sum_of(place);
        if (before < target && target <= through) {
          found_.store(0, last - static_cast<std::uint64_t>(place));
          found_.store(1, before);
          found_.store(2, counts_.load(place));
        }
        before = through;
      }
    }
    sync_block();
    return {found_.load(0), found_.load(1), found_.load(2)};
  }

  Shared<std::uint32_t> counts_;
  SharedSums sums_;
  Shared<std::uint64_t> scratch_, found_;
};

}  // namespace gpu
}  // namespace llm_decoder
