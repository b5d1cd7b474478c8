// out[m, n] = a[m, k] . w[n, k] * w_scale[n] + bias[n] for few rows m, as decoding has them: every weight is read once,
// used for at most 64 rows, and its bytes are what the time goes into.
//
// What bounds it: memory. 4.8 TB/s at a latency of about a microsecond under load is 4.8 MB on their way at any time,
// 36 KB in each of 132 multiprocessors (Little's law). A lane therefore has a whole brick's weights on their way to its
// registers while it multiplies the brick before, 16 loads of 16 bytes, of w4 two bricks' with 18: 64 or 72 KB a block
// of 8 warps, of which a multiprocessor needs but one (half of that where there are so many rows that the tensor cores
// are what is waited for). No warp waits in the loop but for activations: slices of them come by asynchronous copies, a
// slice ahead. They come from the second cache once a block, so a block has many outputs: for 8 rows they add a
// sixteenth to the bytes of w8, for 64 a half.
//
// The rows of w are the 16-row side of the product, the rows of a its 8 columns, so that one row of a costs no more
// than eight. pack_gpu_weights.h has the weights in the order in which lanes want them as operands: nothing of them
// goes through shared memory. Integers and fp8 become Bf16 or Fp16 in registers: w8 costs a permute and an fma for two
// weights, f8 a shift and two logical ones besides, w4 two ands, two fmas and half a shift for four; at 4.8 TB/s a
// multiprocessor gets 21 bytes a cycle: 21 (w8), 53 (f8) and 49 (w4) of the 128 instructions that its lanes begin in a
// cycle. Above 32 rows, 16 of w4, the tensor cores have more to do than memory.
//
// Four warps side by side have the outputs of a brick each, and two such teams the bricks along k in turn. Their sums
// meet in shared memory in the order of the teams, and those of the blocks that share k in the order of the splits, by
// whichever block comes last. Which warp sums what depends on n and k alone: a row's result is the same bits whatever
// the other rows and however many.
//
// Of [gate, up] a block takes two bricks of the gate and the two of up that go with them, so that it has both of each
// pair once sums have met, and writes silu(gate) * up alone. Both are rounded before, as where they are written.
#pragma once

#include "activation.h"
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
  void* out = nullptr;               // [m, n] of the type of a, or float; gated [m, n / 2] of the type of a
  std::int64_t out_stride = 0;
  bool out_is_float = false;
  bool is_gated = false;  // out = silu(gate) * up: half of the rows of w are the gate's, then come those of up
  int m = 0, n = 0, k = 0;

  int bricks_per_split = 0;
  float* partials = nullptr;  // [n / 256][n_splits][m][256], where there are several splits
  int* n_arrived = nullptr;   // [n / 256], zeros before and after
};

constexpr int kProductWarpsN = 4;  // a brick's outputs each
constexpr int kProductWarpsK = 2;  // that share a block's inputs
constexpr int kProductThreads = kProductWarpsN * kProductWarpsK * kWarpSize;
constexpr int kBlockOutputs = kProductWarpsN * kBrickOutputs;
constexpr int kBlockPairs = kBlockOutputs / 2;  // of a gate and an up

using LoadWords = Vec<std::uint32_t, 4>;  // that a lane loads at once

// Each format says how a lane's loads of a tile of 16 outputs become operands: fragment() gives that of inputs
// 8 pair + 4 step to 8 pair + 4 step + 3 of its run.
template <class T>
struct HalfWeights {
  static constexpr GpuWeightFormat kFormat = GpuWeightFormat::half;
  static constexpr float kUnit = 1.0f;
  static constexpr bool kHasGroups = false;
  static constexpr int kLoads = brick_shape(kFormat).tile_loads;
  struct Group {};

  static GPU_FUNCTION void fragment(const LoadWords (&loads)[kLoads], const Group&, int pair, int step,
                                    std::uint32_t (&w)[4]) {
    GPU_UNROLL
    for (int i = 0; i < 4; ++i) w[i] = loads[2 * pair + i % 2].values[2 * step + i / 2];
  }
};

// w8 or f8
template <class T, GpuWeightFormat format>
struct ByteWeights {
  static constexpr GpuWeightFormat kFormat = format;
  static constexpr float kUnit = format == GpuWeightFormat::w8 ? kWidenedUnit : 1.0f;
  static constexpr bool kHasGroups = false;
  static constexpr int kLoads = brick_shape(kFormat).tile_loads;
  struct Group {};

