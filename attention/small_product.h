// out[m, n] = a[m, k] . w[n, k] * w_scale[n] + bias[n] for few rows m, as decoding has them: every weight is read once,
// used for at most 64 rows, and its bytes are what the time goes into.
//
// What bounds it: memory. 4.8 TB/s at a latency of about a microsecond under load is 4.8 MB on their way at any time,
// 36 KB in each of 132 multiprocessors (Little's law). A lane therefore has a whole brick's weights on their way to its
// registers (16 loads of 16 bytes, 9 for w4) while it multiplies the brick before: 32 KB a block of 4 warps, 18 KB for
// w4. The plan cuts k until there are blocks for 48 KB in each multiprocessor, all at once, so that none waits for a
// second wave. No block waits in the loop but for activations: slices of them come by asynchronous copies, a slice
// ahead.
//
// The rows of w are the 16-row side of the product, the rows of a its 8 columns, so that one row of a costs no more
// than eight. pack_gpu_weights.h has the weights in the order in which lanes want them as operands: nothing of them
// goes through shared memory. Integers become Bf16 or Fp16 in registers: w8 costs a permute and an fma for two weights,
// w4 two ands, two fmas and half a shift for four; at 4.8 TB/s a multiprocessor gets 21 bytes a cycle: 21 (w8) and 49
// (w4) of the 128 instructions that its lanes begin in a cycle.
//
// Four warps share a block's inputs, brick by brick in turn; each has all outputs of a brick, or from 32 rows of a on
// half of them. Their sums meet in shared memory in the order of the warps, and those of the blocks that share k in the
// order of the splits, by whichever block comes last. Which warp sums what depends on n and k alone: a row's result is
// the same bits whatever the other rows and however many.
#pragma once

#include "machine.h"
#include "pack_gpu_weights.h"
#include "widen_bytes.h"

namespace llm_decoder {
namespace gpu {

struct SmallProductArgs {
  const void* a = nullptr;  // [m, k] of Bf16 or Fp16, rows aligned to 16 bytes
  std::int64_t a_stride = 0;
  const std::uint32_t* w = nullptr;  // packed, aligned to 16 bytes
  const float* w_scale = nullptr;    // [n], or null for 1
  const float* bias = nullptr;       // [n] or null
  void* out = nullptr;               // [m, n] of the type of a, or float
  std::int64_t out_stride = 0;
  bool out_is_float = false;
  int m = 0, n = 0, k = 0;

  int bricks_per_split = 0;
  float* partials = nullptr;  // [n / 64 rows of bricks][n_splits][m][64], where there are several splits
  int* n_arrived = nullptr;   // [n / 64], zeros before and after
};

constexpr int kProductWarpsK = 4;  // that share a block's inputs

using LoadWords = Vec<std::uint32_t, 4>;  // that a lane loads at once

// Each format says how a lane's loads of a tile of 16 outputs become operands: fragments() gives those of inputs
// 8 pair to 8 pair + 7 of its run, two products' worth.
template <class T>
struct HalfWeights {
  static constexpr GpuWeightFormat kFormat = GpuWeightFormat::half;
  static constexpr float kUnit = 1.0f;
  static constexpr bool kHasGroups = false;
  static constexpr int kLoads = brick_shape(kFormat).tile_loads;
  struct Group {};

  static GPU_FUNCTION void fragments(const LoadWords (&loads)[kLoads], const Group&, int pair,
                                     std::uint32_t (&w)[2][4]) {
    GPU_UNROLL
    for (int i = 0; i < 8; ++i) w[i / 4][i % 4] = loads[2 * pair + i % 2].values[i / 2];
  }
};

template <class T>
struct W8Weights {
  static constexpr GpuWeightFormat kFormat = GpuWeightFormat::w8;
  static constexpr float kUnit = kWidenedUnit;
  static constexpr bool kHasGroups = false;
  static constexpr int kLoads = brick_shape(kFormat).tile_loads;
  struct Group {};

  static GPU_FUNCTION void fragments(const LoadWords (&loads)[kLoads], const Group&, int pair,
                                     std::uint32_t (&w)[2][4]) {
    GPU_UNROLL
    for (int i = 0; i < 8; ++i) {
      const std::uint32_t word = loads[pair].values[i / 4 + i % 2 * 2];
      w[i / 4][i % 4] = i % 4 < 2 ? widen_biased<T>(word, 0, 1) : widen_biased<T>(word, 2, 3);
    }
  }
};

// A weight is group_scale * q + group_min. Four bits in the low or the high half of a byte are q or 16 q times the
// smallest number of T, as bytes are in widen_bytes.h, so the group's scale takes the place of the power of two there
// and its minimum that of the bias: still one fma.
template <class T>
struct W4Weights {
  static constexpr GpuWeightFormat kFormat = GpuWeightFormat::w4;
  static constexpr float kUnit = kWidenedUnit;
  static constexpr bool kHasGroups = true;
  static constexpr int kLoads = brick_shape(kFormat).tile_loads;
  struct Group {
    std::uint32_t low[2], high[2], minimum[2];  // of outputs lane / 4 and lane / 4 + 8, twice in a word each
  };

