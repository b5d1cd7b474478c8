// Products of many rows with the weights of their experts, on tensor cores. A dense product is the case of one expert.
//
// A block makes a tile of out: up to kRows sorted positions of one expert, 128 rows of its weights. Both operands come
// through a ring of asynchronous copies, those of a gathered row by row, so that nothing is permuted in memory. Gated,
// the rows of weights are eight of the gate and eight of up in turn: a lane then holds both sums of a column, and
// silu(gate) * up needs no second pass.
//
// With 128 rows a tile does 32 products a byte that it copies, what tensor cores need to be the bound; the weights of
// an expert with few rows bound smaller tiles by bandwidth, where all counts is that 96 KB a block are in flight.
// Neighbouring blocks share kGroup tiles of rows, so that a wave's operands stay in the second cache.
//
// Sums run over k in one order whatever the tile: a row's result does not depend on its neighbours.
#pragma once

#include "activation.h"
#include "grouped_product.h"
#include "machine.h"
#include "swizzle.h"
#include "widen_bytes.h"

namespace llm_decoder {
namespace gpu {

// T: Bf16 or Fp16. W: the same, or Int8 with a scale a row.
template <class T_, class W_, bool is_gated, int rows_, int warps_m_, int warps_n_>
struct ProductTile {
  using T = T_;
  using W = W_;
  static constexpr bool kIsGated = is_gated;
  static constexpr bool kIsNarrow = sizeof(W) == 1;
  static constexpr int kRows = rows_;
  static constexpr int kWarpsM = warps_m_, kWarpsN = warps_n_;
  static constexpr int kThreads = kWarpsM * kWarpsN * kWarpSize;
  static constexpr int kWeightRows = 128;
  static constexpr int kColumns = kIsGated ? kWeightRows / 2 : kWeightRows;  // of out
  static constexpr int kDepth = 64;                                          // of k, a stage
  static constexpr int kWarpRows = kRows / kWarpsM;
  static constexpr int kWarpWeightRows = kWeightRows / kWarpsN;

  static constexpr int kARowBytes = kDepth * 2;
  static constexpr int kWRowBytes = kDepth * static_cast<int>(sizeof(W));
  static constexpr int kAElements = kRows * kDepth, kWElements = kWeightRows * kDepth;  // a stage
  static constexpr int kStageBytes = kRows * kARowBytes + kWeightRows * kWRowBytes;
  // Two blocks of 96 KB fit a multiprocessor of compute capability 9.0, one that of 8.9.
  static constexpr int kMaxRingBytes = 96 << 10;
  static constexpr int kStages = kMaxRingBytes / kStageBytes < 6 ? kMaxRingBytes / kStageBytes : 6;

  // Shared memory: the ring of a, the ring of weights; of each row where it comes from, where it goes and its weight.
  // Once the products are over, the tile of out where the rings were.
  static constexpr int kWAt = kStages * kRows * kARowBytes;
  static constexpr int kSourceAt = kStages * kStageBytes;
  static constexpr int kTargetAt = kSourceAt + kRows * 8;
  static constexpr int kRowWeightAt = kTargetAt + kRows * 8;
  static constexpr int kSharedBytes = kRowWeightAt + kRows * 4;

  static_assert(kStages >= 3 && kWarpRows % 16 == 0 && kWarpWeightRows % 32 == 0, "whole fragments");
  static_assert(kRows * kColumns * 2 <= kSourceAt, "the tile of out fits");
  static_assert(kSharedBytes <= kPortableSharedBytes, "runs on every device");
};

template <class Tile>
class ProductBlock {
 public:
  GPU_FUNCTION ProductBlock(const GroupedProductArgs& args, const MoeTile& tile, int first_column)
      : args_(args),
        tile_(tile),
        first_column_(first_column),
        warp_m_(warp_index() % Tile::kWarpsM),
        warp_n_(warp_index() / Tile::kWarpsM),
        a_(shared_array<T>(0, Tile::kStages * Tile::kAElements)),
        w_(shared_array<W>(Tile::kWAt, Tile::kStages * Tile::kWElements)),
        source_(shared_array<std::int64_t>(Tile::kSourceAt, Tile::kRows)),
        target_(shared_array<std::int64_t>(Tile::kTargetAt, Tile::kRows)),
        row_weight_(shared_array<float>(Tile::kRowWeightAt, Tile::kRows)) {}

  GPU_FUNCTION void run() {
    find_rows();
    sync_block();
    walk();
    if (!Tile::kIsGated && args_.out_is_float) return write_floats();
    sync_block();  // all are done with the rings
    stage_out();
    sync_block();
    write_out();
  }