  static GPU_FUNCTION void fragment(const LoadWords (&loads)[kLoads], const Group&, int pair, int step,
                                    std::uint32_t (&w)[4]) {
    GPU_UNROLL
    for (int half = 0; half < 2; ++half) {
      const std::uint32_t word = loads[pair].values[2 * half + step];
      w[half] = widen_pair(word, 0, 1);
      w[2 + half] = widen_pair(word, 2, 3);
    }
  }

  static GPU_FUNCTION std::uint32_t widen_pair(std::uint32_t word, int i, int j) {
    return format == GpuWeightFormat::w8 ? widen_biased<T>(word, i, j) : widen_finite_fp8<T>(word, i, j);
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

  static GPU_FUNCTION void fragment(const LoadWords (&loads)[kLoads], const Group& group, int pair, int step,
                                    std::uint32_t (&w)[4]) {
    GPU_UNROLL
    for (int half = 0; half < 2; ++half) {
      const std::uint32_t word = loads[pair / 2].values[2 * half + pair % 2] >> (8 * step);
      w[half] = fma_pairs<T>(word & 0x000f000fu, group.low[half], group.minimum[half]);
      w[2 + half] = fma_pairs<T>(word & 0x00f000f0u, group.high[half], group.minimum[half]);
    }
  }
};

// How many bricks a warp has on their way, and in how many parts it takes them. With many rows sums need the registers,
// and the tensor cores are what is waited for.
constexpr int bricks_ahead(GpuWeightFormat format, int row_tiles) {
  return format == GpuWeightFormat::w4 && row_tiles <= 2 ? 2 : 1;
}
constexpr int brick_parts(int row_tiles) { return row_tiles < 8 ? 1 : 2; }
// How many tiles of 8 rows of a are in the registers at once. For others the weights are made into operands again, what
// costs those of 16 bits nothing.
constexpr int rows_at_once(GpuWeightFormat format, int row_tiles) {
  return format == GpuWeightFormat::half && row_tiles > 4 ? 4 : row_tiles;
}

template <class T_, class Weights_, int row_tiles_>
struct ProductTile {
  using T = T_;
  using Weights = Weights_;
  static constexpr int kBrickInputs = brick_shape(Weights::kFormat).inputs();
  static constexpr int kRowTiles = row_tiles_;  // of 8 rows of a
  static constexpr int kRows = 8 * kRowTiles;
  static constexpr int kAhead = bricks_ahead(Weights::kFormat, kRowTiles);
  static constexpr int kParts = brick_parts(kRowTiles);
  static constexpr int kRowsAtOnce = rows_at_once(Weights::kFormat, kRowTiles);

  // Activations come in slices of so many inputs, two of them in shared memory. Within a brick's inputs 16-byte chunk c
  // of lane t lies at 4 c + t, and rows are 64 bytes off a multiple of 128: what eight lanes read at once lies in all
  // 32 banks.
  static constexpr int kSliceInputs = kRowTiles == 1 ? 1024 : kRowTiles < 8 ? 512 : 256;
  static constexpr int kSliceBricks = kSliceInputs / kBrickInputs;
  static constexpr int kRowWords = kSliceInputs / 2 + 16;
  static constexpr int kSliceWords = kRows * kRowWords;
  // Once the inputs are over the sums take their place, [kRows][kSumStride].
  static constexpr int kSumStride = kBlockOutputs + 4;
  static constexpr int kSumFloats = kRows * kSumStride;
  static constexpr int kSharedBytes = 4 * (2 * kSliceWords > kSumFloats ? 2 * kSliceWords : kSumFloats);

  static_assert(kSliceBricks % (kProductWarpsK * kAhead) == 0, "a warp's bricks do not depend on the slices");
  static_assert(kSharedBytes <= kPortableSharedBytes, "runs on every device");
};

template <class Tile>
class ProductBlock {
 public:
  GPU_FUNCTION explicit ProductBlock(const SmallProductArgs& args)
      : args_(args),
        warp_n_(warp_index() % kProductWarpsN),
        warp_k_(warp_index() / kProductWarpsN),
        brick_row_(args.is_gated ? gated_brick_row() : block_index().x * kProductWarpsN + warp_n_),
        has_outputs_(brick_row_ < brick_rows_end()),
        first_brick_(block_index().y * args.bricks_per_split),
        n_bricks_(min_of(args.bricks_per_split, n_columns() - first_brick_)),
        lane_bricks_(args.w + (std::int64_t{brick_row_} * n_columns() + first_brick_) * kBrickWords + lane() * 4),
        slices_(shared_array<std::uint32_t>(0, 2 * Tile::kSliceWords)) {}

  GPU_FUNCTION void run() {
    walk();
    gather_warps();
    finish();
  }

