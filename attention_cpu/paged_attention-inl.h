// Attention over pages: one pass over a sequence's pages in ascending order, each row carrying its running maximum, sum
// and output (online softmax, Milakov and Gimelshein 2018; tiles as in Dao et al. 2022). Included after
// append_kv-inl.h.
//
//   item ── blocks of rows ── pages ── tiles of rows:   score -> weigh -> accumulate
//
// A row is one query head of one token. What is done to a row, and in which order, depends on its own position and
// pages alone, never on the rows beside it: a tile shares loads, not arithmetic.
#pragma once

// Rows that share one pass over the pages: queries and outputs stay in the first cache level.
constexpr std::int32_t kBlockRows = 64;

// Where the running maximum starts. Finite, so that no difference of two maxima is NaN.
constexpr float kNoMaximum = -kLargestFloat;

// How far ahead of the page at work pages are asked for.
constexpr std::int64_t kPagesAheadBytes = 16 << 10;

// Below this a page's weights p * v_scale count as zero; 255 over it is finite.
constexpr float kSmallestWeight = 255.0f * kSmallestNormal;

// What a block of rows carries from page to page, and one tile's scores. hd = head_dim_padded.
struct AttentionScratch {
  float* out;              // [n_rows, hd], not yet divided by the sum
  float* sum;              // [n_rows, 16], a running sum in each lane
  float* max;              // [n_rows, 16], the running maximum in every lane
  std::int32_t* position;  // [n_rows], ascending
  float* q;                // [n_rows, hd], f32 pages
  std::int8_t* q_s8;       // [n_rows, hd], s8 pages
  float* q_scale;          // [n_rows], includes the scale of attention
  std::int32_t* q_bias;    // [n_rows], -128 * sum(q), which undoes the bias of K
  float* scores;           // [kRowTile, page_size], overwritten by the weights
  std::uint8_t* weights;   // [kRowTile, page_size], s8 pages
  std::int32_t n_rows;     // of a block, at most
};

// A run of floats or bytes in scratch, each on its own cache line.
struct ScratchCursor {
  std::byte* base;
  std::size_t used = 0;

  template <class T>
  T* take(std::int64_t n) {
    T* run = base == nullptr ? nullptr : reinterpret_cast<T*>(base + used);
    used += (static_cast<std::size_t>(n) * sizeof(T) + 63) / 64 * 64;
    return run;
  }
};

// At least the heads of one token, so that decoding reads each page once whatever the ratio of heads.
inline std::int32_t rows_of_block(const PagedKvView& kv, std::int32_t n_heads) {
  const std::int32_t group = n_heads / kv.n_kv_heads;
  return group > kBlockRows ? group : kBlockRows;
}

inline AttentionScratch lay_out_scratch(const PagedKvView& kv, std::int32_t n_heads, ScratchCursor& cursor) {
  const std::int64_t n_rows = rows_of_block(kv, n_heads);
  const bool is_f32 = kv.dtype == Dtype::f32;
  AttentionScratch scratch;
  scratch.n_rows = static_cast<std::int32_t>(n_rows);
  scratch.out = cursor.take<float>(n_rows * kv.head_dim_padded);
  scratch.sum = cursor.take<float>(n_rows * kLanes);
  scratch.max = cursor.take<float>(n_rows * kLanes);
  scratch.position = cursor.take<std::int32_t>(n_rows);
  scratch.q = cursor.take<float>(is_f32 ? n_rows * kv.head_dim_padded : 0);
  scratch.q_s8 = cursor.take<std::int8_t>(is_f32 ? 0 : n_rows * kv.head_dim_padded);
  scratch.q_scale = cursor.take<float>(n_rows);
  scratch.q_bias = cursor.take<std::int32_t>(n_rows);
  scratch.scores = cursor.take<float>(static_cast<std::int64_t>(kRowTile) * kv.page_size);
  scratch.weights = cursor.take<std::uint8_t>(is_f32 ? 0 : static_cast<std::int64_t>(kRowTile) * kv.page_size);
  return scratch;
}

std::size_t attention_scratch_bytes(const PagedKvView& kv, std::int32_t n_heads) {
  ScratchCursor cursor{nullptr};
  lay_out_scratch(kv, n_heads, cursor);
  return cursor.used;
}

// Slots begin <= slot < end of a page.
struct SlotRange {
  std::int32_t begin, end;
};