 private:
  using T = typename Tile::T;
  using W = typename Tile::W;
  static constexpr int kSteps = Tile::kDepth / 16;                // products deep, a stage
  static constexpr int kRowTiles = Tile::kWarpRows / 16;          // a warp
  static constexpr int kWeightTiles = Tile::kWarpWeightRows / 8;  // a warp
  static constexpr int kWordsPerTile = Tile::kIsNarrow ? 1 : 2;

  // The operands of a product 16 deep.
  struct Fragments {
    std::uint32_t a[kRowTiles][4];
    std::uint32_t w[kWeightTiles][kWordsPerTile];
  };

  GPU_FUNCTION void find_rows() const {
    for (int row = thread_index(); row < Tile::kRows; row += Tile::kThreads) {
      const bool is_row = row < tile_.n;
      const std::int64_t target = is_row ? args_.out_row(tile_.begin + row) : 0;
      source_.store(row, is_row ? args_.a_row(tile_.begin + row) * args_.a_stride : kNoRow);
      target_.store(row, target);
      row_weight_.store(row, is_row ? args_.weight(target) : 0.0f);
    }
  }

  GPU_FUNCTION void walk() {
    const int n_stages = (args_.k + Tile::kDepth - 1) / Tile::kDepth;
    for (int i = 0; i < Tile::kStages - 1; ++i) {
      if (i < n_stages) begin_stage(i, i);
      commit_copies();
    }
    int slot = 0, next_slot = Tile::kStages - 1;
    for (int i = 0; i < n_stages; ++i) {
      wait_copies<Tile::kStages - 2>();
      sync_block();  // the stage is there for all, and all are done with the one before it
      if (i + Tile::kStages - 1 < n_stages) begin_stage(i + Tile::kStages - 1, next_slot);
      commit_copies();
      if (warp_m_ * Tile::kWarpRows < tile_.n) multiply_stage(slot);
      next_slot = slot;
      slot = slot + 1 < Tile::kStages ? slot + 1 : 0;
    }
    wait_copies<0>();
  }

  // Begins the copies of channels [i kDepth, (i + 1) kDepth). What is past the rows, the columns or k is zeros.
  GPU_FUNCTION void begin_stage(int i, int slot) const {
    begin_rows(i * Tile::kDepth, slot * Tile::kAElements);
    begin_weights(i * Tile::kDepth, slot * Tile::kWElements);
  }

  GPU_FUNCTION void begin_rows(int first, int to) const {
    constexpr int kChunks = Tile::kARowBytes / kSharedAlign;
    constexpr int kRowsAtOnce = Tile::kThreads / kChunks;
    const int chunk = thread_index() % kChunks, channel = first + chunk * 8;
    const T* const a = static_cast<const T*>(args_.a) + channel;
    GPU_UNROLL
    for (int i = 0; i < Tile::kRows / kRowsAtOnce; ++i) {
      const int row = thread_index() / kChunks + i * kRowsAtOnce;
      const std::int64_t source = source_.load(row);
      copy_async<16>(a_, to + a_place(row, chunk) / 2, a + source, source != kNoRow && channel < args_.k);
    }
  }

  GPU_FUNCTION void begin_weights(int first, int to) const {
    constexpr int kChunks = Tile::kWRowBytes / kSharedAlign;
    constexpr int kPerChunk = kSharedAlign / static_cast<int>(sizeof(W));
    constexpr int kRowsAtOnce = Tile::kThreads / kChunks;
    constexpr int kColumnsAtOnce = Tile::kIsGated ? kRowsAtOnce / 2 : kRowsAtOnce;
    static_assert(kRowsAtOnce % 16 == 0, "a thread's rows are all of the gate, or all of up");
    const int first_row = thread_index() / kChunks, chunk = thread_index() % kChunks;
    const int first_column = first_column_ + column_of(first_row), channel = first + chunk * kPerChunk;
    const std::int64_t weight_row = Tile::kIsGated && first_row / 8 % 2 == 1 ? args_.n + first_column : first_column;
    const std::int64_t first_of_expert = std::int64_t{tile_.expert} * (Tile::kIsGated ? 2 * args_.n : args_.n);
    const W* from = static_cast<const W*>(args_.w) + (first_of_expert + weight_row) * args_.k + channel;
    GPU_UNROLL
    for (int i = 0; i < Tile::kWeightRows / kRowsAtOnce; ++i) {
      const bool is_column = first_column + i * kColumnsAtOnce < args_.n;
      const int at =
          to + Swizzle<Tile::kWRowBytes>::at(first_row + i * kRowsAtOnce, chunk) / static_cast<int>(sizeof(W));
      if (Tile::kIsNarrow && args_.k % 16 != 0) {  // rows are aligned to 8 bytes, and end in the middle of a chunk
        copy_async<8>(w_, at, from, is_column && channel < args_.k);
        copy_async<8>(w_, at + 8, from + 8, is_column && channel + 8 < args_.k);
      } else {
        copy_async<16>(w_, at, from, is_column && channel < args_.k);
      }
      from += std::int64_t{kColumnsAtOnce} * args_.k;
    }
  }

