// A tile of rows over one span of pages: score -> (edit) -> weigh -> accumulate. Included after attention_rows-inl.h.
//
// It is two register tiles, which go over the pages one after the other while those are in the first cache.
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

// One page of a span, as far as a tile of rows sees it.
struct TilePage {
  std::int32_t number;                // in the span
  std::int32_t first_slot;            // of the page, in the span
  SlotRange seen_by_any;              // slots of the page from here on
  std::int32_t slot_begin, slot_end;  // in whole vectors
  const std::byte *k, *v;             // tiles
  const float *k_scale, *v_scale;     // s8 pages
  // What the steps ask for: a tile while K is read, two halves of a tile later; null if nothing.
  const std::byte *ahead_of_score, *ahead_of_weigh, *ahead_of_accumulate;
  const float* k_scale_ahead;  // of the tile that is asked for in halves
};
// Pages that are read next, by their numbers in a span of their own.
struct PagesAhead {
  const std::int32_t* ids;
  std::int32_t kv_head;
  std::int32_t begin, end;
};
constexpr PagesAhead kNothingAhead = {nullptr, 0, 0, 0};

struct TilePages {
  TilePage page[kSpanPositions / kLanes];  // a page has a vector of slots or more
  std::int32_t n;
};

// What AttentionArgs asks for between a score and its softmax.
struct ScoreEdits {
  float softcap = 0.0f;
  const float* alibi_slopes = nullptr;

  bool any() const { return softcap != 0.0f || alibi_slopes != nullptr; }
};

struct SpanTile {
  PagedKvView kv;
  AttentionScratch scratch;
  std::int32_t kv_head;
  const std::int32_t* pages;  // ids of the span's pages; those outside seen_by_any are dead
  std::int32_t span_slots;
  std::int32_t first_position;  // of the span
  ScoreEdits edits;
  std::int32_t first_row;  // of the tile, within the block
  std::int32_t n_rows;
  SlotRange seen[kTileRows];  // by each row, slots of the span, perhaps none
  SlotRange seen_by_any;      // never empty
  State state[kTileRows];     // receives each row's state over the span
  TilePages seen_pages;
  // What is asked for meanwhile, spread over the work, because few lines can be under way at a time: V of this span
  // while K is read, K of what comes next while weights are made and while V is read, half and half.
  bool asks_for_v;
  PagesAhead ahead;
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
  // What is still to multiply the scores when they are weighed.
  float score_scale(std::int32_t row) const { return edits.any() ? 1.0f : scratch.q_scale[first_row + row]; }
  // The slots of the span that any row sees, in whole vectors.
  std::int32_t slot_begin() const { return seen_by_any.begin / kLanes * kLanes; }
  std::int32_t slot_end() const { return (seen_by_any.end + kLanes - 1) / kLanes * kLanes; }
};

inline SlotRange within_page(SlotRange of_span, std::int32_t first_slot, std::int32_t page_size) {
  return {larger(of_span.begin - first_slot, 0), smaller(of_span.end - first_slot, page_size)};
}

inline TilePage page_of_tile(const SpanTile& tile, std::int32_t number) {
  const PagedKvView& kv = tile.kv;
  const std::int32_t id = tile.pages[number];
  TilePage page;
  page.number = number;
  page.first_slot = number * kv.page_size;
  page.seen_by_any = within_page(tile.seen_by_any, page.first_slot, kv.page_size);
  page.slot_begin = page.seen_by_any.begin / kLanes * kLanes;
  page.slot_end = (page.seen_by_any.end + kLanes - 1) / kLanes * kLanes;
  page.k = kv.k_tile(id, tile.kv_head);
  page.v = kv.v_tile(id, tile.kv_head);
  const bool is_s8 = kv.dtype == Dtype::s8;
  page.k_scale = is_s8 ? kv.k_scales(id, tile.kv_head) : nullptr;
  page.v_scale = is_s8 ? kv.v_scales(id, tile.kv_head) : nullptr;
  const PagesAhead& ahead = tile.ahead;
  const bool goes_on = ahead.begin <= number && number < ahead.end;
  page.ahead_of_score = tile.asks_for_v ? page.v : nullptr;
  page.ahead_of_weigh = goes_on ? kv.k_tile(ahead.ids[number], ahead.kv_head) : nullptr;
  page.ahead_of_accumulate = goes_on ? page.ahead_of_weigh + kv.head_stride_bytes / 2 : nullptr;
  page.k_scale_ahead = goes_on && is_s8 ? kv.k_scales(ahead.ids[number], ahead.kv_head) : nullptr;
  return page;
}