 private:
  using T = typename Tile::T;
  using Weights = typename Tile::Weights;
  static constexpr int kBrickInputs = Tile::kBrickInputs;
  static constexpr int kBrickWords = brick_shape(Weights::kFormat).bytes() / 4;
  static constexpr int kRowTiles = Tile::kRowTiles;
  static constexpr int kLoads = Weights::kLoads;
  static constexpr int kPartTiles = kBrickTiles / Tile::kParts;
  static constexpr int kPairs = kBrickInputs / 4 / 8;  // of products along a lane's run

  // What a lane holds of a brick: the weights of a part of its tiles.
  struct LaneBrick {
    LoadWords weights[kPartTiles][kLoads];
    Vec<std::uint32_t, kBrickTiles> groups;
  };

  static constexpr int kHalfWarpsN = kProductWarpsN / 2;
  GPU_FUNCTION int gated_brick_row() const {
    const int in_half = block_index().x * kHalfWarpsN + warp_n_ % kHalfWarpsN;
    return warp_n_ < kHalfWarpsN ? in_half : args_.n / 2 / kBrickOutputs + in_half;
  }
  // Of this warp's rows of bricks.
  GPU_FUNCTION int brick_rows_end() const {
    const int n = args_.is_gated && warp_n_ < kHalfWarpsN ? args_.n / 2 : args_.n;
    return (n + kBrickOutputs - 1) / kBrickOutputs;
  }

  static GPU_FUNCTION int min_of(int a, int b) { return a < b ? a : b; }
  GPU_FUNCTION int n_columns() const { return (args_.k + kBrickInputs - 1) / kBrickInputs; }

  GPU_FUNCTION const std::uint32_t* brick_at(int brick) const {
    return lane_bricks_ + std::int64_t{brick} * kBrickWords;
  }
  static GPU_FUNCTION LoadWords load_weights(const std::uint32_t* brick, int tile, int i) {
    return load_once<4>(brick + (tile * kLoads + i) * (kTileLoadBytes / 4));
  }
  static GPU_FUNCTION void load_groups(const std::uint32_t* brick, LaneBrick& to) {
    if constexpr (Weights::kHasGroups) {
      to.groups = load_once<kBrickTiles>(brick + kBrickTiles * kLoads * (kTileLoadBytes / 4));
    }
  }

  GPU_FUNCTION void walk() {
    GPU_UNROLL
    for (int slot = 0; slot < Tile::kAhead; ++slot) {
      const int brick = slot * kProductWarpsK + warp_k_;
      if (brick < n_bricks_ && has_outputs_) {
        const std::uint32_t* from = brick_at(brick);
        load_groups(from, bricks_[slot]);
        GPU_UNROLL
        for (int tile = 0; tile < kPartTiles; ++tile) {
          GPU_UNROLL
          for (int i = 0; i < kLoads; ++i) bricks_[slot].weights[tile][i] = load_weights(from, tile, i);
        }
      }
    }
    begin_slice(0);
    for (int first = 0, slice = 0; first < n_bricks_; first += Tile::kSliceBricks, ++slice) {
      wait_copies<0>();
      sync_block();  // the slice is there for all, and all are done with the one before it
      begin_slice(slice + 1);
      if (has_outputs_) multiply_slice(first, slice % 2 * Tile::kSliceWords);
    }
  }

  // The bricks from `first` on whose activations lie at `words` of the slices.
  GPU_FUNCTION void multiply_slice(int first, int words) {
    constexpr int kStep = kProductWarpsK * Tile::kAhead;
    const int end = min_of(Tile::kSliceBricks, n_bricks_ - first);
    for (int begin = 0; begin < end; begin += kStep) {
      GPU_UNROLL
      for (int slot = 0; slot < Tile::kAhead; ++slot) {
        const int brick = begin + slot * kProductWarpsK + warp_k_;
        const int at = words + brick * kBrickInputs / 2;
        if (first + brick + kStep < n_bricks_) {
          multiply_brick<0, true>(bricks_[slot], at, brick_at(first + brick), brick_at(first + brick + kStep));
        } else if (brick < end) {
          multiply_brick<0, false>(bricks_[slot], at, brick_at(first + brick), nullptr);
        }
      }
    }
  }

