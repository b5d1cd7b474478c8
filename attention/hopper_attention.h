// Attention over pages for many rows on devices with warpgroups: FlashAttention-3 (arXiv 2407.08608) over paged keys,
// for the same items, states and results as paged_flash_attention.h.
//
// A block stays on its multiprocessor and takes one piece of work after the other, an item and a KV head. One warpgroup
// fills a ring of tiles of keys and another of values; two multiply, each 64 rows with states of its own in registers.
// Who fills gives its registers to who multiplies. A tile comes by tensor map where it lies in pages of whole boxes and
// all its keys are the item's, key by key otherwise: what is not the item's may be anything, and becomes zeros.
//
// Of each tile the products of keys run beside those of the values of the tile before, and the softmax of a tile beside
// the latter: what waits for tensor cores is only the rescaling of the sums.
#pragma once

#include "machine_hopper.h"
#include "paged_flash_attention.h"
#include "tile_ring.h"

namespace llm_decoder {
namespace gpu {

struct HopperAttentionArgs {
  PagedAttentionArgs attention;
  int n_items = 0;
  bool has_maps = false;
  bool k_heads_within = false, v_heads_within = false;  // axes of the maps (tensor_boxes.h)
  TensorMap k_map, v_map;
};

// T: Bf16 or Fp16, of queries and pages. head_dim: of the class, what is past args.head_dim is zero.
template <class T_, int head_dim_>
struct HopperTile {
  using T = T_;
  static constexpr int kHeadDim = head_dim_;
  static constexpr int kKeys = kHeadDim <= 128 ? 128 : 64;
  static constexpr int kStages = kHeadDim == 64 ? 4 : kHeadDim == 192 ? 3 : 2;

  static constexpr int kGroups = 2;      // that multiply
  static constexpr int kGroupRows = 64;  // of a product
  static constexpr int kThreads = (1 + kGroups) * kWarpgroupSize;
  static constexpr RegisterBudget kRegisters =
      kHeadDim == 256 ? RegisterBudget{168, 40, 232} : RegisterBudget{168, 56, 224};
  static constexpr int kQElements = kGroupRows * kHeadDim;  // of a group
  static constexpr int kTileElements = kKeys * kHeadDim;
  static constexpr int kTileBytes = kTileElements * 2;

  // Shared memory: barriers, the queries of each group, the ring of keys, the ring of values.
  static constexpr int kBarriers = 4 * kStages;
  static constexpr int kQAt = kPatternBytes;
  static constexpr int kTilesAt = kQAt + kGroups * kQElements * 2;
  static constexpr int kSharedBytes = kTilesAt + 2 * kStages * kTileBytes;

  static_assert(kHeadDim % kBlockColumns == 0 && kKeys % kBoxKeys == 0, "whole blocks");
  static_assert(kQElements * 2 % kPatternBytes == 0 && kTileBytes % kPatternBytes == 0,
                "matrices begin where patterns do");
  static_assert(kSharedBytes <= kMaxSharedBytes && kBarriers * 8 <= kQAt, "what a block may have");
  static_assert(fits(kRegisters, kGroups), "registers of a multiprocessor");
};

struct KeyRange {
  int begin, end;
};
struct TileRange {
  int begin, end;
};

// An item and a KV head: which row is what, and what it sees.
template <class Tile>
class HopperWork {
 public:
  GPU_FUNCTION HopperWork(const PagedAttentionArgs& args, int index)
      : item(args.items[index / args.n_kv_heads]),
        kv_head(index % args.n_kv_heads),
        group_(args.n_heads / args.n_kv_heads),
        before_(args.window_left),
        after_(args.is_causal ? 0 : args.window_right) {}

  // Of the item's token_begin.
  GPU_FUNCTION int token_of(int row) const { return (item.row_begin + row) / group_; }
  GPU_FUNCTION int head_of(int row) const { return kv_head * group_ + (item.row_begin + row) % group_; }
  GPU_FUNCTION int position_of(int row) const { return item.first_position + item.position_step * token_of(row); }
  GPU_FUNCTION KeyRange seen_by(int row) const {
    const int position = position_of(row);
    return {most(item.key_begin, position - before_), least(item.key_end, position + after_ + 1)};
  }