inline void find_seen_pages(SpanTile& tile) {
  const std::int32_t page_size = tile.kv.page_size;
  tile.seen_pages.n = 0;
  for (std::int32_t number = tile.seen_by_any.begin / page_size; number * page_size < tile.seen_by_any.end; ++number) {
    tile.seen_pages.page[tile.seen_pages.n++] = page_of_tile(tile, number);
  }
}

// Each page that is seen asks for the one of its number. Here, for those that this leaves out.
inline void ask_for_rest(const SpanTile& tile) {
  const PagedKvView& kv = tile.kv;
  const std::int32_t first = tile.seen_pages.page[0].number, last = first + tile.seen_pages.n - 1;
  for (std::int32_t number = tile.ahead.begin; number < tile.ahead.end; ++number) {
    if (first <= number && number <= last) continue;
    const std::byte* k = kv.k_tile(tile.ahead.ids[number], tile.ahead.kv_head);
    for (std::int64_t byte = 0; byte < kv.head_stride_bytes; byte += kPrefetchBytes) prefetch(k + byte);
    if (kv.dtype != Dtype::s8) continue;
    const float* k_scale = kv.k_scales(tile.ahead.ids[number], tile.ahead.kv_head);
    for (std::int32_t slot = 0; slot < kv.page_size; slot += kLanes) prefetch(k_scale + slot);
  }
}

template <class Fn>
inline void for_pages(const SpanTile& tile, const Fn& fn) {
  for (std::int32_t i = 0; i < tile.seen_pages.n; ++i) fn(tile.seen_pages.page[i]);
}

template <int kRows>
struct RowCount {
  static constexpr int n = kRows;
};
template <int kMost, class Fn>
inline void with_row_count(std::int32_t n_rows, const Fn& fn) {
  if constexpr (kMost > 1) {
    if (n_rows < kMost) return with_row_count<kMost - 1>(n_rows, fn);
  }
  fn(RowCount<kMost>{});
}

// Calls fn(RowCount, first row) for each register tile of rows.
template <class Fn>
inline void for_row_tiles(const SpanTile& tile, const Fn& fn) {
  const std::int32_t most = tile.n_rows > kRowTile ? (tile.n_rows + 1) / 2 : tile.n_rows;
  for (std::int32_t row = 0; row < tile.n_rows; row += most) {
    with_row_count<kRowTile>(smaller(most, tile.n_rows - row), [&](auto count) { fn(count, row); });
  }
}

// Calls Step<kRows, kVectors>::run(tile, part, first_row, i) for vectors i of [begin, end): as many beside each other
// as the registers hold, then two (a small page has no more), then one.
template <template <int, int> class Step, int kRows, class Part>
inline void for_vectors(const SpanTile& tile, const Part& part, std::int32_t first_row, std::int32_t begin,
                        std::int32_t end) {
  constexpr std::int32_t kBeside = vectors_beside(kRows);
  std::int32_t i = begin;
  for (; end - i >= kBeside; i += kBeside) Step<kRows, kBeside>::run(tile, part, first_row, i);
  if constexpr (kBeside > 2) {
    for (; end - i >= 2; i += 2) Step<kRows, 2>::run(tile, part, first_row, i);
  }
  if constexpr (kBeside > 1) {
    for (; i < end; ++i) Step<kRows, 1>::run(tile, part, first_row, i);
  }
}

// ---- s8 pages. Score: q . k of a span's vectors of slots, whether seen or not; the row's q_scale is left to exp.

constexpr std::int32_t kKeyVectors = vectors_beside(1);

// Sixteen slots of a page.
struct KeyVector {
  const std::uint8_t* k;
  const float* scale;
  float* scores;           // of the tile's row 0
  const std::byte* ahead;  // asked for beside k, if any is
};

