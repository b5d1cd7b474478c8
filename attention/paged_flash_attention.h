// Attention over pages in one kernel: prompts, chunks, decodes and checks of guesses, alone or mixed in a batch.
//
// FlashAttention-2 (arXiv 2307.08691) over paged keys: a block holds the queries of a few tokens, all query heads of
// one KV head together, so that keys and values are read once a KV head; it walks over its keys in tiles that come
// through a ring of asynchronous copies, and keeps for each row the running maximum, sum and output. Where keys are
// shared among items (FlashDecoding), each writes a state; merge_states.h joins them.
//
// A block's warps are kWarpsM x kWarpsN: those of M have rows of their own, those of N keys of their own in each tile,
// with a state of their own until the end. Many rows (prompts) want M, few rows (decode) N.
//
// Tiles of keys lie at multiples of kKeys, whatever the item: sums do not depend on where an item begins.
#pragma once

#include "machine.h"
#include "paged_attention.h"
#include "swizzle.h"
#include "widen_bytes.h"

namespace llm_decoder {
namespace gpu {

constexpr float kLog2e = 1.4426950408889634f;
constexpr float kLn2 = 0.6931471805599453f;

// A sink in base 2, finite where the sink is.
GPU_FUNCTION float sink_of(float sink) {
  constexpr float kLargest = 3.402823466e+38f;
  return sink * kLog2e > kLargest ? kLargest : sink * kLog2e;
}

// Probabilities times the scale of a slot are halves: lifted by this they are of the size of the largest value, where
// fp16 has all its bits, and still finite for any value that fp16 holds.
constexpr float kWeightLift = 128.0f;

// Q: Bf16 or Fp16. Kv: the same, Fp8 or Int8. head_dim: of the class, what is past args.head_dim is zero.
template <class Q_, class Kv_, int head_dim_, int row_tiles_, int warps_m_, int warps_n_, int keys_, int stages_>
struct FlashTile {
  using Q = Q_;
  using Kv = Kv_;
  static constexpr int kHeadDim = head_dim_;
  static constexpr int kRowTiles = row_tiles_;  // of 16 rows, a warp
  static constexpr int kWarpsM = warps_m_, kWarpsN = warps_n_;
  static constexpr int kKeys = keys_;  // of a tile
  static constexpr int kStages = stages_;
  static constexpr bool kIsNarrow = sizeof(Kv) == 1;

  static constexpr int kThreads = kWarpsM * kWarpsN * kWarpSize;
  static constexpr int kRows = 16 * kRowTiles * kWarpsM;
  static constexpr int kWarpKeys = kKeys / kWarpsN;
  static constexpr int kQRowBytes = kHeadDim * 2;
  static constexpr int kKvRowBytes = kHeadDim * static_cast<int>(sizeof(Kv));
  static constexpr int kTileBytes = kKeys * kKvRowBytes;
  static constexpr int kTileElements = kKeys * kHeadDim;
  // Shared memory: Q, the ring of K tiles, the ring of V tiles, the rings of their scales. Once keys are over, the
  // warps of N hand over their states where the rings were.
  static constexpr int kKAt = kRows * kQRowBytes;
  static constexpr int kVAt = kKAt + kStages * kTileBytes;
  static constexpr int kScaleAt = kVAt + kStages * kTileBytes;
  static constexpr int kRingEnd = kScaleAt + 2 * kStages * kKeys * static_cast<int>(sizeof(float));
  static constexpr int kStateFloats = kHeadDim + 2;  // out, maximum, sum
  static constexpr int kStatesEnd =
      kWarpsN == 1 ? 0 : kKAt + (kWarpsN - 1) * kRows * kStateFloats * static_cast<int>(sizeof(float));
  static constexpr int kSharedBytes = kRingEnd > kStatesEnd ? kRingEnd : kStatesEnd;