inline std::int32_t smaller(std::int32_t a, std::int32_t b) { return a < b ? a : b; }
inline std::int32_t larger(std::int32_t a, std::int32_t b) { return a > b ? a : b; }

// One page under one tile of rows, with what the steps of the page hand to each other.
struct PageTile {
  PagedKvView kv;
  AttentionScratch scratch;
  std::int32_t kv_head;
  std::int32_t page, page_ahead;  // the page to prefetch, or the page itself
  std::int32_t first_row;         // of the tile, within the block
  SlotRange seen[kRowTile];       // by each row, never empty
  SlotRange seen_by_any;
  alignas(64) float decay[kRowTile][kLanes];         // of each row, in every lane: multiplies what it has gathered
  alignas(64) float weight_scale[kRowTile][kLanes];  // of each row, in every lane: p * v_scale = byte * weight_scale

  const std::byte* k_tile(std::int32_t of_page) const { return kv.k_tile(of_page, kv_head); }
  const std::byte* v_tile(std::int32_t of_page) const { return kv.v_tile(of_page, kv_head); }
  float* out(std::int32_t row) const {
    return scratch.out + static_cast<std::int64_t>(first_row + row) * kv.head_dim_padded;
  }
  float* scores(std::int32_t row) const { return scratch.scores + static_cast<std::int64_t>(row) * kv.page_size; }
  std::uint8_t* weights(std::int32_t row) const {
    return scratch.weights + static_cast<std::int64_t>(row) * kv.page_size;
  }
  // The slots that any row sees, in whole vectors.
  std::int32_t slot_begin() const { return seen_by_any.begin / kLanes * kLanes; }
  std::int32_t slot_end() const { return (seen_by_any.end + kLanes - 1) / kLanes * kLanes; }
};

// Calls Step<kRows, kVectors>::run(tile, i) for the vectors of elements [begin, end), i their first element: as many
// beside each other as the registers hold, then one by one.
template <template <int, int> class Step, int kRows>
inline void for_vectors(const PageTile& tile, std::int32_t begin, std::int32_t end) {
  constexpr std::int32_t kBeside = vectors_beside(kRows);
  std::int32_t i = begin;
  for (; end - i >= kBeside * kLanes; i += kBeside * kLanes) Step<kRows, kBeside>::run(tile, i);
  for (; i < end; i += kLanes) Step<kRows, 1>::run(tile, i);
}

// ---- score: q . k * scale for slots [slot, slot + 16 * kVectors) of the page, whether seen or not.

template <int kRows, int kVectors>
struct ScoreF32 {
  static void run(const PageTile& tile, std::int32_t slot) {
    const std::int64_t page_size = tile.kv.page_size, hd = tile.kv.head_dim_padded;
    const float* k = reinterpret_cast<const float*>(tile.k_tile(tile.page)) + slot;
    const float* k_ahead = reinterpret_cast<const float*>(tile.k_tile(tile.page_ahead)) + slot;
    const float* q = tile.scratch.q + tile.first_row * hd;
    F32 acc[kRows][kVectors];
#pragma GCC unroll 8
    for (int row = 0; row < kRows; ++row) {
#pragma GCC unroll 8
      for (int j = 0; j < kVectors; ++j) acc[row][j] = splat(0.0f);
    }
    for (std::int64_t channel = 0; channel < tile.kv.head_dim; ++channel) {
      F32 keys[kVectors];
#pragma GCC unroll 8
      for (int j = 0; j < kVectors; ++j) {
        keys[j] = load(k + channel * page_size + j * kLanes);
        prefetch(k_ahead + channel * page_size + j * kLanes);
      }
#pragma GCC unroll 8
      for (int row = 0; row < kRows; ++row) {
        const F32 query = splat(q[row * hd + channel]);
#pragma GCC unroll 8
        for (int j = 0; j < kVectors; ++j) acc[row][j] = fma(query, keys[j], acc[row][j]);
      }
    }
#pragma GCC unroll 8
    for (int row = 0; row < kRows; ++row) {
      const F32 scale = splat(tile.scratch.q_scale[tile.first_row + row]);
#pragma GCC unroll 8
      for (int j = 0; j < kVectors; ++j) store(tile.scores(row) + slot + j * kLanes, mul(acc[row][j], scale));
    }
  }
};