// Vectors of slots, whatever pages they are in.
struct KeyVectors {
  KeyVector vector[kKeyVectors];
  std::int32_t n = 0;
};

template <int kRows, int kVectors>
struct ScoreS8 {
  static void run(const SpanTile& tile, const KeyVectors& vectors, std::int32_t first_row, std::int32_t first) {
    const KeyVector* of = vectors.vector + first;
    const std::int64_t hd = tile.kv.head_dim_padded;
    const std::int64_t quad_stride = static_cast<std::int64_t>(tile.kv.page_size) * kDotWidth;
    const std::int8_t* q = tile.scratch.q_s8 + (tile.first_row + first_row) * hd;
    const std::int32_t* q_bias = tile.scratch.q_bias + tile.first_row + first_row;
    const std::uint8_t* k[kVectors];
#pragma GCC unroll 8
    for (int j = 0; j < kVectors; ++j) k[j] = of[j].k;
    const bool asks = first_row == 0 && of[0].ahead != nullptr;
    I32 acc[kRows][kVectors];
#pragma GCC unroll 8
    for (int row = 0; row < kRows; ++row) {
#pragma GCC unroll 8
      for (int j = 0; j < kVectors; ++j) acc[row][j] = splat(q_bias[row]);
    }
    for (std::int64_t quad = 0; quad < hd / kDotWidth; ++quad) {
      U8Quads keys[kVectors];
#pragma GCC unroll 8
      for (int j = 0; j < kVectors; ++j) keys[j] = load_quads(k[j] + quad * quad_stride);
      if (asks) {
#pragma GCC unroll 8
        for (int j = 0; j < kVectors; ++j) prefetch(of[j].ahead + quad * quad_stride);
      }
#pragma GCC unroll 8
      for (int row = 0; row < kRows; ++row) {
        const S8Splat query = splat_quad(q + row * hd + quad * kDotWidth);
#pragma GCC unroll 8
        for (int j = 0; j < kVectors; ++j) acc[row][j] = dot4(acc[row][j], keys[j], query);
      }
    }
#pragma GCC unroll 8
    for (int j = 0; j < kVectors; ++j) {
      const F32 scale = load(of[j].scale);
      float* scores = of[j].scores + static_cast<std::int64_t>(first_row) * tile.span_slots;
#pragma GCC unroll 8
      for (int row = 0; row < kRows; ++row) store(scores + row * tile.span_slots, mul(to_f32(acc[row][j]), scale));
    }
  }
};

inline void score_rows_s8(const SpanTile& tile) {
  KeyVectors vectors;
  const auto score = [&] {
    for_row_tiles(tile, [&](auto count, std::int32_t row) {
      for_vectors<ScoreS8, decltype(count)::n>(tile, vectors, row, 0, vectors.n);
    });
    vectors.n = 0;
  };
  for_pages(tile, [&](const TilePage& page) {
    for (std::int32_t slot = page.slot_begin; slot < page.slot_end; slot += kLanes) {
      const std::int64_t bytes = std::int64_t{slot} * kDotWidth;
      vectors.vector[vectors.n++] = {reinterpret_cast<const std::uint8_t*>(page.k) + bytes, page.k_scale + slot,
                                     tile.scores(0) + page.first_slot + slot,
                                     page.ahead_of_score == nullptr ? nullptr : page.ahead_of_score + bytes};
      if (page.ahead_of_score != nullptr) prefetch(page.v_scale + slot);
      if (page.k_scale_ahead != nullptr) prefetch(page.k_scale_ahead + slot);
      if (vectors.n == kKeyVectors) score();
    }
  });
  score();
}