  // The column of the tile that a row of its weights makes.
  static GPU_FUNCTION int column_of(int row) { return Tile::kIsGated ? row / 16 * 8 + row % 8 : row; }

  // Bytes from the first row to a chunk. With bytes for weights lanes read 8 of a row's bytes each instead of ldmatrix:
  // then pairs of chunks trade places among four rows, what a half of a warp reads at once.
  static GPU_FUNCTION int a_place(int row, int chunk) {
    if constexpr (Tile::kIsNarrow) {
      return row * Tile::kARowBytes + ((chunk / 2 ^ row % 4) * 2 + chunk % 2) * kSharedAlign;
    } else {
      return Swizzle<Tile::kARowBytes>::at(row, chunk);
    }
  }

  GPU_FUNCTION void multiply_stage(int slot) {
    Fragments fragments[2];
    load_fragments(slot, 0, fragments[0]);
    GPU_UNROLL
    for (int step = 0; step < kSteps; ++step) {
      if (step + 1 < kSteps) load_fragments(slot, step + 1, fragments[(step + 1) % 2]);
      multiply(fragments[step % 2]);
    }
  }

  GPU_FUNCTION void load_fragments(int slot, int step, Fragments& f) const {
    GPU_UNROLL
    for (int r = 0; r < kRowTiles; ++r) load_a(slot, step, warp_m_ * Tile::kWarpRows + r * 16, f.a[r]);
    constexpr int kTilesAtOnce = 4 / kWordsPerTile;
    GPU_UNROLL
    for (int n = 0; n < kWeightTiles; n += kTilesAtOnce) {
      std::uint32_t words[4];
      const int first = warp_n_ * Tile::kWarpWeightRows + n * 8;
      int row, chunk;
      if constexpr (Tile::kIsNarrow) {
        row = first + lane();
        chunk = step;
      } else {
        row = first + lane() % 8 + lane() / 16 * 8;
        chunk = step * 2 + lane() / 8 % 2;
      }
      load_matrices(words, w_,
                    slot * Tile::kWElements + Swizzle<Tile::kWRowBytes>::at(row, chunk) / static_cast<int>(sizeof(W)));
      GPU_UNROLL
      for (int i = 0; i < 4; ++i) f.w[n + i / kWordsPerTile][i % kWordsPerTile] = words[i];
    }
  }

  // A word of bytes holds four neighbouring channels, where a product wants two and two that are 8 apart: any order of
  // channels will do, as long as both operands have the same.
  GPU_FUNCTION void load_a(int slot, int step, int first_row, std::uint32_t (&a)[4]) const {
    const int base = slot * Tile::kAElements;
    if constexpr (Tile::kIsNarrow) {
      const int channel = lane() % 4 * 4;  // of the step's 16
      GPU_UNROLL
      for (int half = 0; half < 2; ++half) {
        const int row = first_row + lane() / 4 + half * 8;
        const int at = base + a_place(row, step * 2 + channel / 8) / 2 + channel % 8;
        const auto words = shared_array<std::uint32_t>(0, Tile::kWAt / 4).template load_vec<2>(at / 2);
        a[half] = words.values[0];
        a[2 + half] = words.values[1];
      }
    } else {
      load_matrices(a, a_, base + a_place(first_row + lane() % 16, step * 2 + lane() / 16) / 2);
    }
  }

  GPU_FUNCTION void multiply(const Fragments& f) {
    GPU_UNROLL
    for (int n = 0; n < kWeightTiles; ++n) {
      std::uint32_t w[2];
      if constexpr (Tile::kIsNarrow) {
        w[0] = widen<T, W>(f.w[n][0], 0, 1);
        w[1] = widen<T, W>(f.w[n][0], 2, 3);
      } else {
        w[0] = f.w[n][0];
        w[1] = f.w[n][1];
      }
      GPU_UNROLL
      for (int r = 0; r < kRowTiles; ++r) mma_16x8x16<T>(sums_[r][n], f.a[r], w);
    }
  }