template <int kRows, int kVectors>
struct ScoreS8 {
  static void run(const PageTile& tile, std::int32_t slot) {
    const std::int64_t hd = tile.kv.head_dim_padded;
    const std::int64_t quad_stride = static_cast<std::int64_t>(tile.kv.page_size) * kDotWidth;
    const std::uint8_t* k = reinterpret_cast<const std::uint8_t*>(tile.k_tile(tile.page)) + slot * kDotWidth;
    const std::uint8_t* k_ahead =
        reinterpret_cast<const std::uint8_t*>(tile.k_tile(tile.page_ahead)) + slot * kDotWidth;
    const std::int8_t* q = tile.scratch.q_s8 + tile.first_row * hd;
    I32 acc[kRows][kVectors];
#pragma GCC unroll 8
    for (int row = 0; row < kRows; ++row) {
      const I32 bias = splat(tile.scratch.q_bias[tile.first_row + row]);
#pragma GCC unroll 8
      for (int j = 0; j < kVectors; ++j) acc[row][j] = bias;
    }
    for (std::int64_t quad = 0; quad < hd / kDotWidth; ++quad) {
      U8Quads keys[kVectors];
#pragma GCC unroll 8
      for (int j = 0; j < kVectors; ++j) {
        keys[j] = load_quads(k + quad * quad_stride + j * kLanes * kDotWidth);
        prefetch(k_ahead + quad * quad_stride + j * kLanes * kDotWidth);
      }
#pragma GCC unroll 8
      for (int row = 0; row < kRows; ++row) {
        const S8Splat query = splat_quad(q + row * hd + quad * kDotWidth);
#pragma GCC unroll 8
        for (int j = 0; j < kVectors; ++j) acc[row][j] = dot4(acc[row][j], keys[j], query);
      }
    }
    const float* k_scale = tile.kv.k_scales(tile.page, tile.kv_head) + slot;
#pragma GCC unroll 8
    for (int row = 0; row < kRows; ++row) {
      const F32 q_scale = splat(tile.scratch.q_scale[tile.first_row + row]);
#pragma GCC unroll 8
      for (int j = 0; j < kVectors; ++j) {
        const F32 scale = mul(load(k_scale + j * kLanes), q_scale);
        store(tile.scores(row) + slot + j * kLanes, mul(to_f32(acc[row][j]), scale));
      }
    }
  }
};

// ---- weigh: scores become probabilities relative to the running maximum. A row at a time, in registers from the
// maximum on, so that the chains of several rows overlap.

// What a row sees of the vectors of a tile: keep() puts `fill` into the lanes that it must not see.
struct SeesAll {
  F32 keep(F32 x, std::int32_t /*slot*/, F32 /*fill*/) const { return x; }
};
struct SeesSome {
  SlotRange seen;
  F32 keep(F32 x, std::int32_t slot, F32 fill) const {
    return select(lanes_between(seen.begin - slot, seen.end - slot), x, fill);
  }
};

// A row's scores, and its place among what the block carries.
struct RowOfTile {
  float* scores;  // [page_size], replaced by probabilities or weights
  float* max;
  float* sum;
  float* decay;
  std::int32_t slot_begin, slot_end;  // whole vectors that any row of the tile sees
};

inline RowOfTile row_of_tile(PageTile& tile, std::int32_t row) {
  const std::int64_t carried = static_cast<std::int64_t>(tile.first_row + row) * kLanes;
  return {tile.scores(row), tile.scratch.max + carried, tile.scratch.sum + carried,
          tile.decay[row],  tile.slot_begin(),          tile.slot_end()};
}

// Raises the running maximum, which it returns, to the largest score seen in the page, and sets the decay.
template <class Seen>
inline F32 raise_maximum(const RowOfTile& row, Seen seen) {
  const F32 none = splat(kNoMaximum);
  F32 largest = none;
  for (std::int32_t slot = row.slot_begin; slot < row.slot_end; slot += kLanes) {
    largest = max(seen.keep(load(row.scores + slot), slot, none), largest);
  }
  const F32 before = load(row.max);
  const F32 after = max(splat(reduce_max(largest)), before);
  store(row.max, after);
  store(row.decay, exp_lut(sub(before, after)));
  return after;
}