  static_assert(kHeadDim % 32 == 0 && kWarpKeys % 16 == 0 && kStages >= 2, "whole fragments");
};

template <class Tile>
class FlashBlock {
 public:
  GPU_FUNCTION explicit FlashBlock(const PagedAttentionArgs& args)
      : args_(args),
        item_(item_of_block(args)),
        kv_head_(block_index().y),
        group_(args.n_heads / args.n_kv_heads),
        warp_m_(warp_index() % Tile::kWarpsM),
        warp_n_(warp_index() / Tile::kWarpsM),
        q_(shared_array<Q>(0, Tile::kRows * kHeadDim)),
        k_(shared_array<Kv>(Tile::kKAt, Tile::kStages * Tile::kTileElements)),
        v_(shared_array<Kv>(Tile::kVAt, Tile::kStages * Tile::kTileElements)),
        scales_(shared_array<float>(Tile::kScaleAt, 2 * Tile::kStages * Tile::kKeys)) {}

  GPU_FUNCTION void run() {
    if (item_.n_rows <= 0) return;
    find_limits();
    load_q();
    walk();
    if constexpr (Tile::kWarpsN > 1) gather_warps();
    if (warp_n_ == 0) finish();
  }

 private:
  using Q = typename Tile::Q;
  using Kv = typename Tile::Kv;
  static constexpr int kHeadDim = Tile::kHeadDim;
  static constexpr int kRowTiles = Tile::kRowTiles;
  static constexpr int kKeyTiles = Tile::kWarpKeys / 8;  // columns of 8 keys
  static constexpr int kOutTiles = kHeadDim / 8;         // columns of 8 channels

  // An item for larger blocks is the work of several of these.
  static GPU_FUNCTION PagedAttentionItem item_of_block(const PagedAttentionArgs& args) {
    PagedAttentionItem item = args.items[block_index().x / args.blocks_per_item];
    const int n_before = block_index().x % args.blocks_per_item * Tile::kRows;
    item.row_begin += n_before;
    item.n_rows = min_of(item.n_rows - n_before, Tile::kRows);
    return item;
  }

  // A lane's rows: of row tile r the rows lane / 4 (half 0) and lane / 4 + 8 (half 1).
  struct RowLimits {
    int begin, end;  // keys that the row sees
  };

  GPU_FUNCTION int row_of(int row_tile, int half) const {
    return (warp_m_ * kRowTiles + row_tile) * 16 + lane() / 4 + 8 * half;
  }
  // Of the item's token_begin.
  GPU_FUNCTION int token_of(int row) const { return (item_.row_begin + row) / group_; }
  GPU_FUNCTION int head_of(int row) const { return kv_head_ * group_ + (item_.row_begin + row) % group_; }
  GPU_FUNCTION bool is_row(int row) const { return row < item_.n_rows; }

  GPU_FUNCTION RowLimits limits_of(int token) const {
    const int position = item_.first_position + item_.position_step * token;
    const int after = args_.is_causal ? 0 : args_.window_right;
    return {max_of(item_.key_begin, position - args_.window_left), min_of(item_.key_end, position + after + 1)};
  }
  static GPU_FUNCTION int max_of(int a, int b) { return a > b ? a : b; }
  static GPU_FUNCTION int min_of(int a, int b) { return a < b ? a : b; }

  GPU_FUNCTION void find_limits() {
    const RowLimits first = limits_of(token_of(0)), last = limits_of(token_of(item_.n_rows - 1));
    key_begin_ = first.begin;
    key_end_ = last.end;
    seen_by_all_begin_ = last.begin;
    seen_by_all_end_ = first.end;
    for (int r = 0; r < kRowTiles; ++r) {
      for (int half = 0; half < 2; ++half) {
        max_[r][half] = -kInfinity;
        sum_[r][half] = 0.0f;
      }
    }
  }

