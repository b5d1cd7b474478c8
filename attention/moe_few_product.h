// Products of up to 8 rows with the weights of their experts: decoding. What bounds them is reading the weights, once.
//
// The operands of the tensor cores trade sides: 16 rows of weights are the left one, the rows of a the 8 columns of the
// right one, so that nothing is padded but what the instruction has anyway. Any order of channels will do as long as
// both sides have the same: a lane takes 16 bytes of a row of weights just as they lie, no shared memory, no shuffles,
// and the same channels of a, which stay in the first cache.
//
// A block has 16 rows of weights; its warps take turns along k, with up to eight loads of 16 bytes of weights a lane in
// flight. Their sums meet in the order of warps.
#pragma once

#include "activation.h"
#include "grouped_product.h"
#include "machine.h"
#include "widen_bytes.h"

namespace llm_decoder {
namespace gpu {

constexpr int kFewRows = 8;
constexpr int kFewWarps = 4;
constexpr int kFewThreads = kFewWarps * kWarpSize;
constexpr int kFewWeightRows = 16;
constexpr int kFewSharedBytes = kFewWarps * kFewWeightRows * kFewRows * 4;

// aligned_bytes: what rows of weights are aligned to, 16, or of bytes 8.
template <class T, class W, bool is_gated, int aligned_bytes>
class FewProductBlock {
 public:
  static constexpr int kColumns = is_gated ? kFewWeightRows / 2 : kFewWeightRows;

  GPU_FUNCTION FewProductBlock(const GroupedProductArgs& args, const MoeTile& tile, int first_column)
      : args_(args), tile_(tile), first_column_(first_column) {}

  GPU_FUNCTION void run() {
    find_rows();
    walk();
    gather_warps();
  }

 private:
  static constexpr int kLaneChannels = 16 / static_cast<int>(sizeof(W));
  static constexpr int kStepChannels = 4 * kLaneChannels;  // four lanes a row
  static constexpr int kSlots = 4;
  static constexpr int kAWords = kLaneChannels / 2;

  using Words = Vec<std::uint32_t, 4>;

  // What a lane has of a step: its two rows of weights, its row of a.
  struct Step {
    Words w[2];
    Words a[kAWords / 4];
  };

  // A lane's two rows of weights, lane / 4 and 8 after it: a column's gate and up, or two columns; its row of a.
  GPU_FUNCTION void find_rows() {
    const int own = lane() / 4;
    const std::int64_t n_weight_rows = is_gated ? 2 * args_.n : args_.n;
    const W* const w = static_cast<const W*>(args_.w) + tile_.expert * n_weight_rows * args_.k;
    const std::int64_t first = first_column_ + own, second = is_gated ? args_.n + first : first + 8;
    w_[0] = w + first * args_.k;
    w_[1] = second < n_weight_rows ? w + second * args_.k : w_[0];  // whose sums nobody reads
    has_a_ = own < tile_.n;
    a_ = static_cast<const T*>(args_.a) + (has_a_ ? args_.a_row(tile_.begin + own) * args_.a_stride : 0);
  }

  // A ring of steps in registers: the loads of a slot begin once its products are under way, so that those of all
  // others are always in flight. Loads that only met with products later would be moved there by the compiler.
  GPU_FUNCTION void walk() {
    const int n_steps = (args_.k + kStepChannels - 1) / kStepChannels;
    constexpr int kRound = kSlots * kFewWarps;
    Step steps[kSlots];
    GPU_UNROLL
    for (int i = 0; i < kSlots; ++i) load_step(warp_index() + i * kFewWarps, n_steps, steps[i]);
    for (int first = warp_index(); first < n_steps; first += kRound) {
      GPU_UNROLL
      for (int i = 0; i < kSlots; ++i) {
        const int step = first + i * kFewWarps;
        if (step < n_steps) multiply(steps[i]);
        load_step(step + kRound, n_steps, steps[i]);
      }
    }
  }

  // Channels past k are zeros of a, and of the weights the first of their row.
  GPU_FUNCTION void load_step(int i, int n_steps, Step& step) const {
    if (i >= n_steps) return;
    const int channel = i * kStepChannels + lane() % 4 * kLaneChannels;
    step.w[0] = load_weights(w_[0], channel);
    step.w[1] = load_weights(w_[1], channel);
    GPU_UNROLL
    for (int part = 0; part < kAWords / 4; ++part) {
      const int at = channel + part * 8;
      step.a[part] = Words{};
      if (has_a_ && at < args_.k) step.a[part] = load_vec<4>(reinterpret_cast<const std::uint32_t*>(a_ + at));
    }
  }

