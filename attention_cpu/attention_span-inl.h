// A tile of rows over one span of pages: score -> weigh -> accumulate. Included after attention_rows-inl.h.
//
// What is done to a row, and in which order, depends on its own position and pages alone, never on the rows beside it:
// a tile shares loads, not arithmetic. Tiles as in Dao et al. 2022.
#pragma once

// Below this a page's weights p * v_scale count as zero; 255 over it is finite.
constexpr float kSmallestWeight = 255.0f * kSmallestNormal;

constexpr std::int64_t kPrefetchBytes = 64;

// Slots begin <= slot < end, of a span or of a page.
struct SlotRange {
  std::int32_t begin, end;
};

struct SpanTile {
  PagedKvView kv;
  AttentionScratch scratch;
  std::int32_t kv_head;
  const std::int32_t* pages;  // ids of the span's pages; those outside seen_by_any are dead
  std::int32_t span_slots;
  std::int32_t first_row;  // of the tile, within the block
  std::int32_t n_rows;
  SlotRange seen[kRowTile];  // by each row, slots of the span, perhaps none
  SlotRange seen_by_any;     // never empty
  State state[kRowTile];     // receives each row's state over the span
  // What is asked for meanwhile, spread over the work, because few lines can be under way at a time: V of this span
  // while K is read, K of the next span while weights are made and while V is read, half and half.
  bool asks_for_v;
  std::int32_t n_pages_ahead;  // of the next span, whose ids follow those of this one
  std::int32_t span_pages;

  float* scores(std::int32_t row) const { return scratch.scores + static_cast<std::int64_t>(row) * span_slots; }
  std::uint8_t* weights(std::int32_t row) const {
    return scratch.weights + static_cast<std::int64_t>(row) * span_slots;
  }
  float* weight_scales(std::int32_t row) const {
    return scratch.weight_scales + static_cast<std::int64_t>(row) * span_pages;
  }
  float* largest_weights(std::int32_t row, std::int32_t page) const {
    return scratch.largest_weights + (static_cast<std::int64_t>(row) * span_pages + page) * kLanes;
  }
  // The slots of the span that any row sees, in whole vectors.
  std::int32_t slot_begin() const { return seen_by_any.begin / kLanes * kLanes; }
  std::int32_t slot_end() const { return (seen_by_any.end + kLanes - 1) / kLanes * kLanes; }
};

// One page of the span.
struct TilePage {
  std::int32_t number;  // in the span
  std::int32_t id;
  std::int32_t first_slot;  // of the page, in the span
  SlotRange seen_by_any;    // slots of the page from here on
  std::int32_t slot_begin, slot_end;
  const std::byte *k, *v;  // tiles
  // What the steps ask for: a tile while K is read, two halves of a tile later; what is there already if nothing.
  const std::byte *ahead_of_score, *ahead_of_weigh, *ahead_of_accumulate;
};

inline SlotRange within_page(SlotRange of_span, std::int32_t first_slot, std::int32_t page_size) {
  return {larger(of_span.begin - first_slot, 0), smaller(of_span.end - first_slot, page_size)};
}

inline TilePage page_of_tile(const SpanTile& tile, std::int32_t number) {
  const std::int32_t page_size = tile.kv.page_size;
  TilePage page;
  page.number = number;
  page.id = tile.pages[number];
  page.first_slot = number * page_size;
  page.seen_by_any = within_page(tile.seen_by_any, page.first_slot, page_size);
  page.slot_begin = page.seen_by_any.begin / kLanes * kLanes;
  page.slot_end = (page.seen_by_any.end + kLanes - 1) / kLanes * kLanes;
  page.k = tile.kv.k_tile(page.id, tile.kv_head);
  page.v = tile.kv.v_tile(page.id, tile.kv_head);
  const bool goes_on = number < tile.n_pages_ahead;
  const std::byte* next = goes_on ? tile.kv.k_tile(tile.pages[number + tile.span_pages], tile.kv_head) : page.v;
  page.ahead_of_score = tile.asks_for_v ? page.v : page.k;
  page.ahead_of_weigh = goes_on ? next : nullptr;
  page.ahead_of_accumulate = next + tile.kv.head_stride_bytes / 2;
  return page;
}

template <class Fn>
inline void for_pages(const SpanTile& tile, const Fn& fn) {
  const std::int32_t page_size = tile.kv.page_size;
  for (std::int32_t number = tile.seen_by_any.begin / page_size; number * page_size < tile.seen_by_any.end; ++number) {
    fn(page_of_tile(tile, number));
  }
}