// Accumulate: out += weights . v, page by page, for channels [16 * vector, 16 * (vector + kVectors)).
template <int kRows, int kVectors>
struct AccumulateS8 {
  static void run(const SpanTile& tile, const TilePages& pages, std::int32_t first_row, std::int32_t vector) {
    const std::int64_t channel = std::int64_t{vector} * kLanes, span_slots = tile.span_slots;
    const std::int64_t quad_stride = static_cast<std::int64_t>(tile.kv.head_dim_padded) * kDotWidth;
    float* out[kRows];
    for (int row = 0; row < kRows; ++row) out[row] = tile.state[first_row + row].out + channel;
    for (std::int32_t number = 0; number < pages.n; ++number) {
      const TilePage& page = pages.page[number];
      const std::int8_t* v = reinterpret_cast<const std::int8_t*>(page.v) + channel * kDotWidth;
      const bool asks = first_row == 0 && page.ahead_of_accumulate != nullptr;
      const std::byte* ahead = asks ? page.ahead_of_accumulate + channel * kDotWidth / 2 : nullptr;
      const std::uint8_t* weights = tile.weights(first_row) + page.first_slot;
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
        for (int j = 0; j < kVectors; ++j) values[j] = load_quads(v + quad * quad_stride + j * kLanes * kDotWidth);
        if (asks) {
#pragma GCC unroll 8
          for (int j = 0; j < kVectors; j += 2) prefetch(ahead + quad * quad_stride / 2 + j * kLanes * kDotWidth / 2);
        }
#pragma GCC unroll 8
        for (int row = 0; row < kRows; ++row) {
          const U8Splat weight = splat_quad(weights + row * span_slots + quad * kDotWidth);
#pragma GCC unroll 8
          for (int j = 0; j < kVectors; ++j) acc[row][j] = dot4(acc[row][j], weight, values[j]);
        }
      }
      const float* scales = tile.weight_scales(first_row) + page.number;
#pragma GCC unroll 8
      for (int row = 0; row < kRows; ++row) {
        const F32 scale = splat(scales[row * tile.span_pages]);
#pragma GCC unroll 8
        for (int j = 0; j < kVectors; ++j) {
          store(out[row] + j * kLanes, fma(to_f32(acc[row][j]), scale, load(out[row] + j * kLanes)));
        }
      }
    }
  }
};

// ---- float pages

template <class Element>
struct FloatPages {
  template <int kRows, int kVectors>
  struct Score {
    static void run(const SpanTile& tile, const TilePage& page, std::int32_t first_row, std::int32_t vector) {
      const std::int64_t page_size = tile.kv.page_size, hd = tile.kv.head_dim_padded;
      const std::int32_t slot = vector * kLanes;
      const Element* k = reinterpret_cast<const Element*>(page.k) + slot;
      const bool asks = first_row == 0 && page.ahead_of_score != nullptr;
      const Element* ahead = asks ? reinterpret_cast<const Element*>(page.ahead_of_score) + slot : nullptr;
      const float* q = tile.scratch.q + (tile.first_row + first_row) * hd;
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
          if (asks) prefetch(ahead + channel * page_size + j * kLanes);
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
        const F32 scale = splat(tile.scratch.q_scale[tile.first_row + first_row + row]);
        float* scores = tile.scores(first_row + row) + page.first_slot + slot;
#pragma GCC unroll 8
        for (int j = 0; j < kVectors; ++j) store(scores + j * kLanes, mul(acc[row][j], scale));
      }
    }
  };

  // Slots `seen_by_any` of the page, for rows that all see them.
  template <int kRows, int kVectors>
  struct Accumulate {
    static void run(const SpanTile& tile, const TilePage& page, std::int32_t first_row, std::int32_t vector) {
      const std::int64_t hd = tile.kv.head_dim_padded, channel = std::int64_t{vector} * kLanes;
      const Element* v = reinterpret_cast<const Element*>(page.v) + channel;
      const Element* ahead = reinterpret_cast<const Element*>(page.ahead_of_accumulate);
      const bool asks = first_row == 0 && page.ahead_of_accumulate != nullptr;
      const float* p = tile.scores(first_row) + page.first_slot;
      F32 acc[kRows][kVectors];
#pragma GCC unroll 8
      for (int row = 0; row < kRows; ++row) {
#pragma GCC unroll 8
        for (int j = 0; j < kVectors; ++j) acc[row][j] = load(tile.state[first_row + row].out + channel + j * kLanes);
      }
      for (std::int64_t slot = page.seen_by_any.begin; slot < page.seen_by_any.end; ++slot) {
        F32 values[kVectors];
#pragma GCC unroll 8
        for (int j = 0; j < kVectors; ++j) {
          values[j] = load(v + slot * hd + j * kLanes);
          if (asks && j % 2 == 0) prefetch(ahead + (slot * hd + channel + j * kLanes) / 2);
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
        for (int j = 0; j < kVectors; ++j) {
          store(tile.state[first_row + row].out + channel + j * kLanes, acc[row][j]);
        }
      }
    }
  };

  static void accumulate_run(const SpanTile& tile, const TilePage& page, std::int32_t row, SlotRange run) {
    if (run.begin >= run.end) return;
    TilePage part = page;
    part.seen_by_any = run;
    for_vectors<Accumulate, 1>(tile, part, row, 0, tile.kv.head_dim_padded / kLanes);
  }

  // A slot that a row must not see may hold NaN, which zero times does not silence. So where the rows' ranges differ,
  // each row goes over the slots before and after the common ones alone; every row still adds its slots in ascending
  // order.
  template <int kRows>
  static void accumulate_page(const SpanTile& tile, const TilePage& page, std::int32_t first_row) {
    SlotRange seen[kRows], common = page.seen_by_any;
    for (int row = 0; row < kRows; ++row) {
      seen[row] = within_page(tile.seen[first_row + row], page.first_slot, tile.kv.page_size);
      common.begin = larger(common.begin, seen[row].begin);
      common.end = smaller(common.end, seen[row].end);
    }
    if (common.begin >= common.end) common = {page.seen_by_any.end, page.seen_by_any.end};
    for (int row = 0; row < kRows; ++row) {
      accumulate_run(tile, page, first_row + row, {seen[row].begin, smaller(seen[row].end, common.begin)});
    }
    if (common.begin < common.end) {
      TilePage part = page;
      part.seen_by_any = common;
      for_vectors<Accumulate, kRows>(tile, part, first_row, 0, tile.kv.head_dim_padded / kLanes);
    }
    for (int row = 0; row < kRows; ++row) {
      accumulate_run(tile, page, first_row + row, {larger(seen[row].begin, common.end), seen[row].end});
    }
  }
};