  static GPU_FUNCTION Group group_of(std::uint32_t word) {
    constexpr int kExponent = kWidenedExponent - kSmallestExponent<T>;
    constexpr int kOneIsLast = std::is_same_v<T, Bf16> ? 7 : 10;  // of the powers of two, whose last place is 1
    constexpr std::uint32_t kZeros = kNegativePair;
    Group group;
    GPU_UNROLL
    for (int half = 0; half < 2; ++half) {
      const std::uint32_t scale = fma_pairs<T>(spread_bytes(word, 2 * half, 2 * half) | power_pair<T>(kOneIsLast),
                                               power_pair<T>(0), power_pair<T>(kOneIsLast) | kNegativePair);
      group.low[half] = fma_pairs<T>(scale, power_pair<T>(kExponent), kZeros);
      group.high[half] = fma_pairs<T>(scale, power_pair<T>(kExponent - 4), kZeros);
      group.minimum[half] = widen_biased<T>(word, 2 * half + 1, 2 * half + 1);
    }
    return group;
  }

  static GPU_FUNCTION void fragments(const LoadWords (&loads)[kLoads], const Group& group, int pair,
                                     std::uint32_t (&w)[2][4]) {
    GPU_UNROLL
    for (int half = 0; half < 2; ++half) {
      const std::uint32_t word = loads[pair / 2].values[2 * half + pair % 2];
      GPU_UNROLL
      for (int i = 0; i < 2; ++i) {
        const std::uint32_t bits = i == 0 ? word : word >> 8;
        w[i][half] = fma_pairs<T>(bits & 0x000f000fu, group.low[half], group.minimum[half]);
        w[i][2 + half] = fma_pairs<T>(bits & 0x00f000f0u, group.high[half], group.minimum[half]);
      }
    }
  }
};

template <class T_, class Weights_, int row_tiles_, int output_tiles_>
struct ProductTile {
  using T = T_;
  using Weights = Weights_;
  static constexpr BrickShape kBrick = brick_shape(Weights::kFormat);
  static constexpr int kRowTiles = row_tiles_;        // of 8 rows of a
  static constexpr int kOutputTiles = output_tiles_;  // of 16 outputs, a warp
  static constexpr int kRows = 8 * kRowTiles;
  static constexpr int kWarpsN = kBrickTiles / kOutputTiles;
  static constexpr int kThreads = kProductWarpsK * kWarpsN * kWarpSize;

  // Activations come in slices of so many inputs, two of them in shared memory. Within a brick's inputs 16-byte chunk c
  // of lane t lies at 4 c + t, and rows are 64 bytes off a multiple of 128: what eight lanes read at once lies in all
  // 32 banks.
  static constexpr int kSliceInputs = kRowTiles == 1 ? 1024 : 512;
  static constexpr int kSliceBricks = kSliceInputs / kBrick.inputs();
  static constexpr int kRowWords = kSliceInputs / 2 + 16;
  static constexpr int kSliceWords = kRows * kRowWords;
  // Once the inputs are over the warps' sums take their place, [kProductWarpsK][kRows][kSumStride].
  static constexpr int kSumStride = kBrickOutputs + 4;
  static constexpr int kSumFloats = kProductWarpsK * kRows * kSumStride;
  static constexpr int kSharedBytes = 4 * (2 * kSliceWords > kSumFloats ? 2 * kSliceWords : kSumFloats);

  static_assert(kSliceBricks % kProductWarpsK == 0, "a warp's bricks do not depend on the slices");
};

template <class Tile>
class ProductBlock {
 public:
  GPU_FUNCTION explicit ProductBlock(const SmallProductArgs& args)
      : args_(args),
        warp_k_(warp_index() % kProductWarpsK),
        warp_n_(warp_index() / kProductWarpsK),
        first_brick_(block_index().y * args.bricks_per_split),
        n_bricks_(min_of(args.bricks_per_split, n_columns() - first_brick_)),
        slices_(shared_array<std::uint32_t>(0, 2 * Tile::kSliceWords)) {}

  GPU_FUNCTION void run() {
    walk();
    gather_warps();
    finish();
  }

 private:
  using T = typename Tile::T;
  using Weights = typename Tile::Weights;
  static constexpr BrickShape kBrick = Tile::kBrick;
  static constexpr int kRowTiles = Tile::kRowTiles;
  static constexpr int kOutputTiles = Tile::kOutputTiles;
  static constexpr int kLoads = Weights::kLoads;
  static constexpr int kPairs = kBrick.run / 8;  // of products along a lane's run

