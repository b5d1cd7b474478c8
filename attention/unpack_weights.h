// Rows of packed weights (pack_gpu_weights.h) as they were before, row-major and scaled: for products of many rows,
// which want them so, and for embeddings, so that a table that is also the head is held once.
//
// Bytes bound it. A thread has a chunk of eight inputs of an output, which lies together in every format. Of a range of
// rows a warp has all chunks of a brick for an output and for the one 8 after it, whose bytes are neighbours: it reads
// whole sectors and writes whole lines. Rows by id are read where they lie, 32 bytes or more of each of a brick's loads
// that have something of them, of w8, f8 and w4 the half of that.
#pragma once

#include "pack_gpu_weights.h"
#include "row_array.h"
#include "widen_bytes.h"

namespace llm_decoder {
namespace gpu {

struct UnpackWeightsArgs {
  const std::uint32_t* w = nullptr;   // packed, aligned to 16 bytes
  const float* scale = nullptr;       // [n], or null for 1
  const std::int32_t* ids = nullptr;  // [n_rows]; what is not in [0, n) gives zeros. Null: begin, begin + 1, ...
  int begin = 0;
  OutRowArray out;  // [n_rows, k]
  int n_rows = 0, n = 0, k = 0;
};

constexpr int kUnpackThreads = 256;
constexpr int kUnpackTile = 16;  // rows of a block, of a range: a tile of a brick

constexpr int brick_chunks(GpuWeightFormat format) { return brick_shape(format).inputs() / kEight; }
// Bricks side by side that a block has, of a range.
constexpr int unpack_bricks(GpuWeightFormat format) { return kUnpackThreads / (kUnpackTile * brick_chunks(format)); }

// Inputs [8 chunk, 8 chunk + 8) of output `row`, before its scale. H: the type of half weights.
template <class H, GpuWeightFormat format>
GPU_FUNCTION void load_weights(const UnpackWeightsArgs& args, std::int64_t row, int chunk, float (&x)[kEight]) {
  constexpr BrickShape kShape = brick_shape(format);
  constexpr int kChunks = brick_chunks(format), kRunChunks = kShape.run / kEight, kLoadWords = kTileLoadBytes / 4;
  const std::int64_t n_columns = (args.k + kShape.inputs() - 1) / kShape.inputs();
  const std::int64_t brick = row / kBrickOutputs * n_columns + chunk / kChunks;
  const int in_brick = static_cast<int>(row % kBrickOutputs), tile = in_brick / 16, half = in_brick / 8 % 2;
  const int owner = in_brick % 8 * 4 + chunk % kChunks / kRunChunks;  // the lane that small_product.h gives them to
  const int in_run = chunk % kRunChunks;
  const std::uint32_t* const from = args.w + brick * (kShape.bytes() / 4);
  const std::uint32_t* const of_lane = from + tile * kShape.tile_loads * kLoadWords + owner * 4;
  if constexpr (format == GpuWeightFormat::half) {
    to_floats<H>({load_vec<4>(of_lane + (2 * in_run + half) * kLoadWords), {}}, false, x);
  } else if constexpr (format == GpuWeightFormat::w8) {
    const auto words = load_vec<2>(of_lane + in_run * kLoadWords + half * 2);
    GPU_UNROLL
    for (int i = 0; i < kEight; ++i) {
      x[i] = static_cast<float>(static_cast<int>(words.values[i / 4] >> (8 * (i % 4)) & 0xffu) - 128);
    }
  } else if constexpr (format == GpuWeightFormat::f8) {
    const auto words = load_vec<2>(of_lane + in_run * kLoadWords + half * 2);
    GPU_UNROLL
    for (int i = 0; i < kEight; i += 2) {  // of Bf16 whatever H is: it has every value, and is half a float32
      const Vec<float, 2> pair = unpack<Bf16>(widen_finite_fp8<Bf16>(words.values[i / 4], i % 4, i % 4 + 1));
      x[i] = pair.values[0];
      x[i + 1] = pair.values[1];
    }
  } else {
    const std::uint32_t q = load_vec<1>(of_lane + in_run / 2 * kLoadWords + half * 2 + in_run % 2).values[0];
    const std::uint32_t group =
        load_vec<1>(from + kBrickTiles * kShape.tile_loads * kLoadWords + owner * kBrickTiles + tile).values[0] >>
        (16 * half);
    const int scale = static_cast<int>(group & 0xffu), minimum = static_cast<int>(group >> 8 & 0xffu) - 128;
    GPU_UNROLL
    for (int i = 0; i < kEight; ++i) {
      x[i] = static_cast<float>(scale * static_cast<int>(q >> (i % 2 * 16 + i / 2 * 4) & 15u) + minimum);
    }
  }
}

// grid: of ids {n_rows, ceil(k / (8 kUnpackThreads))}; of a range {tiles of 16 that it touches, ceil(brick columns /
// unpack_bricks)}
template <class H, GpuWeightFormat format>
GPU_KERNEL unpack_weights_kernel(const UnpackWeightsArgs args) {
  constexpr int kChunks = brick_chunks(format);
  std::int64_t out_row, row;
  int chunk;
  if (args.ids != nullptr) {
    out_row = block_index().x;
    row = args.ids[out_row];
    chunk = block_index().y * kUnpackThreads + thread_index();
  } else {
    const int at = thread_index() / kChunks, in_tile = at % kUnpackTile;
    row = (std::int64_t{args.begin} / kUnpackTile + block_index().x) * kUnpackTile + in_tile % 2 * 8 + in_tile / 2;
    out_row = row - args.begin;
    chunk = (block_index().y * unpack_bricks(format) + at / kUnpackTile) * kChunks + thread_index() % kChunks;
  }
  if (out_row < 0 || out_row >= args.n_rows || chunk * kEight >= args.k) return;
  float x[kEight] = {};
  if (row >= 0 && row < args.n) {
    load_weights<H, format>(args, row, chunk, x);
    if (args.scale != nullptr) {
      const float scale = args.scale[row];
      GPU_UNROLL
      for (int i = 0; i < kEight; ++i) x[i] *= scale;
    }
  }
  store_eight<H>(args.out, out_row, chunk * kEight, args.k, x);
}

}  // namespace gpu
}  // namespace llm_decoder