  // Tiles of which any row of [begin, end) sees a key. Later rows begin and end no earlier.
  GPU_FUNCTION TileRange tiles_of(int begin, int end) const {
    const KeyRange keys{seen_by(begin).begin, seen_by(end - 1).end};
    const int first = keys.begin / Tile::kKeys;
    return {first, keys.end > keys.begin ? (keys.end + Tile::kKeys - 1) / Tile::kKeys : first};
  }
  GPU_FUNCTION TileRange tiles() const { return tiles_of(0, item.n_rows); }

  static GPU_FUNCTION int most(int a, int b) { return a > b ? a : b; }
  static GPU_FUNCTION int least(int a, int b) { return a < b ? a : b; }

  const PagedAttentionItem item;
  const int kv_head;

 private:
  const int group_, before_, after_;
};

// Where a block's threads meet: a ring of keys and one of values.
template <class Tile>
struct HopperRings {
  using T = typename Tile::T;
  using Ring = TileRing<Tile::kStages>;
  static constexpr int kK = 0, kV = 1;
  static constexpr int full(int ring, int n) { return 2 * ring * Tile::kStages + Ring::stage(n); }
  static constexpr int empty(int ring, int n) { return (2 * ring + 1) * Tile::kStages + Ring::stage(n); }

  GPU_FUNCTION HopperRings()
      : barriers(shared_barriers(0, Tile::kBarriers)),
        tiles(shared_array<T>(Tile::kTilesAt, 2 * Tile::kStages * Tile::kTileElements)) {}

  // By every thread of the block. A warp of those who fill arrives once a tile, and one of those who multiply.
  GPU_FUNCTION void init() const {
    constexpr int kWarps = kWarpgroupSize / kWarpSize;
    if (thread_index() == 0) {
      for (int ring = kK; ring <= kV; ++ring) {
        for (int stage = 0; stage < Tile::kStages; ++stage) {
          barriers.init(full(ring, stage), kWarps);
          barriers.init(empty(ring, stage), Tile::kGroups * kWarps);
        }
      }
      publish_barriers();
    }
    sync_block();
  }

  // Where tile n of a ring lies, in elements.
  static GPU_FUNCTION int place(int ring, int n) {
    return (ring * Tile::kStages + Ring::stage(n)) * Tile::kTileElements;
  }

  const Barriers barriers;
  const Shared<T> tiles;
};

// The work of a block, one after the other: run(index, n) with the number of tiles so far returns it with its own. Who
// runs reads the item again when it is asked for, rather than keep it in registers.
template <class Run>
GPU_FUNCTION void for_each_work(const HopperAttentionArgs& args, const Run& run) {
  const int block = block_index().x, n_blocks = grid_size().x, n_work = args.n_items * args.attention.n_kv_heads;
  int n = 0;
  for (int index = block; index < n_work; index = work_of(index / n_blocks + 1, block, n_blocks)) n = run(index, n);
}

// The warpgroup that fills the rings, in the order in which those who multiply ask: a tile of keys comes before the
// values of the tile before it.
template <class Tile>
class HopperFiller {
 public:
  GPU_FUNCTION HopperFiller(const HopperAttentionArgs& args, const HopperRings<Tile>& rings)
      : args_(args), rings_(rings) {}

  GPU_FUNCTION void run() {
    for_each_work(args_, [this](int index, int n) {
      const HopperWork<Tile> work(args_.attention, index);
      const TileRange tiles = work.tiles();
      const int n_tiles = tiles.end - tiles.begin;
      for (int i = 0; i < 2 * (n_tiles + 1); ++i) {
        const int ring = i % 2, tile = i / 2 - ring;
        if (tile >= 0 && tile < n_tiles) fill(work, ring, (tiles.begin + tile) * Tile::kKeys, n + tile);
      }
      return n + n_tiles;
    });
    wait_copies<0>();
    for (int i = 0; i < kLate; ++i) arrive_late(late_[i]);
  }