  static GPU_FUNCTION int min_of(int a, int b) { return a < b ? a : b; }
  GPU_FUNCTION int n_columns() const { return (args_.k + kBrick.inputs() - 1) / kBrick.inputs(); }

  // Brick `brick` of the block, from this warp's first tile on for what lies tile by tile.
  GPU_FUNCTION const std::uint32_t* brick_at(int brick) const {
    return args_.w + (std::int64_t{block_index().x} * n_columns() + first_brick_ + brick) * (kBrick.bytes() / 4);
  }
  GPU_FUNCTION LoadWords load_weights(const std::uint32_t* brick, int tile, int i) const {
    const int load = (warp_n_ * kOutputTiles + tile) * kLoads + i;
    return load_once<4>(brick + load * (kTileLoadBytes / 4) + lane() * 4);
  }
  GPU_FUNCTION void load_groups(const std::uint32_t* brick) {
    if constexpr (Weights::kHasGroups) {
      constexpr int kGroupsAt = kBrickTiles * kLoads * (kTileLoadBytes / 4);
      group_words_ = load_vec<kOutputTiles>(brick + kGroupsAt + lane() * kBrickTiles + warp_n_ * kOutputTiles);
    }
  }

  GPU_FUNCTION void walk() {
    if (warp_k_ < n_bricks_) {
      const std::uint32_t* brick = brick_at(warp_k_);
      GPU_UNROLL
      for (int tile = 0; tile < kOutputTiles; ++tile) {
        GPU_UNROLL
        for (int i = 0; i < kLoads; ++i) weights_[tile][i] = load_weights(brick, tile, i);
      }
      load_groups(brick);
    }
    begin_slice(0);
    for (int first = 0, slice = 0; first < n_bricks_; first += Tile::kSliceBricks, ++slice) {
      wait_copies<0>();
      sync_block();  // the slice is there for all, and all are done with the one before it
      begin_slice(slice + 1);
      const int end = min_of(first + Tile::kSliceBricks, n_bricks_);
      for (int brick = first + warp_k_; brick < end; brick += kProductWarpsK) {
        const int words = slice % 2 * Tile::kSliceWords + (brick - first) * (kBrick.inputs() / 2);
        if (brick + kProductWarpsK < n_bricks_) {
          multiply_brick<true>(words, brick_at(brick + kProductWarpsK));
        } else {
          multiply_brick<false>(words, nullptr);
        }
      }
    }
  }

  // Rows past m and inputs past k are zeros.
  GPU_FUNCTION void begin_slice(int slice) const {
    constexpr int kChunks = Tile::kSliceInputs / 8;
    constexpr int kBrickChunks = kBrick.inputs() / 8;
    const auto* a = static_cast<const std::uint32_t*>(args_.a);
    const int end = n_bricks_ * kBrickChunks - slice * kChunks;  // of the block's chunks
    for (int i = thread_index(); i < Tile::kRows * kChunks; i += Tile::kThreads) {
      const int row = i / kChunks, chunk = i % kChunks;
      if (chunk >= end) continue;
      const int input = first_brick_ * kBrick.inputs() + (slice * kChunks + chunk) * 8;
      const int in_brick = chunk % kBrickChunks;
      const int place = chunk - in_brick + in_brick % kPairs * 4 + in_brick / kPairs;
      copy_async<16>(slices_, slice % 2 * Tile::kSliceWords + row * Tile::kRowWords + place * 4,
                     a + (row * args_.a_stride + input) / 2, row < args_.m && input < args_.k);
    }
    commit_copies();
  }

  // Multiplies the brick in the registers by the inputs from `words` of the slices on, and refills the registers from
  // `next` as they fall free, those of a pair together: the hardware knows only groups of loads to wait for.
  template <bool refills>
  GPU_FUNCTION void multiply_brick(int words, const std::uint32_t* next) {
    typename Weights::Group groups[kOutputTiles];
    if constexpr (Weights::kHasGroups) {
      GPU_UNROLL
      for (int tile = 0; tile < kOutputTiles; ++tile) groups[tile] = Weights::group_of(group_words_.values[tile]);
      if constexpr (refills) load_groups(next);
    }
    GPU_UNROLL
    for (int pair = 0; pair < kPairs; ++pair) {
      LoadWords rows[kRowTiles];
      GPU_UNROLL
      for (int r = 0; r < kRowTiles; ++r) {
        rows[r] =
            slices_.template load_vec<4>(words + (8 * r + lane() / 4) * Tile::kRowWords + (pair * 4 + lane() % 4) * 4);
      }
      GPU_UNROLL
      for (int tile = 0; tile < kOutputTiles; ++tile) {
        std::uint32_t w[2][4];
        Weights::fragments(weights_[tile], groups[tile], pair, w);
        GPU_UNROLL
        for (int r = 0; r < kRowTiles; ++r) {
          GPU_UNROLL
          for (int step = 0; step < 2; ++step) {
            const std::uint32_t x[2] = {rows[r].values[2 * step], rows[r].values[2 * step + 1]};
            mma_16x8x16<T>(sums_[tile][r], w[step], x);
          }
        }
      }
      if constexpr (refills) {
        GPU_UNROLL
        for (int tile = 0; tile < kOutputTiles; ++tile) {
          GPU_UNROLL
          for (int i = 0; i < kLoads; ++i) {
            if (((i + 1) * kPairs - 1) / kLoads == pair) weights_[tile][i] = load_weights(next, tile, i);
          }
        }
      }
    }
  }