  // Rows past m and inputs past k are zeros.
  GPU_FUNCTION void begin_slice(int slice) const {
    constexpr int kChunks = Tile::kSliceInputs / 8;
    constexpr int kBrickChunks = kBrickInputs / 8;
    const auto* a = static_cast<const std::uint32_t*>(args_.a);
    const int end = n_bricks_ * kBrickChunks - slice * kChunks;  // of the block's chunks
    for (int i = thread_index(); i < Tile::kRows * kChunks; i += kProductThreads) {
      const int row = i / kChunks, chunk = i % kChunks;
      if (chunk >= end) continue;
      const int input = first_brick_ * kBrickInputs + (slice * kChunks + chunk) * 8;
      const int in_brick = chunk % kBrickChunks;
      const int place = chunk - in_brick + in_brick % kPairs * 4 + in_brick / kPairs;
      copy_async<16>(slices_, slice % 2 * Tile::kSliceWords + row * Tile::kRowWords + place * 4,
                     a + (row * args_.a_stride + input) / 2, row < args_.m && input < args_.k);
    }
    commit_copies();
  }

  // Multiplies a brick, whose parts from `part` on come to the registers one after the other, then those of the next
  // brick if there is one. `words`: where the slices have its activations.
  template <int part, bool has_next>
  GPU_FUNCTION void multiply_brick(LaneBrick& lane_brick, int words, const std::uint32_t* brick,
                                   const std::uint32_t* next) {
    if constexpr (part + 1 < Tile::kParts) {
      multiply_part<part, true>(lane_brick, words, brick, part + 1);
      multiply_brick<part + 1, has_next>(lane_brick, words, brick, next);
    } else {
      multiply_part<part, has_next>(lane_brick, words, next, 0);
    }
  }

  // Multiplies the part in the registers and refills them from part `from_part` of `from` as they fall free, those of a
  // pair, which are waited for together, together.
  template <int part, bool refills>
  GPU_FUNCTION void multiply_part(LaneBrick& brick, int words, const std::uint32_t* from, int from_part) {
    typename Weights::Group groups[kPartTiles];
    if constexpr (Weights::kHasGroups) {
      GPU_UNROLL
      for (int tile = 0; tile < kPartTiles; ++tile) {
        groups[tile] = Weights::group_of(brick.groups.values[part * kPartTiles + tile]);
      }
      if constexpr (refills && part + 1 == Tile::kParts) load_groups(from, brick);
    }
    GPU_UNROLL
    for (int pair = 0; pair < kPairs; ++pair) {
      GPU_UNROLL
      for (int first = 0; first < kRowTiles; first += Tile::kRowsAtOnce) {
        multiply_rows(brick, groups, words, part, pair, first);
      }
      if constexpr (refills) {
        GPU_UNROLL
        for (int tile = 0; tile < kPartTiles; ++tile) {
          GPU_UNROLL
          for (int i = 0; i < kLoads; ++i) {
            if (((i + 1) * kPairs - 1) / kLoads == pair) {
              brick.weights[tile][i] = load_weights(from, from_part * kPartTiles + tile, i);
            }
          }
        }
      }
    }
  }

  // Multiplies a pair of the part in the registers with the row tiles from `first` on.
  GPU_FUNCTION void multiply_rows(const LaneBrick& brick, const typename Weights::Group (&groups)[kPartTiles],
                                  int words, int part, int pair, int first) {
    // Compilers would load all rows at once, and there are no registers for them.
    if constexpr (kRowTiles >= 4) sync_warp();
    LoadWords rows[Tile::kRowsAtOnce];
    GPU_UNROLL
    for (int r = 0; r < Tile::kRowsAtOnce; ++r) {
      const int row = 8 * (first + r) + lane() / 4;
      rows[r] = slices_.template load_vec<4>(words + row * Tile::kRowWords + (pair * 4 + lane() % 4) * 4);
    }
    GPU_UNROLL
    for (int step = 0; step < 2; ++step) {
      GPU_UNROLL
      for (int tile = 0; tile < kPartTiles; ++tile) {
        std::uint32_t w[4];
        Weights::fragment(brick.weights[tile], groups[tile], pair, step, w);
        GPU_UNROLL
        for (int r = 0; r < Tile::kRowsAtOnce; ++r) {
          const std::uint32_t x[2] = {rows[r].values[2 * step], rows[r].values[2 * step + 1]};
          mma_16x8x16<T>(sums_[part * kPartTiles + tile][first + r], w, x);
        }
      }
    }
  }

  // Calls visit(at, sum) for each of this lane's sums, `at` its place in shared memory.
  template <class Visit>
  GPU_FUNCTION void for_each_sum(const Visit& visit) const {
    GPU_UNROLL
    for (int tile = 0; tile < kBrickTiles; ++tile) {
      GPU_UNROLL
      for (int r = 0; r < kRowTiles; ++r) {
        GPU_UNROLL
        for (int i = 0; i < 4; ++i) {
          const int output = warp_n_ * kBrickOutputs + tile * 16 + lane() / 4 + i / 2 * 8;
          const int row = r * 8 + lane() % 4 * 2 + i % 2;
          visit(row * Tile::kSumStride + output, sums_[tile][r][i]);
        }
      }
    }
  }