template <class Seen>
inline void weigh_f32(const RowOfTile& row, Seen seen) {
  const F32 zero = splat(0.0f), row_max = raise_maximum(row, seen);
  F32 sum = mul(load(row.sum), load(row.decay));
  for (std::int32_t slot = row.slot_begin; slot < row.slot_end; slot += kLanes) {
    const F32 p = seen.keep(exp_lut(sub(load(row.scores + slot), row_max)), slot, zero);
    store(row.scores + slot, p);
    sum = add(sum, p);
  }
  store(row.sum, sum);
}

// Adds a page's probabilities to the row's sum and leaves p * v_scale in their place; returns the largest of these.
template <class Seen>
inline F32 fold_value_scales(const RowOfTile& row, Seen seen, const float* v_scale) {
  const F32 zero = splat(0.0f), row_max = raise_maximum(row, seen);
  F32 sum = mul(load(row.sum), load(row.decay));
  F32 largest = zero;
  for (std::int32_t slot = row.slot_begin; slot < row.slot_end; slot += kLanes) {
    const F32 p = seen.keep(exp_lut(sub(load(row.scores + slot), row_max)), slot, zero);
    const F32 weight = seen.keep(mul(p, load(v_scale + slot)), slot, zero);
    store(row.scores + slot, weight);
    sum = add(sum, fma(weight, zero, p));  // a NaN scale of V shows in the sum, and so in the result
    largest = max(weight, largest);
  }
  store(row.sum, sum);
  return splat(reduce_max(largest));
}

// The row's weights against the page's own largest, so that a long flat tail keeps its eight bits page by page.
template <class Seen>
inline void weigh_s8(const RowOfTile& row, Seen seen, const float* v_scale, std::uint8_t* weights,
                     float* weight_scale) {
  const F32 largest = fold_value_scales(row, seen, v_scale);
  const Mask is_nothing = less(largest, splat(kSmallestWeight));
  const F32 bytes_per_weight = select(is_nothing, splat(0.0f), div(splat(255.0f), largest));
  store(weight_scale, select(is_nothing, splat(0.0f), mul(largest, splat(1.0f / 255.0f))));
  for (std::int32_t slot = row.slot_begin; slot < row.slot_end; slot += kLanes) {
    store_bytes(weights + slot, to_i32(mul(load(row.scores + slot), bytes_per_weight)));
  }
}

template <class Seen>
inline void weigh(PageTile& tile, std::int32_t row, Seen seen) {
  if (tile.kv.dtype == Dtype::s8) {
    weigh_s8(row_of_tile(tile, row), seen, tile.kv.v_scales(tile.page, tile.kv_head), tile.weights(row),
             tile.weight_scale[row]);
  } else {
    weigh_f32(row_of_tile(tile, row), seen);
  }
}

inline void weigh_rows(PageTile& tile, std::int32_t n_rows) {
  for (std::int32_t row = 0; row < n_rows; ++row) {
    if (tile.seen[row].begin == 0 && tile.seen[row].end == tile.kv.page_size) {
      weigh(tile, row, SeesAll{});
    } else {
      weigh(tile, row, SeesSome{tile.seen[row]});
    }
  }
}

// ---- accumulate: out = out * decay + weights . v for channels [channel, channel + 16 * kVectors).

template <int kRows, int kVectors>
struct AccumulateS8 {
  static void run(const PageTile& tile, std::int32_t channel) {
    const std::int64_t quad_stride = static_cast<std::int64_t>(tile.kv.head_dim_padded) * kDotWidth;
    const std::int64_t page_size = tile.kv.page_size;
    const std::int8_t* v = reinterpret_cast<const std::int8_t*>(tile.v_tile(tile.page)) + channel * kDotWidth;
    const std::int8_t* v_ahead =
        reinterpret_cast<const std::int8_t*>(tile.v_tile(tile.page_ahead)) + channel * kDotWidth;
    const std::uint8_t* weights = tile.weights(0);
    I32 acc[kRows][kVectors];
#pragma GCC unroll 8
    for (int row = 0; row < kRows; ++row) {
#pragma GCC unroll 8
      for (int j = 0; j < kVectors; ++j) acc[row][j] = splat(std::int32_t{0});
    }
    const std::int64_t quad_end = (tile.seen_by_any.end + kDotWidth - 1) / kDotWidth;
    for (std::int64_t quad = tile.seen_by_any.begin / kDotWidth; quad < quad_end; ++quad) {
      S8Quads values[kVectors];
#pragma GCC unroll 8
      for (int j = 0; j < kVectors; ++j) {
        values[j] = load_quads(v + quad * quad_stride + j * kLanes * kDotWidth);
        prefetch(v_ahead + quad * quad_stride + j * kLanes * kDotWidth);
      }
#pragma GCC unroll 8
      for (int row = 0; row < kRows; ++row) {
        const U8Splat weight = splat_quad(weights + row * page_size + quad * kDotWidth);
#pragma GCC unroll 8
        for (int j = 0; j < kVectors; ++j) acc[row][j] = dot4(acc[row][j], weight, values[j]);
      }
    }
#pragma GCC unroll 8
    for (int row = 0; row < kRows; ++row) {
      const F32 decay = load(tile.decay[row]), scale = load(tile.weight_scale[row]);
#pragma GCC unroll 8
      for (int j = 0; j < kVectors; ++j) {
        float* out = tile.out(row) + channel + j * kLanes;
        store(out, fma(load(out), decay, mul(to_f32(acc[row][j]), scale)));
      }
    }
  }
};