  // Queries as the products want them. With bytes for keys a lane's word holds four neighbouring channels, so the
  // channels of 16 trade places here in the same way (see key_fragments).
  GPU_FUNCTION void load_q() {
    constexpr int kChunks = kHeadDim / 8;
    for (int i = thread_index(); i < Tile::kRows * kChunks; i += Tile::kThreads) {
      const int row = i / kChunks, chunk = i % kChunks;
      Vec<Q, 8> value{};
      if (is_row(row) && chunk * 8 < args_.head_dim) {
        value =
            load_vec<8>(static_cast<const Q*>(args_.q) + (item_.token_begin + token_of(row)) * args_.q_token_stride +
                        head_of(row) * args_.q_head_stride + chunk * 8);
      }
      if constexpr (Tile::kIsNarrow) {
        // Channels 8 c + 4 u + 2 w + i of 16 go to 8 w + 4 c + 2 u + i.
        for (int u = 0; u < 2; ++u) {
          for (int w = 0; w < 2; ++w) {
            const int place = 4 * (chunk % 2) + 2 * u;  // of 8
            q_.store_vec((Swizzle<Tile::kQRowBytes>::at(row, chunk / 2 * 2 + w)) / 2 + place,
                         Vec<Q, 2>{value.values[4 * u + 2 * w], value.values[4 * u + 2 * w + 1]});
          }
        }
      } else {
        q_.store_vec(Swizzle<Tile::kQRowBytes>::at(row, chunk) / 2, value);
      }
    }
  }

  // Begins the copies of the tile whose first key is `first_key`. Keys that no row of the block sees are zeros: their
  // pages may be anyone's.
  GPU_FUNCTION void begin_tile(int first_key, int stage) {
    constexpr int kChunks = Tile::kKvRowBytes / kSharedAlign;
    constexpr int kPerChunk = kSharedAlign / static_cast<int>(sizeof(Kv));
    const auto* k = static_cast<const Kv*>(args_.k.data) + kv_head_ * args_.k.head_stride;
    const auto* v = static_cast<const Kv*>(args_.v.data) + kv_head_ * args_.v.head_stride;
    const int* pages = args_.block_table + item_.sequence * args_.block_table_stride;
    for (int i = thread_index(); i < Tile::kKeys * kChunks; i += Tile::kThreads) {
      const int row = i / kChunks, chunk = i % kChunks, key = first_key + row;
      const bool is_seen = key >= key_begin_ && key < key_end_;
      const std::int64_t page = is_seen ? pages[key / args_.page_size] : 0;
      const int slot = key % args_.page_size, channel = chunk * kPerChunk;
      const int to =
          stage * Tile::kTileElements + Swizzle<Tile::kKvRowBytes>::at(row, chunk) / static_cast<int>(sizeof(Kv));
      copy_chunk(k_, to, k + page * args_.k.page_stride + slot * args_.k.slot_stride + channel, is_seen, channel);
      copy_chunk(v_, to, v + page * args_.v.page_stride + slot * args_.v.slot_stride + channel, is_seen, channel);
    }
    for (int row = thread_index(); row < Tile::kKeys; row += Tile::kThreads) {
      const int key = first_key + row;
      const bool is_seen = key >= key_begin_ && key < key_end_;
      const std::int64_t page = is_seen ? pages[key / args_.page_size] : 0;
      const std::int64_t at = (page * args_.page_size + key % args_.page_size) * args_.n_kv_heads + kv_head_;
      if (args_.k_scale.per_slot != nullptr) {
        copy_async<4>(scales_, stage * Tile::kKeys + row, args_.k_scale.per_slot + at, is_seen);
      }
      if (args_.v_scale.per_slot != nullptr) {
        copy_async<4>(scales_, (Tile::kStages + stage) * Tile::kKeys + row, args_.v_scale.per_slot + at, is_seen);
      }
    }
  }

  // 16 bytes. Rows of bytes may be aligned to 8 alone, and end in the middle of a chunk.
  GPU_FUNCTION void copy_chunk(const Shared<Kv>& to, int at, const Kv* from, bool is_seen, int channel) const {
    if constexpr (Tile::kIsNarrow) {
      copy_async<8>(to, at, from, is_seen && channel < args_.head_dim);
      copy_async<8>(to, at + 8, from + 8, is_seen && channel + 8 < args_.head_dim);
    } else {
      copy_async<16>(to, at, from, is_seen && channel < args_.head_dim);
    }
  }