// Calls Step<kRows, kVectors>::run(tile, page, i) for the vectors of elements [begin, end), i their first element: as
// many beside each other as the registers hold, then two (a small page has no more), then one.
template <template <int, int> class Step, int kRows>
inline void for_vectors(const SpanTile& tile, const TilePage& page, std::int32_t begin, std::int32_t end) {
  constexpr std::int32_t kBeside = vectors_beside(kRows);
  std::int32_t i = begin;
  for (; end - i >= kBeside * kLanes; i += kBeside * kLanes) Step<kRows, kBeside>::run(tile, page, i);
  if constexpr (kBeside > 2) {
    for (; end - i >= 2 * kLanes; i += 2 * kLanes) Step<kRows, 2>::run(tile, page, i);
  }
  for (; i < end; i += kLanes) Step<kRows, 1>::run(tile, page, i);
}

// ---- s8 pages. Score: q . k for slots [slot, slot + 16 * kVectors) of the page, whether seen or not; the row's
// q_scale is left to exp.

template <int kRows, int kVectors>
struct ScoreS8 {
  static void run(const SpanTile& tile, const TilePage& page, std::int32_t slot) {
    const std::int64_t hd = tile.kv.head_dim_padded;
    const std::int64_t quad_stride = static_cast<std::int64_t>(tile.kv.page_size) * kDotWidth;
    const std::uint8_t* k = reinterpret_cast<const std::uint8_t*>(page.k) + slot * kDotWidth;
    const std::uint8_t* ahead = reinterpret_cast<const std::uint8_t*>(page.ahead_of_score) + slot * kDotWidth;
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
        prefetch(ahead + quad * quad_stride + j * kLanes * kDotWidth);
      }
#pragma GCC unroll 8
      for (int row = 0; row < kRows; ++row) {
        const S8Splat query = splat_quad(q + row * hd + quad * kDotWidth);
#pragma GCC unroll 8
        for (int j = 0; j < kVectors; ++j) acc[row][j] = dot4(acc[row][j], keys[j], query);
      }
    }
    const float* k_scale = tile.kv.k_scales(page.id, tile.kv_head) + slot;
#pragma GCC unroll 8
    for (int row = 0; row < kRows; ++row) {
      float* scores = tile.scores(row) + page.first_slot + slot;
#pragma GCC unroll 8
      for (int j = 0; j < kVectors; ++j)
        store(scores + j * kLanes, mul(to_f32(acc[row][j]), load(k_scale + j * kLanes)));
    }
  }
};

// Accumulate: out += weights . v of one page for channels [channel, channel + 16 * kVectors).
template <int kRows, int kVectors>
struct AccumulateS8 {
  static void run(const SpanTile& tile, const TilePage& page, std::int32_t channel) {
    const std::int64_t quad_stride = static_cast<std::int64_t>(tile.kv.head_dim_padded) * kDotWidth;
    const std::int8_t* v = reinterpret_cast<const std::int8_t*>(page.v) + channel * kDotWidth;
    const std::uint8_t* weights = tile.weights(0) + page.first_slot;
    I32 acc[kRows][kVectors];
#pragma GCC unroll 8
    for (int row = 0; row < kRows; ++row) {
#pragma GCC unroll 8
      for (int j = 0; j < kVectors; ++j) acc[row][j] = splat(std::int32_t{0});
    }
    const std::int64_t quad_end = (page.seen_by_any.end + kDotWidth - 1) / kDotWidth;
    for (std::int64_t quad = page.seen_by_any.begin / kDotWidth; quad < quad_end; ++quad) {
      S8Quads values[kVectors];
#pragma GCC unroll 8
      for (int j = 0; j < kVectors; ++j) {
        values[j] = load_quads(v + quad * quad_stride + j * kLanes * kDotWidth);
        if (j % 2 == 0)
          prefetch(page.ahead_of_accumulate + (quad * quad_stride + (channel + j * kLanes) * kDotWidth) / 2);
      }
#pragma GCC unroll 8
      for (int row = 0; row < kRows; ++row) {
        const U8Splat weight = splat_quad(weights + row * tile.span_slots + quad * kDotWidth);
#pragma GCC unroll 8
        for (int j = 0; j < kVectors; ++j) acc[row][j] = dot4(acc[row][j], weight, values[j]);
      }
    }
#pragma GCC unroll 8
    for (int row = 0; row < kRows; ++row) {
      const F32 scale = splat(tile.weight_scales(row)[page.number]);
#pragma GCC unroll 8
      for (int j = 0; j < kVectors; ++j) {
        float* out = tile.state[row].out + channel + j * kLanes;
        store(out, fma(to_f32(acc[row][j]), scale, load(out)));
      }
    }
  }
};