// ---- edit: where softcap or ALiBi is asked for, scores become final, s8 ones with the row's q_scale.

inline F32 negate(F32 x) { return sub(splat(0.0f), x); }

// Within 4e-7 of its size. Near 0 by its series, where 1 - exp(-2 |x|) would cancel.
inline F32 tanh(F32 x) {
  const F32 one = splat(1.0f), magnitude = abs(x), square = mul(x, x);
  const F32 decay = exp_lut(mul(magnitude, splat(-2.0f)));
  const F32 far = div(sub(one, decay), add(one, decay));
  F32 series = fma(square, splat(62.0f / 2835.0f), splat(-17.0f / 315.0f));
  series = fma(series, square, splat(2.0f / 15.0f));
  series = fma(series, square, splat(-1.0f / 3.0f));
  const F32 near = fma(mul(magnitude, square), series, magnitude);
  const F32 result = select(less(magnitude, splat(0.3f)), near, far);
  return select(less(x, splat(0.0f)), negate(result), result);
}

struct EditedRow {
  F32 scale;  // of s8 scores, else 1
  F32 softcap;
  bool is_capped;
  F32 minus_slope, position;

  F32 edit(F32 score, F32 key_position) const {
    F32 edited = mul(score, scale);
    if (is_capped) edited = mul(tanh(div(edited, softcap)), softcap);
    return fma(abs(sub(position, key_position)), minus_slope, edited);
  }
};

inline void edit_row(const SpanTile& tile, std::int32_t row) {
  alignas(64) static constexpr float kLaneNumbers[kLanes] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  const AttentionRow& of = tile.scratch.rows[tile.first_row + row];
  const ScoreEdits& edits = tile.edits;
  const float slope = edits.alibi_slopes == nullptr ? 0.0f : edits.alibi_slopes[of.head];
  const float scale = tile.kv.dtype == Dtype::s8 ? tile.scratch.q_scale[tile.first_row + row] : 1.0f;
  const EditedRow edited = {splat(scale), splat(edits.softcap), edits.softcap != 0.0f, splat(-slope),
                            splat(static_cast<float>(of.position))};
  float* scores = tile.scores(row);
  for (std::int32_t slot = tile.slot_begin(); slot < tile.slot_end(); slot += kLanes) {
    const F32 key_position = add(splat(static_cast<float>(tile.first_position + slot)), load(kLaneNumbers));
    store(scores + slot, edited.edit(load(scores + slot), key_position));
  }
}

