// A row that threads hold together in shared memory as float32 while they go over it several times: long rows by a
// block, short ones by a warp, several in a block. Each thread meets its own elements alone, eight at a time.
#pragma once

#include "block_reduce.h"
#include "row_array.h"

namespace llm_decoder {
namespace gpu {

constexpr int kMaxRowThreads = 512;
constexpr int kShortRow = 512;     // elements that a warp holds
constexpr int kShortRowWarps = 4;  // of a block of short rows
constexpr int kRowScratchBytes = kMaxRowThreads / kWarpSize * 4;

// Floats that a row takes: the first four of every eight, then the other four, so that lanes next to each other meet
// different banks.
constexpr int held_floats(int n_cols) { return (n_cols + kEight - 1) / kEight * kEight; }

constexpr int held_rows_of_block(int n_cols) { return n_cols <= kShortRow ? kShortRowWarps : 1; }

inline LaunchShape held_row_shape(std::int64_t n_rows, int n_cols) {
  const int n_held = held_rows_of_block(n_cols);
  const auto n_blocks = static_cast<int>(ceil_div(n_rows, n_held));
  const auto n_block_threads = static_cast<int>(round_up(ceil_div(n_cols, kEight), kWarpSize));
  const int n = n_held > 1                         ? kShortRowWarps * kWarpSize
                : n_block_threads < kMaxRowThreads ? n_block_threads
                                                   : kMaxRowThreads;
  return {{n_blocks, 1, 1}, n, kRowScratchBytes + n_held * held_floats(n_cols) * 4};
}

class HeldRow {
 public:
  GPU_FUNCTION explicit HeldRow(int n_cols)
      : n_cols_(n_cols),
        is_short_(n_cols <= kShortRow),
        row_(is_short_ ? std::int64_t{block_index().x} * kShortRowWarps + warp_index() : block_index().x),
        half_(held_floats(n_cols) / 2),
        held_(shared_array<float>(kRowScratchBytes, held_rows_of_block(n_cols) * held_floats(n_cols))
                  .part(is_short_ ? warp_index() * held_floats(n_cols) : 0, held_floats(n_cols))) {}

  GPU_FUNCTION std::int64_t row() const { return row_; }

  // fn(i) for each eighth element i that this thread begins at.
  template <class Fn>
  GPU_FUNCTION void for_each_eight(const Fn& fn) const {
    const int step = (is_short_ ? kWarpSize : n_threads()) * kEight;
    for (int i = (is_short_ ? lane() : thread_index()) * kEight; i < n_cols_; i += step) fn(i);
  }

  GPU_FUNCTION void store(int i, const float (&x)[kEight]) const {
    held_.store_vec(i / 2, Vec<float, 4>{x[0], x[1], x[2], x[3]});
    held_.store_vec(half_ + i / 2, Vec<float, 4>{x[4], x[5], x[6], x[7]});
  }
  GPU_FUNCTION void load(int i, float (&x)[kEight]) const {
    const Vec<float, 4> low = held_.load_vec<4>(i / 2), high = held_.load_vec<4>(half_ + i / 2);
    GPU_UNROLL
    for (int k = 0; k < 4; ++k) {
      x[k] = low.values[k];
      x[4 + k] = high.values[k];
    }
  }

  // Over the threads of the row, all of which must come.
  GPU_FUNCTION float sum(float x) const {
    return is_short_ ? warp_sum(x) : block_sum(shared_array<float>(0, kMaxRowThreads / kWarpSize), x);
  }
  GPU_FUNCTION std::uint32_t max(std::uint32_t x) const {
    return is_short_ ? warp_max(x) : block_max(shared_array<std::uint32_t>(0, kMaxRowThreads / kWarpSize), x);
  }

 private:
  const int n_cols_;
  const bool is_short_;
  const std::int64_t row_;
  const int half_;
  const Shared<float> held_;
};

}  // namespace gpu
}  // namespace llm_decoder