 private:
  using T = typename Tile::T;
  using Rings = HopperRings<Tile>;
  static constexpr int kNone = -1;
  static constexpr int kBoxes = Tile::kKeys / kBoxKeys;
  static constexpr int kRows = Tile::kKeys / (kWarpgroupSize / kWarpSize);  // of a tile, that a warp copies
  static_assert(kRows <= kWarpSize && kRows * Tile::kHeadDim / 8 % kWarpSize == 0, "all lanes come to each shuffle");
  // Tiles that are copied key by key and not there yet. As many as a ring of two stages allows: what a stage is emptied
  // for has been told of.
  static constexpr int kLate = 2;

  // With keys or values from first_key on, tile n of its ring.
  GPU_FUNCTION void fill(const HopperWork<Tile>& work, int ring, int first_key, int n) {
    const int full = Rings::full(ring, n);
    const bool is_whole = first_key >= work.item.key_begin && first_key + Tile::kKeys <= work.item.key_end;
    const bool is_mapped = args_.has_maps && is_whole;
    // Of each lane: the first key of a box, or a key of this warp's rows. Its page is looked up before there is room.
    const int key = first_key + (is_mapped ? lane() * kBoxKeys : warp_index() * kRows + lane());
    const bool has_key = lane() < (is_mapped ? kBoxes : kRows) && key >= work.item.key_begin && key < work.item.key_end;
    const int slot = key % args_.attention.page_size;
    const int* const pages = args_.attention.block_table + work.item.sequence * args_.attention.block_table_stride;
    const int page = has_key ? pages[key / args_.attention.page_size] : kNone;
    rings_.barriers.wait(Rings::empty(ring, n), Rings::Ring::empty_parity(n));
    sync_warp();
    if (is_mapped && warp_index() == 0) {
      if (lane() == 0) rings_.barriers.arrive_expecting(full, Tile::kTileBytes);
      sync_warp();
      if (has_key) load_boxes(work.kv_head, ring, slot, page, n);
    } else if (is_mapped) {
      if (lane() == 0) rings_.barriers.arrive(full);
    } else {
      copy_rows(work.kv_head, ring, slot, page, n);
    }
    commit_copies();
    wait_copies<kLate>();
    arrive_late(late_[0]);
    late_[0] = late_[1];
    late_[1] = is_mapped ? kNone : full;
  }

  // This warp's part of a tile has landed.
  GPU_FUNCTION void arrive_late(int full) const {
    if (full == kNone) return;
    fence_async();
    sync_warp();
    if (lane() == 0) rings_.barriers.arrive(full);
  }

  // This lane's keys of tile n, from `slot` of a page on.
  GPU_FUNCTION void load_boxes(int kv_head, int ring, int slot, int page, int n) const {
    const TensorMap& map = ring == Rings::kK ? args_.k_map : args_.v_map;
    const bool heads_within = ring == Rings::kK ? args_.k_heads_within : args_.v_heads_within;
    GPU_UNROLL
    for (int channel = 0; channel < Tile::kHeadDim; channel += kBlockColumns) {
      const int to = Rings::place(ring, n) + channel * Tile::kKeys + lane() * kBoxKeys * kBlockColumns;
      load_box(rings_.tiles, to, map, box_of(heads_within, channel, kv_head, slot, page), rings_.barriers,
               Rings::full(ring, n));
    }
  }