  GPU_FUNCTION void walk() {
    const int first_tile = key_begin_ / Tile::kKeys;
    const int end_tile = key_end_ > key_begin_ ? (key_end_ + Tile::kKeys - 1) / Tile::kKeys : first_tile;
    for (int stage = 0; stage < Tile::kStages - 1; ++stage) {
      if (first_tile + stage < end_tile) begin_tile((first_tile + stage) * Tile::kKeys, stage);
      commit_copies();
    }
    for (int tile = first_tile; tile < end_tile; ++tile) {
      wait_copies<Tile::kStages - 2>();
      sync_block();  // the tile is there for all, and all are done with the one before it
      const int next = tile + Tile::kStages - 1;
      if (next < end_tile) begin_tile(next * Tile::kKeys, (next - first_tile) % Tile::kStages);
      commit_copies();
      add_tile(tile * Tile::kKeys, (tile - first_tile) % Tile::kStages);
    }
    wait_copies<0>();
  }

  GPU_FUNCTION void add_tile(int first_key, int stage) {
    float scores[kRowTiles][kKeyTiles][4] = {};
    multiply_keys(stage, scores);
    const int warp_key = first_key + warp_n_ * Tile::kWarpKeys;
    finish_scores(warp_key, stage, scores);
    if (warp_key < seen_by_all_begin_ || warp_key + Tile::kWarpKeys > seen_by_all_end_) mask(warp_key, scores);
    make_probabilities(scores);
    if (args_.v_scale.per_slot == nullptr) return multiply_values<false>(stage, scores);
    weigh_slots(stage, scores);
    multiply_values<kKeepsRounding>(stage, scores);
  }

  GPU_FUNCTION void multiply_keys(int stage, float (&scores)[kRowTiles][kKeyTiles][4]) const {
    GPU_UNROLL
    for (int step = 0; step < kHeadDim / 32; ++step) {  // of 32 channels, two products deep
      std::uint32_t q[kRowTiles][2][4];
      GPU_UNROLL
      for (int r = 0; r < kRowTiles; ++r) {
        GPU_UNROLL
        for (int half = 0; half < 2; ++half) {
          const int row = (warp_m_ * kRowTiles + r) * 16 + lane() % 16;
          load_matrices(q[r][half], q_, Swizzle<Tile::kQRowBytes>::at(row, step * 4 + half * 2 + lane() / 16) / 2);
        }
      }
      GPU_UNROLL
      for (int pair = 0; pair < kKeyTiles / 2; ++pair) {
        std::uint32_t k[2][2][2];  // [half of the channels][column of keys]
        key_fragments(stage, warp_n_ * Tile::kWarpKeys + pair * 16, step, k);
        GPU_UNROLL
        for (int half = 0; half < 2; ++half) {
          GPU_UNROLL
          for (int r = 0; r < kRowTiles; ++r) {
            mma_16x8x16<Q>(scores[r][pair * 2], q[r][half], k[half][0]);
            mma_16x8x16<Q>(scores[r][pair * 2 + 1], q[r][half], k[half][1]);
          }
        }
      }
    }
  }

  // The operands of 16 keys and 32 channels. Bytes come four neighbouring channels a lane, where a product wants two
  // and two that are 8 apart: any order of channels will do, as long as Q has the same.
  GPU_FUNCTION void key_fragments(int stage, int first_row, int step, std::uint32_t (&k)[2][2][2]) const {
    std::uint32_t words[4];
    const int base = stage * Tile::kTileElements;
    const int row = first_row + lane() % 8 + lane() / 16 * 8;
    if constexpr (Tile::kIsNarrow) {
      load_matrices(words, k_, base + Swizzle<Tile::kKvRowBytes>::at(row, step * 2 + lane() / 8 % 2));
      GPU_UNROLL
      for (int column = 0; column < 2; ++column) {
        GPU_UNROLL
        for (int half = 0; half < 2; ++half) {
          k[half][column][0] = widen<Q, Kv>(words[column * 2 + half], 0, 1);
          k[half][column][1] = widen<Q, Kv>(words[column * 2 + half], 2, 3);
        }
      }
    } else {
      GPU_UNROLL
      for (int half = 0; half < 2; ++half) {
        load_matrices(words, k_, base + Swizzle<Tile::kKvRowBytes>::at(row, step * 4 + half * 2 + lane() / 8 % 2) / 2);
        GPU_UNROLL
        for (int i = 0; i < 4; ++i) k[half][i / 2][i % 2] = words[i];
      }
    }
  }