// ---- float pages

template <class Element>
struct FloatPages {
  template <int kRows, int kVectors>
  struct Score {
    static void run(const SpanTile& tile, const TilePage& page, std::int32_t slot) {
      const std::int64_t page_size = tile.kv.page_size, hd = tile.kv.head_dim_padded;
      const Element* k = reinterpret_cast<const Element*>(page.k) + slot;
      const Element* ahead = reinterpret_cast<const Element*>(page.ahead_of_score) + slot;
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
          prefetch(ahead + channel * page_size + j * kLanes);
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
        float* scores = tile.scores(row) + page.first_slot + slot;
#pragma GCC unroll 8
        for (int j = 0; j < kVectors; ++j) store(scores + j * kLanes, mul(acc[row][j], scale));
      }
    }
  };

  // Slots `seen_by_any` of the page, for rows that all see them.
  template <int kRows, int kVectors>
  struct Accumulate {
    static void run(const SpanTile& tile, const TilePage& page, std::int32_t channel) {
      const std::int64_t hd = tile.kv.head_dim_padded;
      const Element* v = reinterpret_cast<const Element*>(page.v) + channel;
      const Element* ahead = reinterpret_cast<const Element*>(page.ahead_of_accumulate);
      const float* p = tile.scores(0) + page.first_slot;
      F32 acc[kRows][kVectors];
#pragma GCC unroll 8
      for (int row = 0; row < kRows; ++row) {
#pragma GCC unroll 8
        for (int j = 0; j < kVectors; ++j) acc[row][j] = load(tile.state[row].out + channel + j * kLanes);
      }
      for (std::int64_t slot = page.seen_by_any.begin; slot < page.seen_by_any.end; ++slot) {
        F32 values[kVectors];
#pragma GCC unroll 8
        for (int j = 0; j < kVectors; ++j) {
          values[j] = load(v + slot * hd + j * kLanes);
          if (j % 2 == 0) prefetch(ahead + (slot * hd + channel + j * kLanes) / 2);
        }
#pragma GCC unroll 8
        for (int row = 0; row < kRows; ++row) {
          const F32 weight = splat(p[row * tile.span_slots + slot]);
#pragma GCC unroll 8
          for (int j = 0; j < kVectors; ++j) acc[row][j] = fma(weight, values[j], acc[row][j]);
        }
      }
#pragma GCC unroll 8
      for (int row = 0; row < kRows; ++row) {
#pragma GCC unroll 8
        for (int j = 0; j < kVectors; ++j) store(tile.state[row].out + channel + j * kLanes, acc[row][j]);
      }
    }
  };

  static void accumulate_run(const SpanTile& tile, const TilePage& page, std::int32_t row, SlotRange run) {
    if (run.begin >= run.end) return;
    SpanTile alone = tile;
    alone.scratch.scores = tile.scores(row);
    alone.state[0] = tile.state[row];
    TilePage part = page;
    part.seen_by_any = run;
    for_vectors<Accumulate, 1>(alone, part, 0, tile.kv.head_dim_padded);
  }

  // A slot that a row must not see may hold NaN, which zero times does not silence. So where the rows' ranges differ,
  // each row goes over the slots before and after the common ones alone; every row still adds its slots in ascending
  // order.
  template <int kRows>
  static void accumulate_page(const SpanTile& tile, const TilePage& page) {
    SlotRange seen[kRows], common = page.seen_by_any;
    for (int row = 0; row < kRows; ++row) {
      seen[row] = within_page(tile.seen[row], page.first_slot, tile.kv.page_size);
      common.begin = larger(common.begin, seen[row].begin);
      common.end = smaller(common.end, seen[row].end);
    }
    if (common.begin >= common.end) common = {page.seen_by_any.end, page.seen_by_any.end};
    for (int row = 0; row < kRows; ++row) {
      accumulate_run(tile, page, row, {seen[row].begin, smaller(seen[row].end, common.begin)});
    }
    if (common.begin < common.end) {
      TilePage part = page;
      part.seen_by_any = common;
      for_vectors<Accumulate, kRows>(tile, part, 0, tile.kv.head_dim_padded);
    }
    for (int row = 0; row < kRows; ++row) {
      accumulate_run(tile, page, row, {larger(seen[row].begin, common.end), seen[row].end});
    }
  }
};