// Slots `seen_by_any` of the tile, for rows that all see them.
template <int kRows, int kVectors>
struct AccumulateF32 {
  static void run(const PageTile& tile, std::int32_t channel) {
    const std::int64_t hd = tile.kv.head_dim_padded, page_size = tile.kv.page_size;
    const float* v = reinterpret_cast<const float*>(tile.v_tile(tile.page)) + channel;
    const float* v_ahead = reinterpret_cast<const float*>(tile.v_tile(tile.page_ahead)) + channel;
    const float* p = tile.scores(0);
    F32 acc[kRows][kVectors];
#pragma GCC unroll 8
    for (int row = 0; row < kRows; ++row) {
      const F32 decay = load(tile.decay[row]);
#pragma GCC unroll 8
      for (int j = 0; j < kVectors; ++j) acc[row][j] = mul(load(tile.out(row) + channel + j * kLanes), decay);
    }
    for (std::int64_t slot = tile.seen_by_any.begin; slot < tile.seen_by_any.end; ++slot) {
      F32 values[kVectors];
#pragma GCC unroll 8
      for (int j = 0; j < kVectors; ++j) {
        values[j] = load(v + slot * hd + j * kLanes);
        prefetch(v_ahead + slot * hd + j * kLanes);
      }
#pragma GCC unroll 8
      for (int row = 0; row < kRows; ++row) {
        const F32 weight = splat(p[row * page_size + slot]);
#pragma GCC unroll 8
        for (int j = 0; j < kVectors; ++j) acc[row][j] = fma(weight, values[j], acc[row][j]);
      }
    }
#pragma GCC unroll 8
    for (int row = 0; row < kRows; ++row) {
#pragma GCC unroll 8
      for (int j = 0; j < kVectors; ++j) store(tile.out(row) + channel + j * kLanes, acc[row][j]);
    }
  }
};

inline void accumulate_run(const PageTile& tile, std::int32_t row, SlotRange run) {
  if (run.begin >= run.end) return;
  PageTile alone = tile;
  alone.first_row = tile.first_row + row;
  alone.scratch.scores = tile.scores(row);
  store(alone.decay[0], splat(1.0f));
  alone.seen_by_any = run;
  for_vectors<AccumulateF32, 1>(alone, 0, tile.kv.head_dim_padded);
}

// A slot that a row must not see may hold NaN, which zero times does not silence. So where the rows' ranges differ,
// each row goes over the slots before and after the common ones alone; every row still adds its slots in ascending
// order.
template <int kRows>
inline void accumulate_uneven_f32(PageTile& tile) {
  SlotRange common = tile.seen[0];
  for (int row = 1; row < kRows; ++row) {
    common.begin = larger(common.begin, tile.seen[row].begin);
    common.end = smaller(common.end, tile.seen[row].end);
  }
  if (common.begin >= common.end) common = {tile.seen_by_any.end, tile.seen_by_any.end};
  for (int row = 0; row < kRows; ++row) {
    const F32 decay = load(tile.decay[row]);
    float* out = tile.out(row);
    for (std::int32_t i = 0; i < tile.kv.head_dim_padded; i += kLanes) store(out + i, mul(load(out + i), decay));
    store(tile.decay[row], splat(1.0f));
    accumulate_run(tile, row, {tile.seen[row].begin, smaller(tile.seen[row].end, common.begin)});
  }
  tile.seen_by_any = common;
  for_vectors<AccumulateF32, kRows>(tile, 0, tile.kv.head_dim_padded);
  for (int row = 0; row < kRows; ++row) {
    accumulate_run(tile, row, {larger(tile.seen[row].begin, common.end), tile.seen[row].end});
  }
}