  // Raw products to logits in base 2: scales, softcap, ALiBi.
  GPU_FUNCTION void finish_scores(int warp_key, int stage, float (&scores)[kRowTiles][kKeyTiles][4]) const {
    float scale = args_.scale * args_.k_scale.all / kUnitOf<Kv>;
    if (args_.k_scale.per_head != nullptr) scale *= args_.k_scale.per_head[kv_head_];
    if (args_.softcap == 0.0f) scale *= kLog2e;
    GPU_UNROLL
    for (int n = 0; n < kKeyTiles; ++n) {
      GPU_UNROLL
      for (int i = 0; i < 2; ++i) {
        float column_scale = scale;
        if (args_.k_scale.per_slot != nullptr) {
          column_scale *= scales_.load(stage * Tile::kKeys + warp_n_ * Tile::kWarpKeys + column_of(n, i));
        }
        GPU_UNROLL
        for (int r = 0; r < kRowTiles; ++r) {
          GPU_UNROLL
          for (int half = 0; half < 2; ++half) {
            float& score = scores[r][n][half * 2 + i];
            score *= column_scale;
            if (args_.softcap != 0.0f) score = tanh(score / args_.softcap) * args_.softcap * kLog2e;
          }
        }
      }
    }
    if (args_.alibi_slopes != nullptr) subtract_distances(warp_key, scores);
  }

  GPU_FUNCTION void subtract_distances(int warp_key, float (&scores)[kRowTiles][kKeyTiles][4]) const {
    GPU_UNROLL
    for (int r = 0; r < kRowTiles; ++r) {
      GPU_UNROLL
      for (int half = 0; half < 2; ++half) {
        const int row = row_of(r, half);
        const float slope = is_row(row) ? args_.alibi_slopes[head_of(row)] * kLog2e : 0.0f;
        const int position = item_.first_position + item_.position_step * token_of(row);
        GPU_UNROLL
        for (int n = 0; n < kKeyTiles; ++n) {
          GPU_UNROLL
          for (int i = 0; i < 2; ++i) {
            const int distance = position - (warp_key + column_of(n, i));
            scores[r][n][half * 2 + i] -= slope * static_cast<float>(distance < 0 ? -distance : distance);
          }
        }
      }
    }
  }

  // The key, of the warp's in a tile, of sum i of this lane in column n of the scores.
  static GPU_FUNCTION int column_of(int n, int i) { return n * 8 + lane() % 4 * 2 + i; }

  GPU_FUNCTION void mask(int warp_key, float (&scores)[kRowTiles][kKeyTiles][4]) const {
    GPU_UNROLL
    for (int r = 0; r < kRowTiles; ++r) {
      GPU_UNROLL
      for (int half = 0; half < 2; ++half) {
        const int row = row_of(r, half);
        const RowLimits limits = is_row(row) ? limits_of(token_of(row)) : RowLimits{0, 0};
        GPU_UNROLL
        for (int n = 0; n < kKeyTiles; ++n) {
          GPU_UNROLL
          for (int i = 0; i < 2; ++i) {
            const int key = warp_key + column_of(n, i);
            if (key < limits.begin || key >= limits.end) scores[r][n][half * 2 + i] = -kInfinity;
          }
        }
      }
    }
  }