  GPU_FUNCTION void gather_warps() const {
    static_assert(kProductWarpsK == 2, "one hands over, one adds");
    const auto sums = shared_array<float>(0, Tile::kSumFloats);
    sync_block();  // all are done with the slices
    if (warp_k_ == 1) for_each_sum([&](int at, float sum) { sums.store(at, sum); });
    sync_block();
    if (warp_k_ == 0) for_each_sum([&](int at, float sum) { sums.store(at, sum + sums.load(at)); });
    sync_block();
  }

  // Calls visit(row, i) for this thread's share of m rows of n_columns.
  template <int n_columns, class Visit>
  GPU_FUNCTION void for_each_place(const Visit& visit) const {
    for (int i = thread_index(); i < args_.m * n_columns; i += kProductThreads) visit(i / n_columns, i % n_columns);
  }

  GPU_FUNCTION void finish() const {
    const auto sums = shared_array<float>(0, Tile::kSumFloats);
    const auto sum_of = [&](int row, int output) { return sums.load(row * Tile::kSumStride + output); };
    const int n_splits = grid_size().y;
    if (n_splits == 1) return write_results(sum_of);
    const std::int64_t n_results = std::int64_t{args_.m} * kBlockOutputs;
    float* const partials = args_.partials + block_index().x * n_splits * n_results;
    for_each_place<kBlockOutputs>([&](int row, int output) {
      partials[block_index().y * n_results + row * kBlockOutputs + output] = sum_of(row, output);
    });
    fence();
    sync_block();
    int* const n_arrived = args_.n_arrived + block_index().x;
    if (!sync_block_or(thread_index() == 0 && atomic_add(n_arrived, 1) == n_splits - 1)) return;
    fence();
    if (thread_index() == 0) *n_arrived = 0;
    write_results([&](int row, int output) {
      float sum = 0.0f;
      for (int split = 0; split < n_splits; ++split) {
        sum += load_coherent(partials + split * n_results + row * kBlockOutputs + output);
      }
      return sum;
    });
  }

  // sum_of(row, output): the whole sum of one of the block's outputs.
  template <class SumOf>
  GPU_FUNCTION void write_results(const SumOf& sum_of) const {
    if (args_.is_gated) {
      const int n_pairs = args_.n / 2;
      for_each_place<kBlockPairs>([&](int row, int i) {
        const int n = block_index().x * kBlockPairs + i;
        if (n >= n_pairs) return;
        const T gate = from_float<T>(scaled(sum_of(row, i), n));
        const T up = from_float<T>(scaled(sum_of(row, kBlockPairs + i), n_pairs + n));
        write(row, n, activate(to_float(gate), Activation::silu) * to_float(up));
      });
    } else {
      for_each_place<kBlockOutputs>([&](int row, int output) {
        const int n = block_index().x * kBlockOutputs + output;
        if (n < args_.n) write(row, n, scaled(sum_of(row, output), n));
      });
    }
  }

  GPU_FUNCTION float scaled(float sum, int n) const {
    const float scale = args_.w_scale != nullptr ? args_.w_scale[n] : 1.0f;
    return fma(sum, scale / Weights::kUnit, args_.bias != nullptr ? args_.bias[n] : 0.0f);
  }

  GPU_FUNCTION void write(int row, int column, float value) const {
    const std::int64_t at = row * args_.out_stride + column;
    if (args_.out_is_float) {
      static_cast<float*>(args_.out)[at] = value;
    } else {
      static_cast<T*>(args_.out)[at] = from_float<T>(value);
    }
  }

  const SmallProductArgs& args_;
  const int warp_n_, warp_k_;
  const int brick_row_;
  const bool has_outputs_;                  // this warp, which else only comes to the barriers
  const int first_brick_, n_bricks_;        // the block's, along k
  const std::uint32_t* const lane_bricks_;  // of this warp's outputs, from what this lane loads first
  const Shared<std::uint32_t> slices_;
  LaneBrick bricks_[Tile::kAhead];
  float sums_[kBrickTiles][kRowTiles][4] = {};
};

// grid: {n / 256 rounded up, n_splits}
template <class Tile>
GPU_KERNEL small_product_kernel(const SmallProductArgs args) {
  ProductBlock<Tile> block(args);
  block.run();
}

}  // namespace gpu
}  // namespace llm_decoder