  // Calls visit(row, column, values) for each pair of neighbouring results of this lane, `column` of the tile.
  template <class Visit>
  GPU_FUNCTION void for_each_pair(const Visit& visit) const {
    constexpr int kPerColumn = Tile::kIsGated ? 2 : 1;  // weight tiles
    const std::int64_t first_scale = std::int64_t{tile_.expert} * (kPerColumn * args_.n);
    GPU_UNROLL
    for (int n = 0; n < kWeightTiles; n += kPerColumn) {
      const int column = (warp_n_ * kWeightTiles + n) / kPerColumn * 8 + lane() % 4 * 2;
      const bool is_column = first_column_ + column < args_.n;
      const bool has_bias = !Tile::kIsGated && args_.bias != nullptr;
      constexpr float kUnit = 1.0f / kUnitOf<W>;
      float scale[2] = {kUnit, kUnit}, up_scale[2] = {kUnit, kUnit}, bias[2] = {};
      GPU_UNROLL
      for (int i = 0; i < 2; ++i) {
        if (args_.w_scale != nullptr && is_column) {
          scale[i] *= args_.w_scale[first_scale + first_column_ + column + i];
          if (Tile::kIsGated) up_scale[i] *= args_.w_scale[first_scale + args_.n + first_column_ + column + i];
        }
        if (has_bias && is_column) bias[i] = args_.template bias_of<T>(first_column_ + column + i);
      }
      GPU_UNROLL
      for (int r = 0; r < kRowTiles; ++r) {
        GPU_UNROLL
        for (int half = 0; half < 2; ++half) {
          const int row = warp_m_ * Tile::kWarpRows + r * 16 + half * 8 + lane() / 4;
          Vec<float, 2> pair;
          GPU_UNROLL
          for (int i = 0; i < 2; ++i) {
            float value = sums_[r][n][half * 2 + i] * scale[i];
            if constexpr (Tile::kIsGated)
              value = activate(value, Activation::silu) * (sums_[r][n + 1][half * 2 + i] * up_scale[i]);
            value *= row_weight_.load(row);
            pair.values[i] = has_bias ? value + bias[i] : value;
          }
          visit(row, column, pair);
        }
      }
    }
  }

  // To the tile of out in shared memory: its rows leave in whole chunks then.
  GPU_FUNCTION void stage_out() const {
    const auto staged = shared_array<std::uint32_t>(0, Tile::kRows * Tile::kColumns / 2);
    for_each_pair([&](int row, int column, const Vec<float, 2>& pair) {
      staged.store(Swizzle<Tile::kColumns * 2>::at(row, column / 8) / 4 + lane() % 4,
                   pack<T>(pair.values[0], pair.values[1]));
    });
  }

  // Four lanes have 32 bytes of a row together.
  GPU_FUNCTION void write_floats() const {
    for_each_pair([&](int row, int column, const Vec<float, 2>& pair) {
      if (row >= tile_.n || first_column_ + column >= args_.n) return;
      store_vec(static_cast<float*>(args_.out) + target_.load(row) * args_.out_stride + first_column_ + column, pair);
    });
  }

  GPU_FUNCTION void write_out() const {
    constexpr int kChunks = Tile::kColumns / 8;
    const auto staged = shared_array<std::uint32_t>(0, Tile::kRows * Tile::kColumns / 2);
    GPU_UNROLL
    for (int i = 0; i < Tile::kRows * kChunks / Tile::kThreads; ++i) {
      const int at = thread_index() + i * Tile::kThreads;
      const int row = at / kChunks, chunk = at % kChunks, column = first_column_ + chunk * 8;
      if (row >= tile_.n || column >= args_.n) continue;
      T* const to = static_cast<T*>(args_.out) + target_.load(row) * args_.out_stride + column;
      store_vec(reinterpret_cast<std::uint32_t*>(to),
                staged.template load_vec<4>(Swizzle<Tile::kColumns * 2>::at(row, chunk) / 4));
    }
  }

  static constexpr std::int64_t kNoRow = -8;  // a copy of nothing has an address too, aligned like those of rows

  const GroupedProductArgs& args_;
  const MoeTile tile_;
  const int first_column_, warp_m_, warp_n_;
  const Shared<T> a_;
  const Shared<W> w_;
  const Shared<std::int64_t> source_, target_;
  const Shared<float> row_weight_;
  float sums_[kRowTiles][kWeightTiles][4] = {};
};

// grid.x: max_tiles * ceil(n / kColumns).
template <class Tile>
GPU_KERNEL grouped_product_kernel(const GroupedProductArgs args) {
  constexpr int kGroup = 8;
  const int n_columns = (args.n + Tile::kColumns - 1) / Tile::kColumns;
  const int first_tile = block_index().x / (kGroup * n_columns) * kGroup;
  const int n_in_group = args.max_tiles - first_tile < kGroup ? args.max_tiles - first_tile : kGroup;
  const int in_group = block_index().x % (kGroup * n_columns);
  MoeTile tile;
  if (!args.find_tile(first_tile + in_group % n_in_group, Tile::kRows, tile)) return;
  ProductBlock<Tile> block(args, tile, in_group / n_in_group * Tile::kColumns);
  block.run();
}

}  // namespace gpu
}  // namespace llm_decoder