  // Logits to probabilities relative to each row's running maximum; what was summed before is scaled to it.
  GPU_FUNCTION void make_probabilities(float (&scores)[kRowTiles][kKeyTiles][4]) {
    GPU_UNROLL
    for (int r = 0; r < kRowTiles; ++r) {
      GPU_UNROLL
      for (int half = 0; half < 2; ++half) {
        float largest = max_[r][half];
        GPU_UNROLL
        for (int n = 0; n < kKeyTiles; ++n) {
          largest = larger(largest, larger(scores[r][n][half * 2], scores[r][n][half * 2 + 1]));
        }
        largest = larger(largest, shuffle_xor(largest, 1));
        largest = larger(largest, shuffle_xor(largest, 2));
        const float base = largest == -kInfinity ? 0.0f : largest;  // a row that has seen nothing yet
        const float kept = exp2(max_[r][half] - base);
        max_[r][half] = largest;
        float sum = 0.0f;
        GPU_UNROLL
        for (int n = 0; n < kKeyTiles; ++n) {
          GPU_UNROLL
          for (int i = 0; i < 2; ++i) {
            float& score = scores[r][n][half * 2 + i];
            score = exp2(score - base);
            sum += score;
          }
        }
        sum_[r][half] = sum_[r][half] * kept + sum;
        GPU_UNROLL
        for (int n = 0; n < kOutTiles; ++n) {
          out_[r][n][half * 2] *= kept;
          out_[r][n][half * 2 + 1] *= kept;
        }
      }
    }
  }

  // The scale of a slot goes with its weight.
  GPU_FUNCTION void weigh_slots(int stage, float (&weights)[kRowTiles][kKeyTiles][4]) const {
    GPU_UNROLL
    for (int n = 0; n < kKeyTiles; ++n) {
      GPU_UNROLL
      for (int i = 0; i < 2; ++i) {
        const int column = (Tile::kStages + stage) * Tile::kKeys + warp_n_ * Tile::kWarpKeys + column_of(n, i);
        const float scale = scales_.load(column) * kWeightLift;
        GPU_UNROLL
        for (int r = 0; r < kRowTiles; ++r) {
          GPU_UNROLL
          for (int half = 0; half < 2; ++half) weights[r][n][half * 2 + i] *= scale;
        }
      }
    }
  }

  // The largest probability, 1, loses nothing as an operand of a product, but times the scale of its slot it does, and
  // where few rows see few keys there is no other error to hide behind. What the weights lose is then multiplied too:
  // few rows leave the time for it, the many of a prompt go without.
  static constexpr bool kKeepsRounding = Tile::kWarpsN > 1;

  template <bool keeps_rounding>
  GPU_FUNCTION void multiply_values(int stage, const float (&scores)[kRowTiles][kKeyTiles][4]) {
    GPU_UNROLL
    for (int step = 0; step < kKeyTiles / 2; ++step) {  // of 16 keys
      std::uint32_t p[kRowTiles][4], lost[kRowTiles][4];
      probability_fragments<keeps_rounding>(step, scores, p, lost);
      GPU_UNROLL
      for (int pair = 0; pair < kOutTiles / 2; ++pair) {  // of 16 channels; 32 where they are bytes
        if (Tile::kIsNarrow && pair % 2 == 1) continue;
        std::uint32_t words[4];
        const int row = warp_n_ * Tile::kWarpKeys + step * 16 + lane() % 16;
        load_matrices_transposed(words, v_, stage * Tile::kTileElements + value_chunk(row, pair));
        if constexpr (Tile::kIsNarrow) {
          // A word holds channels 2 c and 2 c + 1 of two keys: two columns, of the even and of the odd channels.
          GPU_UNROLL
          for (int column = 0; column < 4; ++column) {
            const std::uint32_t v[2] = {widen<Q, Kv>(words[column / 2 * 2], column % 2, column % 2 + 2),
                                        widen<Q, Kv>(words[column / 2 * 2 + 1], column % 2, column % 2 + 2)};
            GPU_UNROLL
            for (int r = 0; r < kRowTiles; ++r) {
              mma_16x8x16<Q>(out_[r][pair * 2 + column], p[r], v);
              if constexpr (keeps_rounding) mma_16x8x16<Q>(out_[r][pair * 2 + column], lost[r], v);
            }
          }
        } else {
          GPU_UNROLL
          for (int column = 0; column < 2; ++column) {
            const std::uint32_t v[2] = {words[column * 2], words[column * 2 + 1]};
            GPU_UNROLL
            for (int r = 0; r < kRowTiles; ++r) {
              mma_16x8x16<Q>(out_[r][pair * 2 + column], p[r], v);
              if constexpr (keeps_rounding) mma_16x8x16<Q>(out_[r][pair * 2 + column], lost[r], v);
            }
          }
        }
      }
    }
  }