  GPU_FUNCTION void gather_warps() const {
    const auto sums = shared_array<float>(0, Tile::kSumFloats);
    sync_block();  // all are done with the slices
    GPU_UNROLL
    for (int tile = 0; tile < kOutputTiles; ++tile) {
      GPU_UNROLL
      for (int r = 0; r < kRowTiles; ++r) {
        GPU_UNROLL
        for (int i = 0; i < 4; ++i) {
          const int output = (warp_n_ * kOutputTiles + tile) * 16 + lane() / 4 + i / 2 * 8;
          const int row = r * 8 + lane() % 4 * 2 + i % 2;
          sums.store((warp_k_ * Tile::kRows + row) * Tile::kSumStride + output, sums_[tile][r][i]);
        }
      }
    }
    sync_block();
  }

  // Calls visit(row, output, i) for this thread's share of the block's results, i their place among them.
  template <class Visit>
  GPU_FUNCTION void for_each_result(const Visit& visit) const {
    for (int i = thread_index(); i < args_.m * kBrickOutputs; i += Tile::kThreads) {
      const int output = i % kBrickOutputs;
      if (block_index().x * kBrickOutputs + output < args_.n) visit(i / kBrickOutputs, output, i);
    }
  }

  GPU_FUNCTION void finish() const {
    const auto sums = shared_array<float>(0, Tile::kSumFloats);
    const auto sum_of = [&](int row, int output) {
      float sum = 0.0f;
      GPU_UNROLL
      for (int warp = 0; warp < kProductWarpsK; ++warp) {
        sum += sums.load((warp * Tile::kRows + row) * Tile::kSumStride + output);
      }
      return sum;
    };
    const int n_splits = grid_size().y;
    if (n_splits == 1) {
      for_each_result([&](int row, int output, int) { write(row, output, sum_of(row, output)); });
      return;
    }
    const std::int64_t n_results = std::int64_t{args_.m} * kBrickOutputs;
    float* const partials = args_.partials + block_index().x * n_splits * n_results;
    for_each_result(
        [&](int row, int output, int i) { partials[block_index().y * n_results + i] = sum_of(row, output); });
    fence();
    sync_block();
    int* const n_arrived = args_.n_arrived + block_index().x;
    if (!sync_block_or(thread_index() == 0 && atomic_add(n_arrived, 1) == n_splits - 1)) return;
    fence();
    if (thread_index() == 0) *n_arrived = 0;
    for_each_result([&](int row, int output, int i) {
      float sum = 0.0f;
      for (int split = 0; split < n_splits; ++split) sum += load_coherent(partials + split * n_results + i);
      write(row, output, sum);
    });
  }

  GPU_FUNCTION void write(int row, int output, float sum) const {
    const int n = block_index().x * kBrickOutputs + output;
    const float scale = args_.w_scale != nullptr ? args_.w_scale[n] : 1.0f;
    const float value = fma(sum, scale / Weights::kUnit, args_.bias != nullptr ? args_.bias[n] : 0.0f);
    const std::int64_t at = row * args_.out_stride + n;
    if (args_.out_is_float) {
      static_cast<float*>(args_.out)[at] = value;
    } else {
      static_cast<T*>(args_.out)[at] = from_float<T>(value);
    }
  }

  const SmallProductArgs& args_;
  const int warp_k_, warp_n_;
  const int first_brick_, n_bricks_;  // the block's
  const Shared<std::uint32_t> slices_;
  LoadWords weights_[kOutputTiles][kLoads];
  Vec<std::uint32_t, kOutputTiles> group_words_;
  float sums_[kOutputTiles][kRowTiles][4] = {};
};

// grid: {n / 64 rounded up, n_splits}
template <class Tile>
GPU_KERNEL small_product_kernel(const SmallProductArgs args) {
  ProductBlock<Tile> block(args);
  block.run();
}

}  // namespace gpu
}  // namespace llm_decoder
