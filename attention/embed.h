// Rows of an embedding table by token id. Bytes bound it: a thread moves eight elements, rows are spread over blocks.
#pragma once

#include "row_array.h"

namespace llm_decoder {
namespace gpu {

struct EmbedArgs {
  RowArray table;                  // [vocab_size, n_cols]; null data where it is of int8
  const std::int8_t* q = nullptr;  // the same shape, x ~ q * scale of its row
  std::int64_t q_stride = 0;
  bool q_is_aligned = false;          // every row begins at a multiple of 8 bytes
  const float* scale = nullptr;       // [vocab_size]
  const std::int32_t* ids = nullptr;  // [n_rows]; what is not in [0, vocab_size) gives zeros
  OutRowArray out;                    // [n_rows, n_cols]
  int vocab_size = 0, n_cols = 0;
};

constexpr int kEmbedThreads = 128;

// grid {n_rows, ceil(n_cols / (8 * kEmbedThreads))}
template <class H>
GPU_KERNEL embed_rows_kernel(const EmbedArgs args) {
  const std::int64_t row = block_index().x;
  const int i = (block_index().y * kEmbedThreads + thread_index()) * kEight, n = args.n_cols;
  if (i >= n) return;
  const std::int64_t id = args.ids[row];
  float x[kEight] = {};
  if (id >= 0 && id < args.vocab_size) {
    if (args.q == nullptr) {
      to_floats<H>(load_eight(args.table, id, i, n), args.table.is_float, x);
    } else {
      const std::int8_t* const from = args.q + id * args.q_stride + i;
      Vec<std::uint32_t, 2> words{};
      if (args.q_is_aligned && i + kEight <= n) {
        words = load_vec<2>(static_cast<const std::uint32_t*>(static_cast<const void*>(from)));
      } else {
        GPU_UNROLL
        for (int k = 0; k < kEight; ++k) {
          if (i + k < n) words.values[k / 4] |= std::uint32_t{static_cast<std::uint8_t>(from[k])} << (8 * (k % 4));
        }
      }
      const float scale = args.scale[id];
      GPU_UNROLL
      for (int k = 0; k < kEight; ++k) {
        x[k] = static_cast<float>(static_cast<std::int8_t>(words.values[k / 4] >> (8 * (k % 4)))) * scale;
      }
    }
  }
  store_eight<H>(args.out, row, i, n, x);
}

}  // namespace gpu
}  // namespace llm_decoder