  // Where in a tile of values this lane's row of ldmatrix begins, in elements.
  static GPU_FUNCTION int value_chunk(int row, int pair) {
    const int chunk = Tile::kIsNarrow ? pair + lane() / 16 : pair * 2 + lane() / 16;
    return Swizzle<Tile::kKvRowBytes>::at(row, chunk) / static_cast<int>(sizeof(Kv));
  }

  // The sums of one product are laid out as the left operand of the next. lost: what rounding takes from p.
  template <bool keeps_rounding>
  static GPU_FUNCTION void probability_fragments(int step, const float (&scores)[kRowTiles][kKeyTiles][4],
                                                 std::uint32_t (&p)[kRowTiles][4],
                                                 std::uint32_t (&lost)[kRowTiles][4]) {
    GPU_UNROLL
    for (int word = 0; word < 4; ++word) {
      const int n = step * 2 + word / 2, half = word % 2;
      GPU_UNROLL
      for (int r = 0; r < kRowTiles; ++r) {
        const float left = scores[r][n][half * 2], right = scores[r][n][half * 2 + 1];
        p[r][word] = pack<Q>(left, right);
        if constexpr (keeps_rounding) {
          lost[r][word] = pack<Q>(left - to_float(from_float<Q>(left)), right - to_float(from_float<Q>(right)));
        }
      }
    }
  }

  // Warps that had other keys of the same rows hand their states to the first.
  GPU_FUNCTION void gather_warps() {
    const auto states = shared_array<float>(Tile::kKAt, (Tile::kWarpsN - 1) * Tile::kRows * Tile::kStateFloats);
    sync_block();  // all are done with the rings
    if (warp_n_ > 0) {
      visit_state(warp_n_, [&](int at, float& value) { states.store(at, value); });
    }
    sync_block();
    if (warp_n_ > 0) return;
    for (int other = 1; other < Tile::kWarpsN; ++other) {
      GPU_UNROLL
      for (int r = 0; r < kRowTiles; ++r) {
        GPU_UNROLL
        for (int half = 0; half < 2; ++half) {
          const int at = ((other - 1) * Tile::kRows + row_of(r, half)) * Tile::kStateFloats;
          const float other_max = states.load(at + kHeadDim);
          const float largest = larger(max_[r][half], other_max);
          const float base = largest == -kInfinity ? 0.0f : largest;
          const float mine = exp2(max_[r][half] - base), theirs = exp2(other_max - base);
          max_[r][half] = largest;
          const float other_sum = lane() % 4 == 0 ? states.load(at + kHeadDim + 1) : 0.0f;
          sum_[r][half] = sum_[r][half] * mine + other_sum * theirs;
          GPU_UNROLL
          for (int n = 0; n < kOutTiles; ++n) {
            GPU_UNROLL
            for (int i = 0; i < 2; ++i) {
              float& value = out_[r][n][half * 2 + i];
              value = value * mine + states.load(at + channel_of(n, i)) * theirs;
            }
          }
        }
      }
    }
  }

  template <class Visit>
  GPU_FUNCTION void visit_state(int warp_n, const Visit& visit) {
    GPU_UNROLL
    for (int r = 0; r < kRowTiles; ++r) {
      GPU_UNROLL
      for (int half = 0; half < 2; ++half) {
        const int at = ((warp_n - 1) * Tile::kRows + row_of(r, half)) * Tile::kStateFloats;
        float sum = row_sum(r, half);
        if (lane() % 4 == 0) {
          visit(at + kHeadDim, max_[r][half]);
          visit(at + kHeadDim + 1, sum);
        }
        GPU_UNROLL
        for (int n = 0; n < kOutTiles; ++n) {
          GPU_UNROLL
          for (int i = 0; i < 2; ++i) visit(at + channel_of(n, i), out_[r][n][half * 2 + i]);
        }
      }
    }
  }