// ---- weigh: a row's scores over the span become weights, its state gets maximum and sum.

// What a row sees of a run of slots: keep() puts `fill` into the lanes that it must not see.
struct SeesAll {
  F32 keep(F32 x, std::int32_t /*slot*/, F32 /*fill*/) const { return x; }
};
struct SeesSome {
  SlotRange seen;
  F32 keep(F32 x, std::int32_t slot, F32 fill) const {
    return select(lanes_between(seen.begin - slot, seen.end - slot), x, fill);
  }
};

// Calls fn with what the row sees of the slots that are worked on.
template <class Fn>
inline auto with_seen(const SpanTile& tile, std::int32_t row, const Fn& fn) {
  const SlotRange seen = tile.seen[row];
  return seen.begin <= tile.slot_begin() && seen.end >= tile.slot_end() ? fn(SeesAll{}) : fn(SeesSome{seen});
}

template <class Seen>
inline float largest_score(const SpanTile& tile, std::int32_t row, Seen seen) {
  const F32 none = splat(kNoMaximum);
  const float* scores = tile.scores(row);
  F32 largest = none;
  for (std::int32_t slot = tile.slot_begin(); slot < tile.slot_end(); slot += kLanes) {
    largest = max(seen.keep(load(scores + slot), slot, none), largest);
  }
  return reduce_max(largest);
}

template <class Seen>
inline F32 weigh_floats(const SpanTile& tile, std::int32_t row, F32 row_max, Seen seen) {
  const F32 zero = splat(0.0f);
  float* scores = tile.scores(row);
  F32 sum = zero;
  for (std::int32_t slot = tile.slot_begin(); slot < tile.slot_end(); slot += kLanes) {
    const F32 p = seen.keep(exp_lut(sub(load(scores + slot), row_max)), slot, zero);
    store(scores + slot, p);
    sum = add(sum, p);
  }
  return sum;
}

// Asks for the first half of the tile ahead, an even part of it at each vector of each row.
struct AskForHalf {
  std::int64_t bytes_per_vector;
  const std::byte* line = nullptr;
  std::int64_t bytes = 0;

  explicit AskForHalf(const SpanTile& tile)
      : bytes_per_vector(round_up(ceil_div(tile.kv.head_stride_bytes / 2, tile.n_rows * (tile.kv.page_size / kLanes)),
                                  kPrefetchBytes)) {}
  void begin(const TilePage& page) {
    line = page.ahead_of_weigh;
    bytes = line == nullptr ? 0 : bytes_per_vector;
  }
  void next() {
    for (const std::byte* end = line + bytes; line < end; line += kPrefetchBytes) prefetch(line);
  }
};

struct RowSums {
  F32 max;  // the largest score, in every lane
  F32 sixteenths;
  F32 sum;
};

// A page's weights p * v_scale, in place of the scores, and the largest of them in each lane.
template <class Seen>
inline void weigh_page_s8(const SpanTile& tile, const TilePage& page, std::int32_t row, AskForHalf& ask, RowSums& sums,
                          Seen seen) {
  const F32 zero = splat(0.0f), row_max = sums.max, sixteenths = sums.sixteenths;
  const float* v_scale = tile.kv.v_scales(page.id, tile.kv_head);
  float* scores = tile.scores(row) + page.first_slot;
  F32 sum = sums.sum;
  I32 largest_bits = as_i32(zero);
  for (std::int32_t slot = page.slot_begin; slot < page.slot_end; slot += kLanes) {
    const std::int32_t span_slot = page.first_slot + slot;
    const F32 p = seen.keep(exp_lut_scaled(sub(load(scores + slot), row_max), sixteenths), span_slot, zero);
    const F32 weight = seen.keep(mul(p, load(v_scale + slot)), span_slot, zero);
    store(scores + slot, weight);
    sum = add(sum, p);
    largest_bits = max_bits(as_i32(weight), largest_bits);  // a NaN wins, and shows in weight_scale
    ask.next();
  }
  sums.sum = sum;
  store(tile.largest_weights(row, page.number), as_f32(largest_bits));
}