// Out of line, lest the hot path be laid out around it.
__attribute__((noinline)) void edit_scores(const SpanTile& tile) {
  for (std::int32_t row = 0; row < tile.n_rows; ++row) edit_row(tile, row);
}

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
  constexpr int kChains = 4;  // one alone would wait for itself
  const F32 none = splat(kNoMaximum);
  const float* scores = tile.scores(row);
  F32 largest[kChains] = {none, none, none, none};
  std::int32_t slot = tile.slot_begin();
  for (; tile.slot_end() - slot >= kChains * kLanes; slot += kChains * kLanes) {
#pragma GCC unroll 8
    for (int i = 0; i < kChains; ++i) {
      const std::int32_t at = slot + i * kLanes;
      largest[i] = max(seen.keep(load(scores + at), at, none), largest[i]);
    }
  }
  for (; slot < tile.slot_end(); slot += kLanes) {
    largest[0] = max(seen.keep(load(scores + slot), slot, none), largest[0]);
  }
  return reduce_max(max(max(largest[0], largest[1]), max(largest[2], largest[3])));
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

// Asks for the first half of the tiles ahead, an even part of it at each vector of each row.
struct AskForHalf {
  std::int64_t bytes_per_vector, bytes_per_row;

  explicit AskForHalf(const SpanTile& tile) {
    const std::int32_t n_vectors = tile.kv.page_size / kLanes;
    bytes_per_vector = round_up(ceil_div(tile.kv.head_stride_bytes / 2, tile.n_rows * n_vectors), kPrefetchBytes);
    bytes_per_row = bytes_per_vector * n_vectors;
  }
};

// Weights p * v_scale in place of the scores, and the largest of each page and lane. Returns the sums of p.
template <class Seen>
inline F32 weigh_row_s8(const SpanTile& tile, std::int32_t row, const AskForHalf& ask, F32 row_max, F32 sixteenths,
                        Seen seen) {
  const F32 zero = splat(0.0f);
  F32 sum = zero;
  for_pages(tile, [&](const TilePage& page) {
    float* scores = tile.scores(row) + page.first_slot;
    const std::byte* ahead = page.ahead_of_weigh;
    const std::byte* line = ahead == nullptr ? nullptr : ahead + row * ask.bytes_per_row;
    I32 largest_bits = as_i32(zero);
    for (std::int32_t slot = page.slot_begin; slot < page.slot_end; slot += kLanes) {
      const std::int32_t span_slot = page.first_slot + slot;
      const F32 p = seen.keep(exp_lut_scaled(sub(load(scores + slot), row_max), sixteenths), span_slot, zero);
      const F32 weight = seen.keep(mul(p, load(page.v_scale + slot)), span_slot, zero);
      store(scores + slot, weight);
      sum = add(sum, p);
      largest_bits = max_bits(as_i32(weight), largest_bits);  // a NaN wins, and shows in weight_scale
      if (ahead == nullptr) continue;
      for (const std::byte* end = line + ask.bytes_per_vector; line < end; line += kPrefetchBytes) prefetch(line);
    }
    store(tile.largest_weights(row, page.number), as_f32(largest_bits));
  });
  return sum;
}

// Each page's scales from its largest weight, so that a long flat tail keeps its eight bits page by page. All rows and
// pages at once, sixteen beside each other; those that nobody sees get scales that nobody reads.
inline void find_weight_scales(const SpanTile& tile) {
  const F32 zero = splat(0.0f);
  for (std::int32_t i = 0; i < tile.n_rows * tile.span_pages; i += kLanes) {
    const F32 largest = as_f32(reduce_max_bits_of_each(tile.scratch.largest_weights + std::int64_t{i} * kLanes));
    const Mask is_nothing = less(largest, splat(kSmallestWeight));
    store(tile.scratch.weight_scales + i, select(is_nothing, zero, mul(largest, splat(1.0f / 255.0f))));
    store(tile.scratch.bytes_per_weight + i, select(is_nothing, zero, div(splat(255.0f), largest)));
  }
}