  GPU_FUNCTION float row_sum(int r, int half) const {
    float sum = sum_[r][half];
    sum += shuffle_xor(sum, 1);
    return sum + shuffle_xor(sum, 2);
  }

  // The channel of sum i of this lane in column n of the output.
  static GPU_FUNCTION int channel_of(int n, int i) {
    const int column = lane() % 4 * 2 + i;
    return Tile::kIsNarrow ? n / 2 * 16 + column * 2 + n % 2 : n * 8 + column;
  }

  GPU_FUNCTION void finish() {
    float v_scale = args_.v_scale.all / kUnitOf<Kv>;
    if (args_.v_scale.per_head != nullptr) v_scale *= args_.v_scale.per_head[kv_head_];
    if (args_.v_scale.per_slot != nullptr) v_scale /= kWeightLift;
    GPU_UNROLL
    for (int r = 0; r < kRowTiles; ++r) {
      GPU_UNROLL
      for (int half = 0; half < 2; ++half) {
        const float keys_sum = row_sum(r, half);
        const int row = row_of(r, half);
        if (!is_row(row)) continue;
        const int token = item_.token_begin + token_of(row), head = head_of(row);
        const bool has_states = args_.state_begin[token] != kNoState;
        float sum = keys_sum, rescale = 1.0f, largest = max_[r][half];
        if (args_.sinks != nullptr && !has_states && item_.sequence != kNoSequence) {
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
          write_state(token, head, r, half, factor, lse);
        } else {
          write_out(token, head, r, half, factor, lse);
        }
      }
    }
  }

  GPU_FUNCTION void write_state(int token, int head, int r, int half, float factor, float lse) const {
    const std::int64_t state = std::int64_t{args_.state_begin[token] + item_.split} * args_.n_heads + head;
    GPU_UNROLL
    for (int n = 0; n < kOutTiles; ++n) {
      GPU_UNROLL
      for (int i = 0; i < 2; ++i) {
        const int channel = channel_of(n, i);
        if (channel < args_.head_dim)
          args_.states[state * args_.head_dim + channel] = out_[r][n][half * 2 + i] * factor;
      }
    }
    if (lane() % 4 == 0) args_.state_lse[state] = lse;
  }

  GPU_FUNCTION void write_out(int token, int head, int r, int half, float factor, float lse) const {
    Q* const out = static_cast<Q*>(args_.out) + token * args_.out_token_stride + head * args_.out_head_stride;
    GPU_UNROLL
    for (int n = 0; n < kOutTiles; ++n) {
      GPU_UNROLL
      for (int i = 0; i < 2; ++i) {
        const int channel = channel_of(n, i);
        if (channel < args_.head_dim) out[channel] = from_float<Q>(out_[r][n][half * 2 + i] * factor);
      }
    }
    if (args_.lse != nullptr && lane() % 4 == 0) args_.lse[std::int64_t{token} * args_.n_heads + head] = lse * kLn2;
  }

  static GPU_FUNCTION float larger(float a, float b) { return a > b ? a : b; }
  static constexpr float kInfinity = __builtin_huge_valf();

  const PagedAttentionArgs& args_;
  const PagedAttentionItem item_;
  const int kv_head_, group_, warp_m_, warp_n_;
  const Shared<Q> q_;
  const Shared<Kv> k_, v_;
  const Shared<float> scales_;
  int key_begin_, key_end_;                      // keys that any row sees
  int seen_by_all_begin_, seen_by_all_end_;      // keys that every row sees
  float max_[kRowTiles][2], sum_[kRowTiles][2];  // of a lane's keys; lanes meet at the end
  float out_[kRowTiles][kOutTiles][4] = {};
};

template <class Tile>
GPU_KERNEL paged_flash_attention_kernel_fused(const PagedAttentionArgs args) {
  FlashBlock<Tile> block(args);
  block.run();
}

}  // namespace gpu
}  // namespace llm_decoder