// Each page's scales from its largest weight, so that a long flat tail keeps its eight bits page by page. All rows and
// pages at once, sixteen beside each other; those that nobody sees get scales that nobody reads.
inline void find_weight_scales(const SpanTile& tile, std::int32_t n_rows) {
  const F32 zero = splat(0.0f);
  for (std::int32_t i = 0; i < n_rows * tile.span_pages; i += kLanes) {
    const F32 largest = as_f32(reduce_max_bits_of_each(tile.scratch.largest_weights + std::int64_t{i} * kLanes));
    const Mask is_nothing = less(largest, splat(kSmallestWeight));
    store(tile.scratch.weight_scales + i, select(is_nothing, zero, mul(largest, splat(1.0f / 255.0f))));
    store(tile.scratch.bytes_per_weight + i, select(is_nothing, zero, div(splat(255.0f), largest)));
  }
}

inline void quantize_weights(const SpanTile& tile, std::int32_t row) {
  const F32 round = splat(kRoundToInteger);
  const float* scores = tile.scores(row);
  const float* bytes_per_weight = tile.scratch.bytes_per_weight + std::int64_t{row} * tile.span_pages;
  std::uint8_t* weights = tile.weights(row);
  std::int32_t slot = tile.slot_begin();
  for (std::int32_t number = slot / tile.kv.page_size; slot < tile.slot_end(); ++number) {
    const std::int32_t end = smaller((number + 1) * tile.kv.page_size, tile.slot_end());
    const F32 factor = splat(bytes_per_weight[number]);
    for (; slot < end; slot += kLanes) {
      store_low_bytes(weights + slot, as_i32(fma(load(scores + slot), factor, round)));
    }
  }
}

// A step for all rows before the next step, so that the chains of several rows overlap.
inline void weigh_rows_s8(const SpanTile& tile, std::int32_t n_rows) {
  RowSums sums[kRowTile];
  for (std::int32_t row = 0; row < n_rows; ++row) {
    const float q_scale = tile.scratch.q_scale[tile.first_row + row];
    const float max = with_seen(tile, row, [&](auto seen) { return largest_score(tile, row, seen); });
    clear_state(tile.state[row]);
    tile.state[row].max() = max * q_scale > kNoMaximum ? max * q_scale : kNoMaximum;
    sums[row] = {splat(max), splat(q_scale * kSixteenthsPerUnit), splat(0.0f)};
  }
  AskForHalf ask(tile);
  for_pages(tile, [&](const TilePage& page) {
    ask.begin(page);
    for (std::int32_t row = 0; row < n_rows; ++row) {
      with_seen(tile, row, [&](auto seen) { weigh_page_s8(tile, page, row, ask, sums[row], seen); });
    }
  });
  find_weight_scales(tile, n_rows);
  for (std::int32_t row = 0; row < n_rows; ++row) {
    quantize_weights(tile, row);
    tile.state[row].sum() = reduce_add(sums[row].sum);
  }
}

inline void weigh_rows_floats(const SpanTile& tile, std::int32_t n_rows) {
  for (std::int32_t row = 0; row < n_rows; ++row) {
    const State& state = tile.state[row];
    clear_state(state);
    with_seen(tile, row, [&](auto seen) {
      state.max() = largest_score(tile, row, seen);
      state.sum() = reduce_add(weigh_floats(tile, row, splat(state.max()), seen));
    });
  }
}

// ---- all three

template <class Element, int kRows>
inline void attend_float_tile(const SpanTile& tile) {
  using Pages = FloatPages<Element>;
  for_pages(tile, [&](const TilePage& page) {
    for_vectors<Pages::template Score, kRows>(tile, page, page.slot_begin, page.slot_end);
  });
  weigh_rows_floats(tile, kRows);
  for_pages(tile, [&](const TilePage& page) { Pages::template accumulate_page<kRows>(tile, page); });
}

template <int kRows>
void attend_tile(const SpanTile& tile) {
  if (tile.kv.dtype == Dtype::f32) return attend_float_tile<float, kRows>(tile);
  if (tile.kv.dtype == Dtype::bf16) return attend_float_tile<Bf16, kRows>(tile);
  for_pages(tile,
            [&](const TilePage& page) { for_vectors<ScoreS8, kRows>(tile, page, page.slot_begin, page.slot_end); });
  weigh_rows_s8(tile, kRows);
  for_pages(tile,
            [&](const TilePage& page) { for_vectors<AccumulateS8, kRows>(tile, page, 0, tile.kv.head_dim_padded); });
}

template <int kMost>
inline void attend_tile_of(std::int32_t n_rows, const SpanTile& tile) {
  if constexpr (kMost > 1) {
    if (n_rows < kMost) return attend_tile_of<kMost - 1>(n_rows, tile);
  }
  attend_tile<kMost>(tile);
}