template <int kRows>
inline bool rows_see_the_same(const PageTile& tile) {
  bool result = true;
  for (int row = 0; row < kRows; ++row) {
    result = result && tile.seen[row].begin == tile.seen_by_any.begin && tile.seen[row].end == tile.seen_by_any.end;
  }
  return result;
}

// ---- the walk

template <int kRows>
void attend_tile(PageTile& tile) {
  if (tile.kv.dtype == Dtype::s8) {
    for_vectors<ScoreS8, kRows>(tile, tile.slot_begin(), tile.slot_end());
    weigh_rows(tile, kRows);
    for_vectors<AccumulateS8, kRows>(tile, 0, tile.kv.head_dim_padded);
    return;
  }
  for_vectors<ScoreF32, kRows>(tile, tile.slot_begin(), tile.slot_end());
  weigh_rows(tile, kRows);
  if (rows_see_the_same<kRows>(tile)) {
    for_vectors<AccumulateF32, kRows>(tile, 0, tile.kv.head_dim_padded);
  } else {
    accumulate_uneven_f32<kRows>(tile);
  }
}

template <int kMost>
inline void attend_tile_of(std::int32_t n_rows, PageTile& tile) {
  if constexpr (kMost > 1) {
    if (n_rows < kMost) return attend_tile_of<kMost - 1>(n_rows, tile);
  }
  attend_tile<kMost>(tile);
}

// The first position that `position` sees.
inline std::int32_t window_begin(std::int32_t position, std::int32_t window) {
  return window > 0 && position >= window ? position - window + 1 : 0;
}

// Rows [row_begin, row_end) of the block against one page, all of which see a part of it.
inline void attend_page(PageTile& tile, std::int32_t row_begin, std::int32_t row_end, std::int32_t page_begin,
                        std::int32_t window) {
  const std::int32_t page_size = tile.kv.page_size;
  for (std::int32_t first = row_begin; first < row_end; first += kRowTile) {
    const std::int32_t n_rows = smaller(row_end - first, kRowTile);
    tile.first_row = first;
    tile.seen_by_any = {page_size, 0};
    for (std::int32_t row = 0; row < n_rows; ++row) {
      const std::int32_t position = tile.scratch.position[first + row];
      const SlotRange seen = {larger(window_begin(position, window) - page_begin, 0),
                              smaller(position + 1 - page_begin, page_size)};
      tile.seen[row] = seen;
      tile.seen_by_any.begin = smaller(tile.seen_by_any.begin, seen.begin);
      tile.seen_by_any.end = larger(tile.seen_by_any.end, seen.end);
    }
    attend_tile_of<kRowTile>(n_rows, tile);
    tile.page_ahead = tile.page;  // asked for once
  }
}

// A row of the item is (token, head of the group), tokens outermost.
struct RowOfItem {
  std::int32_t token;  // row of q and out
  std::int32_t head;
  std::int32_t position;
};

inline RowOfItem row_of_item(const AttentionArgs& args, const AttentionItem& item, std::int32_t row) {
  const std::int32_t group = args.n_heads / args.kv.n_kv_heads;
  const std::int32_t token = row / group;
  return {item.token_begin + token, item.kv_head * group + row % group, item.position_begin + token};
}

inline std::int64_t offset_of(const RowOfItem& row, std::int64_t stride, std::int32_t head_dim) {
  return row.token * stride + static_cast<std::int64_t>(row.head) * head_dim;
}