  GPU_FUNCTION void multiply(const Step& step) {
    GPU_UNROLL
    for (int word = 0; word < kAWords; word += 2) {
      const std::uint32_t left[4] = {weights_word(step.w[0], word), weights_word(step.w[1], word),
                                     weights_word(step.w[0], word + 1), weights_word(step.w[1], word + 1)};
      const std::uint32_t right[2] = {step.a[word / 4].values[word % 4], step.a[word / 4].values[word % 4 + 1]};
      mma_16x8x16<T>(sums_, left, right);
    }
  }

  // Channels 2 i and 2 i + 1 of a lane's.
  static GPU_FUNCTION std::uint32_t weights_word(const Words& w, int i) {
    if constexpr (sizeof(W) == 1) {
      return widen<T, W>(w.values[i / 2], i % 2 * 2, i % 2 * 2 + 1);
    } else {
      return w.values[i];
    }
  }

  GPU_FUNCTION Words load_weights(const W* row, int channel) const {
    const auto words_at = [&](int at) { return reinterpret_cast<const std::uint32_t*>(row + (at < args_.k ? at : 0)); };
    if constexpr (aligned_bytes == 16) {
      return load_once<4>(words_at(channel));
    } else {
      const auto low = load_vec<2>(words_at(channel)), high = load_vec<2>(words_at(channel + 8));
      return {low.values[0], low.values[1], high.values[0], high.values[1]};
    }
  }

  // [warp][row of weights][row of a]
  GPU_FUNCTION void gather_warps() const {
    const auto all = shared_array<float>(0, kFewWarps * kFewWeightRows * kFewRows);
    GPU_UNROLL
    for (int half = 0; half < 2; ++half) {
      const int at = (warp_index() * kFewWeightRows + half * 8 + lane() / 4) * kFewRows + lane() % 4 * 2;
      all.store_vec(at, Vec<float, 2>{sums_[half * 2], sums_[half * 2 + 1]});
    }
    sync_block();
    const int row = thread_index() / kColumns, own_column = thread_index() % kColumns;
    const int column = first_column_ + own_column;
    if (row >= tile_.n || column >= args_.n) return;
    const auto sum = [&](int weight_row) {
      float value = 0.0f;
      for (int warp = 0; warp < kFewWarps; ++warp) {
        value += all.load((warp * kFewWeightRows + weight_row) * kFewRows + row);
      }
      return value;
    };
    const std::int64_t n_weight_rows = is_gated ? 2 * args_.n : args_.n;
    const auto scale = [&](std::int64_t weight_row) {
      const float of_row = args_.w_scale != nullptr ? args_.w_scale[tile_.expert * n_weight_rows + weight_row] : 1.0f;
      return of_row / kUnitOf<W>;
    };
    float value = sum(own_column) * scale(column);
    if constexpr (is_gated)
      value = activate(value, Activation::silu) * (sum(own_column + 8) * scale(std::int64_t{args_.n} + column));
    const std::int64_t target = args_.out_row(tile_.begin + row), at = target * args_.out_stride + column;
    value *= args_.weight(target);
    if (!is_gated && args_.bias != nullptr) value += args_.template bias_of<T>(column);
    if (!is_gated && args_.out_is_float) {
      static_cast<float*>(args_.out)[at] = value;
    } else {
      static_cast<T*>(args_.out)[at] = from_float<T>(value);
    }
  }

  const GroupedProductArgs& args_;
  const MoeTile tile_;
  const int first_column_;
  const W* w_[2];
  const T* a_;
  bool has_a_;
  float sums_[4] = {};
};

// grid.x: max_tiles * ceil(n / kColumns). Tiles of one expert are neighbours and read its weights at the same time.
template <class T, class W, bool is_gated, int aligned_bytes>
GPU_KERNEL few_product_kernel(const GroupedProductArgs args) {
  using Block = FewProductBlock<T, W, is_gated, aligned_bytes>;
  MoeTile tile;
  if (!args.find_tile(block_index().x % args.max_tiles, kFewRows, tile)) return;
  Block block(args, tile, block_index().x / args.max_tiles * Block::kColumns);
  block.run();
}

}  // namespace gpu
}  // namespace llm_decoder