inline void quantize_weights(const SpanTile& tile, std::int32_t row) {
  const F32 round = splat(kRoundToInteger);
  const float* bytes_per_weight = tile.scratch.bytes_per_weight + std::int64_t{row} * tile.span_pages;
  for_pages(tile, [&](const TilePage& page) {
    const float* scores = tile.scores(row) + page.first_slot;
    std::uint8_t* weights = tile.weights(row) + page.first_slot;
    const F32 factor = splat(bytes_per_weight[page.number]);
    for (std::int32_t slot = page.slot_begin; slot < page.slot_end; slot += kLanes) {
      store_low_bytes(weights + slot, as_i32(fma(load(scores + slot), factor, round)));
    }
  });
}

// A step for all rows before the next step, so that the chains of several rows overlap.
inline void weigh_rows_s8(const SpanTile& tile) {
  float max[kTileRows];
  for (std::int32_t row = 0; row < tile.n_rows; ++row) {
    max[row] = with_seen(tile, row, [&](auto seen) { return largest_score(tile, row, seen); });
  }
  const AskForHalf ask(tile);
  for (std::int32_t row = 0; row < tile.n_rows; ++row) {
    const float q_scale = tile.score_scale(row);
    const F32 sixteenths = splat(q_scale * kSixteenthsPerUnit);
    const State& state = tile.state[row];
    clear_state(state);
    state.max() = max[row] * q_scale > kNoMaximum ? max[row] * q_scale : kNoMaximum;
    state.sum() = with_seen(tile, row, [&](auto seen) {
      return reduce_add(weigh_row_s8(tile, row, ask, splat(max[row]), sixteenths, seen));
    });
  }
  find_weight_scales(tile);
  for (std::int32_t row = 0; row < tile.n_rows; ++row) quantize_weights(tile, row);
}

inline void weigh_rows_floats(const SpanTile& tile) {
  for (std::int32_t row = 0; row < tile.n_rows; ++row) {
    const State& state = tile.state[row];
    clear_state(state);
    with_seen(tile, row, [&](auto seen) {
      state.max() = largest_score(tile, row, seen);
      state.sum() = reduce_add(weigh_floats(tile, row, splat(state.max()), seen));
    });
  }
}

// ---- all three

template <class Element>
inline void attend_float_tile(const SpanTile& tile) {
  using Pages = FloatPages<Element>;
  for_pages(tile, [&](const TilePage& page) {
    for_row_tiles(tile, [&](auto count, std::int32_t row) {
      for_vectors<Pages::template Score, decltype(count)::n>(tile, page, row, page.slot_begin / kLanes,
                                                             page.slot_end / kLanes);
    });
  });
  if (tile.edits.any()) edit_scores(tile);
  weigh_rows_floats(tile);
  for_pages(tile, [&](const TilePage& page) {
    for_row_tiles(tile, [&](auto count, std::int32_t row) {
      Pages::template accumulate_page<decltype(count)::n>(tile, page, row);
    });
  });
}

inline void attend_s8_tile(const SpanTile& tile) {
  score_rows_s8(tile);
  if (tile.edits.any()) edit_scores(tile);
  weigh_rows_s8(tile);
  for_row_tiles(tile, [&](auto count, std::int32_t row) {
    for_vectors<AccumulateS8, decltype(count)::n>(tile, tile.seen_pages, row, 0, tile.kv.head_dim_padded / kLanes);
  });
}

inline void attend_tile(SpanTile& tile) {
  find_seen_pages(tile);
  switch (tile.kv.dtype) {
    case Dtype::f32:
      attend_float_tile<float>(tile);
      break;
    case Dtype::bf16:
      attend_float_tile<Bf16>(tile);
      break;
    default:
      attend_s8_tile(tile);
  }
  ask_for_rest(tile);
}