// Queries of the item's rows [row_begin, row_begin + n_rows) into the block, and nothing gathered yet.
inline void begin_block(const AttentionArgs& args, const AttentionItem& item, std::int32_t row_begin,
                        std::int32_t n_rows, const AttentionScratch& scratch) {
  const std::int32_t head_dim = args.kv.head_dim, hd = args.kv.head_dim_padded;
  for (std::int32_t i = 0; i < n_rows; ++i) {
    const RowOfItem row = row_of_item(args, item, row_begin + i);
    const float* q = args.q + offset_of(row, args.q_stride, head_dim);
    const std::int64_t begin = static_cast<std::int64_t>(i) * hd;
    scratch.position[i] = row.position;
    store(scratch.max + i * kLanes, splat(kNoMaximum));
    store(scratch.sum + i * kLanes, splat(0.0f));
    for (std::int32_t j = 0; j < hd; j += kLanes) store(scratch.out + begin + j, splat(0.0f));
    if (args.kv.dtype == Dtype::f32) {
      for (std::int32_t j = 0; j < hd; j += kLanes) store(scratch.q + begin + j, load_at(q, head_dim, j, 0.0f));
      scratch.q_scale[i] = args.scale;
    } else {
      const float scale = int8_scale(q, head_dim, 1.0f);
      scratch.q_scale[i] = scale * args.scale;
      scratch.q_bias[i] = -128 * quantize_row(q, head_dim, hd, scale, scratch.q_s8 + begin);
    }
  }
}

inline void finish_block(const AttentionArgs& args, const AttentionItem& item, std::int32_t row_begin,
                         std::int32_t n_rows, const AttentionScratch& scratch) {
  const std::int32_t head_dim = args.kv.head_dim;
  for (std::int32_t i = 0; i < n_rows; ++i) {
    const RowOfItem row = row_of_item(args, item, row_begin + i);
    const float* gathered = scratch.out + static_cast<std::int64_t>(i) * args.kv.head_dim_padded;
    float* out = args.out + offset_of(row, args.out_stride, head_dim);
    const float sum = reduce_add(load(scratch.sum + i * kLanes));
    const F32 divisor = splat(sum == 0.0f ? 1.0f : sum);  // a row that sees nothing has gathered 0
    for (std::int32_t j = 0; j < head_dim; j += kLanes) store_at(out, head_dim, j, div(load(gathered + j), divisor));
  }
}

// Far enough to cover the latency of memory, near enough to be cached still when its turn comes.
inline std::int32_t pages_ahead(const PagedKvView& kv) {
  return larger(static_cast<std::int32_t>(kPagesAheadBytes / (2 * kv.head_stride_bytes)), 1);
}

inline void prefetch_scales(const PageTile& tile) {
  if (tile.kv.dtype == Dtype::f32) return;
  for (std::int32_t slot = 0; slot < tile.kv.page_size; slot += kLanes) {
    prefetch(tile.kv.k_scales(tile.page_ahead, tile.kv_head) + slot);
    prefetch(tile.kv.v_scales(tile.page_ahead, tile.kv_head) + slot);
  }
}

// Pages that no row of the block sees are not read, nor their entries in the table.
inline void attend_block(const AttentionArgs& args, const AttentionItem& item, std::int32_t n_rows,
                         const AttentionScratch& scratch) {
  const std::int32_t page_size = args.kv.page_size;
  const std::int32_t* position = scratch.position;
  const std::int32_t last = position[n_rows - 1] / page_size;
  PageTile tile;
  tile.kv = args.kv;
  tile.scratch = scratch;
  tile.kv_head = item.kv_head;
  const std::int32_t ahead = pages_ahead(args.kv);
  std::int32_t row_begin = 0, row_end = 0;  // the rows that see the page: positions ascend, so both ends only advance
  for (std::int32_t index = window_begin(position[0], args.window) / page_size; index <= last; ++index) {
    const std::int32_t page_begin = index * page_size;
    while (position[row_begin] < page_begin) ++row_begin;
    while (row_end < n_rows && window_begin(position[row_end], args.window) - page_begin < page_size) ++row_end;
    tile.page = item.block_table[index];
    tile.page_ahead = last - index >= ahead ? item.block_table[index + ahead] : tile.page;
    prefetch_scales(tile);
    attend_page(tile, row_begin, row_end, page_begin, args.window);
  }
}

void paged_attention(const AttentionArgs& args, const AttentionItem& item, std::byte* scratch_bytes) {
  ScratchCursor cursor{scratch_bytes};
  const AttentionScratch scratch = lay_out_scratch(args.kv, args.n_heads, cursor);
  const std::int32_t n_item_rows = item.n_tokens * (args.n_heads / args.kv.n_kv_heads);
  for (std::int32_t row = 0; row < n_item_rows; row += scratch.n_rows) {
    const std::int32_t n_rows = smaller(n_item_rows - row, scratch.n_rows);
    begin_block(args, item, row, n_rows, scratch);
    attend_block(args, item, n_rows, scratch);
    finish_block(args, item, row, n_rows, scratch);
  }
}
