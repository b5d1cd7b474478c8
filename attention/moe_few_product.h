// Products of up to 8 rows with the weights of their experts: decoding. What bounds them is reading the weights, once.
//
// The operands of the tensor cores trade sides: 16 rows of weights are the left one, the rows of a the 8 columns of the
// right one, so that nothing is padded but what the instruction has anyway. Any order of channels will do as long as
// both sides have the same: a lane takes 16 bytes of a row of weights just as they lie, no shared memory, no shuffles,
// and the same channels of a, which stay in the first cache.
//
// A block has 16 rows of weights; its warps take turns along k, a warp has eight loads of 16 bytes a lane in flight.
// Their sums meet in the order of warps.
#pragma once

#include "grouped_product.h"
#include "machine.h"

namespace llm_decoder {
namespace gpu {

constexpr int kFewRows = 8;
constexpr int kFewWarps = 4;
constexpr int kFewThreads = kFewWarps * kWarpSize;
constexpr int kFewWeightRows = 16;
constexpr int kFewSharedBytes = kFewWarps * kFewWeightRows * kFewRows * 4;

template <class T, class W, bool is_gated>
class FewProductBlock {
 public:
  static constexpr int kColumns = is_gated ? kFewWeightRows / 2 : kFewWeightRows;

  GPU_FUNCTION FewProductBlock(const GroupedProductArgs& args, const MoeTile& tile, int first_column)
      : args_(args), tile_(tile), first_column_(first_column) {}

  GPU_FUNCTION void run() {
    find_rows();
    const int n_steps = (args_.k + kStepChannels - 1) / kStepChannels;
    for (int first = warp_index(); first < n_steps; first += kFewWarps * kUnroll) multiply(first);
    gather_warps();
  }

 private:
  static constexpr int kLaneChannels = 16 / static_cast<int>(sizeof(W));
  static constexpr int kStepChannels = 4 * kLaneChannels;  // four lanes a row
  static constexpr int kUnroll = 4;
  static constexpr int kAWords = kLaneChannels / 2;

  struct Words {
    std::uint32_t values[4];
  };

  // A lane's two rows of weights, lane / 4 and 8 after it: a column's gate and up, or two columns; its row of a.
  GPU_FUNCTION void find_rows() {
    const int own = lane() / 4;
    const std::int64_t n_weight_rows = is_gated ? 2 * args_.n : args_.n;
    const W* const w = static_cast<const W*>(args_.w) + tile_.expert * n_weight_rows * args_.k;
    const std::int64_t first = first_column_ + own, second = is_gated ? args_.n + first : first + 8;
    has_second_ = is_gated || second < args_.n;
    w_[0] = w + first * args_.k;
    w_[1] = has_second_ ? w + second * args_.k : w_[0];
    has_a_ = own < tile_.n;
    a_ = static_cast<const T*>(args_.a) + (has_a_ ? args_.a_row(tile_.begin + own) * args_.a_stride : 0);
  }

  // The first of a lane's channels.
  static GPU_FUNCTION int channel_of(int step) { return step * kStepChannels + lane() % 4 * kLaneChannels; }

  // kUnroll steps of this warp, from step `first` on: all their loads, those of the weights first, then their products.
  GPU_FUNCTION void multiply(int first) {
    Words w[kUnroll][2];
    std::uint32_t a[kUnroll][kAWords];
    GPU_UNROLL
    for (int i = 0; i < kUnroll; ++i) {
      const int channel = channel_of(first + i * kFewWarps);
      w[i][0] = load_weights(w_[0], channel, true);
      w[i][1] = load_weights(w_[1], channel, has_second_);
    }
    GPU_UNROLL
    for (int i = 0; i < kUnroll; ++i) {
      const int channel = channel_of(first + i * kFewWarps);
      GPU_UNROLL
      for (int part = 0; part < kAWords / 4; ++part) load_a(channel + part * 8, a[i], part * 4);
    }
    GPU_UNROLL
    for (int i = 0; i < kUnroll; ++i) {
      GPU_UNROLL
      for (int word = 0; word < kAWords; word += 2) {
        const std::uint32_t left[4] = {weights_word(w[i][0], word), weights_word(w[i][1], word),
                                       weights_word(w[i][0], word + 1), weights_word(w[i][1], word + 1)};
        const std::uint32_t right[2] = {a[i][word], a[i][word + 1]};
        mma_16x8x16<T>(sums_, left, right);
      }
    }
  }

  // Channels 2 i and 2 i + 1 of a lane's.
  static GPU_FUNCTION std::uint32_t weights_word(const Words& w, int i) {
    if constexpr (sizeof(W) == 1) {
      return widen_bytes<T>(w.values[i / 2], i % 2 * 2);
    } else {
      return w.values[i];
    }
  }

  GPU_FUNCTION Words load_weights(const W* row, int channel, bool is_row) const {
    Words out{};
    if (sizeof(W) == 1 && args_.k % 16 != 0) {  // rows are aligned to 8 bytes, and end in the middle of a lane's
      GPU_UNROLL
      for (int half = 0; half < 2; ++half) {
        if (is_row && channel + half * 8 < args_.k) {
          const auto two = load_vec<2>(reinterpret_cast<const std::uint32_t*>(row + channel + half * 8));
          out.values[half * 2] = two.values[0];
          out.values[half * 2 + 1] = two.values[1];
        }
      }
    } else if (is_row && channel < args_.k) {
      const auto four = load_vec<4>(reinterpret_cast<const std::uint32_t*>(row + channel));
      GPU_UNROLL
      for (int i = 0; i < 4; ++i) out.values[i] = four.values[i];
    }
    return out;
  }

  GPU_FUNCTION void load_a(int channel, std::uint32_t (&a)[kAWords], int begin) const {
    Vec<std::uint32_t, 4> four{};
    if (has_a_ && channel < args_.k) four = load_vec<4>(reinterpret_cast<const std::uint32_t*>(a_ + channel));
    GPU_UNROLL
    for (int i = 0; i < 4; ++i) a[begin + i] = four.values[i];
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
      return args_.w_scale != nullptr ? args_.w_scale[tile_.expert * n_weight_rows + weight_row] : 1.0f;
    };
    float value = sum(own_column) * scale(column);
    if constexpr (is_gated) value = silu(value) * (sum(own_column + 8) * scale(std::int64_t{args_.n} + column));
    const std::int64_t target = args_.out_row(tile_.begin + row);
    static_cast<T*>(args_.out)[target * args_.out_stride + column] = from_float<T>(value * args_.weight(target));
  }

  const GroupedProductArgs& args_;
  const MoeTile tile_;
  const int first_column_;
  const W* w_[2];
  const T* a_;
  bool has_second_, has_a_;
  float sums_[4] = {};
};

// grid.x: max_tiles * ceil(n / kColumns). Tiles of one expert are neighbours and read its weights at the same time.
template <class T, class W, bool is_gated>
GPU_KERNEL few_product_kernel(const GroupedProductArgs args) {
  using Block = FewProductBlock<T, W, is_gated>;
  MoeTile tile;
  if (!args.find_tile(block_index().x % args.max_tiles, kFewRows, tile)) return;
  Block block(args, tile, block_index().x / args.max_tiles * Block::kColumns);
  block.run();
}

}  // namespace gpu
}  // namespace llm_decoder