  // This warp's rows of tile n; each lane knows the slot and page of one, or that nobody sees it.
  GPU_FUNCTION void copy_rows(int kv_head, int ring, int slot, int page, int n) const {
    constexpr int kChunks = Tile::kHeadDim / 8;
    const PagedTensor& from = ring == Rings::kK ? args_.attention.k : args_.attention.v;
    const auto* const data = static_cast<const T*>(from.data) + kv_head * from.head_stride;
    // Who has no key says so, and is copied nothing from the begin of the pool: addresses are aligned all the same.
    const std::int64_t mine = page == kNone ? kNone : page * from.page_stride + slot * from.slot_stride;
    GPU_UNROLL_BY(1)
    for (int i = lane(); i < kRows * kChunks; i += kWarpSize) {
      const int row = i / kChunks, chunk = i % kChunks;
      const std::int64_t begin = shuffle(mine, row);
      copy_async<16>(
          rings_.tiles, Rings::place(ring, n) + matrix_chunk(Tile::kKeys, warp_index() * kRows + row, chunk) / 2,
          data + (begin == kNone ? 0 : begin) + chunk * 8, begin != kNone && chunk * 8 < args_.attention.head_dim);
    }
  }

  const HopperAttentionArgs& args_;
  const HopperRings<Tile>& rings_;
  int late_[kLate] = {kNone, kNone};
};

// A warpgroup that multiplies: 64 rows of each piece of work.
template <class Tile>
class HopperMultiplier {
 public:
  GPU_FUNCTION HopperMultiplier(const HopperAttentionArgs& args, const HopperRings<Tile>& rings, int group)
      : args_(args.attention),
        launch_(args),
        rings_(rings),
        first_row_(group * Tile::kGroupRows),
        q_(shared_array<T>(Tile::kQAt + group * Tile::kQElements * 2, Tile::kQElements)) {}

  GPU_FUNCTION void run() {
    for_each_work(launch_, [this](int index, int n) { return run(index, n); });
  }

 private:
  using T = typename Tile::T;
  using Rings = HopperRings<Tile>;
  using Work = HopperWork<Tile>;
  static constexpr int kKeys = Tile::kKeys;
  static constexpr int kHeadDim = Tile::kHeadDim;
  static constexpr int kScores = kKeys / 2;  // of a lane, for its two rows
  static constexpr int kSums = kHeadDim / 2;
  static constexpr int kSteps = kKeys / 16;  // of products with values

  // A lane's rows of its warp's 16: lane / 4 (half 0) and lane / 4 + 8 (half 1).
  GPU_FUNCTION int row_of(int half) const { return first_row_ + warp_index() % 4 * 16 + lane() / 4 + 8 * half; }
  // The column of a lane's number i of a product; its half is i / 2 % 2.
  static GPU_FUNCTION int column_of(int i) { return i / 4 * 8 + lane() % 4 * 2 + i % 2; }

  GPU_FUNCTION int run(int index, int n) {
    const Mine mine = begin(Work(args_, index));
    skip(n, mine.n_before);
    n += mine.n_before;
    if (mine.n_tiles > 0) walk(mine.first_key, n, mine.n_tiles);
    n += mine.n_tiles;
    skip(n, mine.n_after);
    finish(Work(args_, index));
    return n + mine.n_after;
  }

  // Of the tiles of a piece of work: those of which these rows see something, and those before and after them.
  struct Mine {
    int first_key, n_before, n_tiles, n_after;
  };

  GPU_FUNCTION Mine begin(const Work& work) {
    const TileRange all = work.tiles();
    const int end_row = Work::least(first_row_ + Tile::kGroupRows, work.item.n_rows);
    TileRange mine{all.begin, all.begin};
    if (end_row > first_row_) {
      mine = work.tiles_of(first_row_, end_row);
      if (mine.end == mine.begin) mine = {all.begin, all.begin};
      all_see_ = {work.seen_by(end_row - 1).begin, work.seen_by(first_row_).end};
    }
    GPU_UNROLL
    for (int half = 0; half < 2; ++half) {
      const int row = row_of(half);
      const bool is_row = row < work.item.n_rows;
      sees_[half] = is_row ? work.seen_by(row) : KeyRange{0, 0};
      positions_[half] = is_row ? work.position_of(row) : 0;
      slopes_[half] = is_row && args_.alibi_slopes != nullptr ? args_.alibi_slopes[work.head_of(row)] * kLog2e : 0.0f;
      max_[half] = -kInfinity;
      sum_[half] = 0.0f;
    }
    GPU_UNROLL
    for (int i = 0; i < kSums; ++i) out_[i] = 0.0f;
    scale_ = args_.scale * args_.k_scale.all;
    if (args_.k_scale.per_head != nullptr) scale_ *= args_.k_scale.per_head[work.kv_head];
    if (mine.end > mine.begin) load_q(work);
    return {mine.begin * kKeys, mine.begin - all.begin, mine.end - mine.begin, all.end - mine.end};
  }

  // Tiles that none of these rows sees.
  GPU_FUNCTION void skip(int n, int n_tiles) const {
    for (int i = n; i < n + n_tiles; ++i) {
      wait_full<Rings::kK>(i);
      sync_warp();
      release<Rings::kK>(i);
      wait_full<Rings::kV>(i);
      sync_warp();
      release<Rings::kV>(i);
    }
  }

  GPU_FUNCTION void load_q(const Work& work) const {
    constexpr int kChunks = kHeadDim / 8;
    sync_warpgroup();  // all have done with the queries of the work before
    for (int i = thread_index() % kWarpgroupSize; i < Tile::kGroupRows * kChunks; i += kWarpgroupSize) {
      const int row = i / kChunks, chunk = i % kChunks;
      Vec<T, 8> value{};
      if (first_row_ + row < work.item.n_rows && chunk * 8 < args_.head_dim) {
        value = load_vec<8>(static_cast<const T*>(args_.q) +
                            (work.item.token_begin + work.token_of(first_row_ + row)) * args_.q_token_stride +
                            work.head_of(first_row_ + row) * args_.q_head_stride + chunk * 8);
      }
      q_.store_vec(matrix_chunk(Tile::kGroupRows, row, chunk) / 2, value);
    }
    fence_async();
    sync_warpgroup();
  }

  template <int ring>
  GPU_FUNCTION void wait_full(int n) const {
    rings_.barriers.wait(Rings::full(ring, n), Rings::Ring::full_parity(n));
  }
  // This warp has done with a tile: its products are over.
  template <int ring>
  GPU_FUNCTION void release(int n) const {
    if (lane() == 0) rings_.barriers.arrive(Rings::empty(ring, n));
  }

  // n_tiles from first_key on, the first of which is tile n of its ring.
  GPU_FUNCTION void walk(int first_key, int n, int n_tiles) {
    float scores[kScores], kept[2];
    std::uint32_t p[kSteps][4];
    begin_keys(n, scores);
    wait_products<0>();
    hold(scores);
    release<Rings::kK>(n);
    make_probabilities(first_key, scores, kept);
    pack_probabilities(scores, p);
    for (const int last = n + n_tiles - 1; n < last; ++n) {
      first_key += kKeys;
      begin_keys(n + 1, scores);
      begin_values(n, p);
      wait_products<1>();
      hold(scores);
      release<Rings::kK>(n + 1);
      make_probabilities(first_key, scores, kept);
      settle(larger(sum_[0], sum_[1]));  // beside the products, not after them
      wait_products<0>();
      hold(out_);
      release<Rings::kV>(n);
      GPU_UNROLL
      for (int i = 0; i < kSums; ++i) out_[i] *= kept[i / 2 % 2];
      hold(out_);
      pack_probabilities(scores, p);
    }
    begin_values(n, p);
    wait_products<0>();
    hold(out_);
    release<Rings::kV>(n);
  }

  GPU_FUNCTION void begin_keys(int n, float (&scores)[kScores]) const {
    wait_full<Rings::kK>(n);
    const std::uint64_t q = describe_rows(matrix_address(q_, 0));
    const std::uint64_t k = describe_rows(matrix_address(rings_.tiles, Rings::place(Rings::kK, n)));
    hold(scores);
    begin_products();
    GPU_UNROLL
    for (int step = 0; step < kHeadDim / 16; ++step) {
      multiply_shared<T, kKeys>(scores, advance(q, step_along_columns(Tile::kGroupRows, step)),
                                advance(k, step_along_columns(kKeys, step)), step > 0);
    }
    commit_products();
  }

  GPU_FUNCTION void begin_values(int n, std::uint32_t (&p)[kSteps][4]) {
    wait_full<Rings::kV>(n);
    const std::uint64_t v = describe_columns(matrix_address(rings_.tiles, Rings::place(Rings::kV, n)), kKeys);
    hold(out_);
    begin_products();
    GPU_UNROLL
    for (int step = 0; step < kSteps; ++step) {
      multiply_registers<T, kHeadDim>(out_, p[step], advance(v, step_along_rows(step)), true);
    }
    commit_products();
  }

  // Products to probabilities relative to each row's running maximum. What was summed before is to be scaled by `kept`.
  GPU_FUNCTION void make_probabilities(int first_key, float (&scores)[kScores], float (&kept)[2]) {
    float factor = scale_ * kLog2e;  // from products to logits in base 2
    if (args_.softcap != 0.0f || args_.alibi_slopes != nullptr || !(factor > 0.0f || factor < 0.0f)) {
      make_logits(first_key, scores);
      factor = 1.0f;
    } else if (factor < 0.0f) {  // as of opposite queries: the largest product must be the largest logit
      GPU_UNROLL
      for (int i = 0; i < kScores; ++i) scores[i] = -scores[i];
      factor = -factor;
    }
    if (first_key < all_see_.begin || first_key + kKeys > all_see_.end) mask(first_key, scores);
    // Numbers i and i + 4 n are of a row, and of one of its two chains: fewer wait for each other.
    float largest[4] = {-kInfinity, -kInfinity, -kInfinity, -kInfinity}, sum[4] = {}, base[2];
    GPU_UNROLL
    for (int i = 0; i < kScores; ++i) largest[i % 4] = larger(largest[i % 4], scores[i]);
    GPU_UNROLL
    for (int half = 0; half < 2; ++half) {
      float of_row = larger(largest[half * 2], largest[half * 2 + 1]);
      of_row = larger(of_row, shuffle_xor(of_row, 1));
      of_row = larger(of_row, shuffle_xor(of_row, 2));
      const float with_these = larger(max_[half], of_row * factor);
      base[half] = with_these == -kInfinity ? 0.0f : with_these;  // a row that has seen nothing yet
      kept[half] = exp2(max_[half] - base[half]);
      max_[half] = with_these;
    }
    GPU_UNROLL
    for (int i = 0; i < kScores; ++i) {
      scores[i] = exp2(fma(scores[i], factor, -base[i / 2 % 2]));
      sum[i % 4] += scores[i];
    }
    GPU_UNROLL
    for (int half = 0; half < 2; ++half) {
      sum_[half] = sum_[half] * kept[half] + (sum[half * 2] + sum[half * 2 + 1]);
    }
  }

  GPU_FUNCTION void make_logits(int first_key, float (&scores)[kScores]) const {
    const float scale = args_.softcap != 0.0f ? scale_ / args_.softcap : scale_ * kLog2e;
    GPU_UNROLL
    for (int i = 0; i < kScores; ++i) {
      float score = scores[i] * scale;
      if (args_.softcap != 0.0f) score = tanh(score) * (args_.softcap * kLog2e);
      const int distance = positions_[i / 2 % 2] - (first_key + column_of(i));
      scores[i] = score - slopes_[i / 2 % 2] * static_cast<float>(distance < 0 ? -distance : distance);
    }
  }

  GPU_FUNCTION void mask(int first_key, float (&scores)[kScores]) const {
    GPU_UNROLL
    for (int i = 0; i < kScores; ++i) {
      const int key = first_key + column_of(i);
      const KeyRange& sees = sees_[i / 2 % 2];
      if (key < sees.begin || key >= sees.end) scores[i] = -kInfinity;
    }
  }

  // The numbers of one product are laid out as the left operand of the next.
  static GPU_FUNCTION void pack_probabilities(const float (&scores)[kScores], std::uint32_t (&p)[kSteps][4]) {
    GPU_UNROLL
    for (int step = 0; step < kSteps; ++step) {
      GPU_UNROLL
      for (int word = 0; word < 4; ++word) {
        p[step][word] = pack<T>(scores[step * 8 + word * 2], scores[step * 8 + word * 2 + 1]);
      }
    }
  }

  GPU_FUNCTION void finish(const Work& work) const {
    float v_scale = args_.v_scale.all;
    if (args_.v_scale.per_head != nullptr) v_scale *= args_.v_scale.per_head[work.kv_head];
    GPU_UNROLL
    for (int half = 0; half < 2; ++half) {
      float sum = sum_[half];
      sum += shuffle_xor(sum, 1);
      sum += shuffle_xor(sum, 2);
      const int row = row_of(half);
      if (row >= work.item.n_rows) continue;
      const int token = work.item.token_begin + work.token_of(row), head = work.head_of(row);
      const bool has_states = args_.state_begin[token] != kNoState;
      float rescale = 1.0f, largest = max_[half];
      if (args_.sinks != nullptr && !has_states && work.item.sequence != kNoSequence) {
        const float sink = sink_of(args_.sinks[head]);
        const float with_sink = larger(largest, sink);
        const float base = with_sink == -kInfinity ? 0.0f : with_sink;
        rescale = exp2(largest - base);
        sum = sum * rescale + exp2(sink - base);
        largest = with_sink;
      }
      // A sum that is NaN makes both NaN: what is wrong with a key must show.
      const float factor = sum == 0.0f ? 0.0f : rescale * v_scale / sum;
      const float lse = sum == 0.0f ? -kInfinity : largest + log2(sum);
      if (has_states) {
        const std::int64_t state = std::int64_t{args_.state_begin[token] + work.item.split} * args_.n_heads + head;
        write_row(args_.states + state * args_.head_dim, half, factor);
        if (lane() % 4 == 0) args_.state_lse[state] = lse;
      } else {
        write_row(static_cast<T*>(args_.out) + token * args_.out_token_stride + head * args_.out_head_stride, half,
                  factor);
        if (args_.lse != nullptr && lane() % 4 == 0) args_.lse[std::int64_t{token} * args_.n_heads + head] = lse * kLn2;
      }
    }
  }

  template <class Out>
  GPU_FUNCTION void write_row(Out* row, int half, float factor) const {
    GPU_UNROLL
    for (int i = 0; i < kSums; i += 4) {
      const int channel = column_of(i);
      if (channel >= args_.head_dim) continue;
      store_vec(row + channel, Vec<Out, 2>{from_float<Out>(out_[i + half * 2] * factor),
                                           from_float<Out>(out_[i + half * 2 + 1] * factor)});
    }
  }

  static constexpr float kInfinity = __builtin_huge_valf();

  const PagedAttentionArgs& args_;
  const HopperAttentionArgs& launch_;
  const HopperRings<Tile>& rings_;
  const int first_row_;
  const Shared<T> q_;
  KeyRange all_see_{0, 0};  // keys that every row of the group sees
  KeyRange sees_[2];
  int positions_[2];
  float slopes_[2];
  float max_[2], sum_[2];  // of a lane's keys; lanes meet at the end
  float scale_;
  float out_[kSums];
};

template <class Tile>
GPU_KERNEL_OF(Tile::kThreads)
paged_flash_attention_kernel_hopper(GPU_ARGUMENT HopperAttentionArgs args) {
  if constexpr (kHasWarpgroups) {
    const HopperRings<Tile> rings;
    rings.init();
    if (warpgroup_index() == 0) {
      give_registers<Tile::kRegisters.filling>();
      HopperFiller<Tile>(args, rings).run();
    } else {
      take_registers<Tile::kRegisters.multiplying>();
      HopperMultiplier<Tile>(args, rings, warpgroup_index() - 1).run();
    }
  } else {
    trap();
  }
}

}  // namespace gpu
}  // namespace llm_decoder
