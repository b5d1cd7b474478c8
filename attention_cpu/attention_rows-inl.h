// What attention knows of its rows: the queries of a block, and the state that each row gathers. Included after
// append_kv-inl.h.
//
// A row is one query head of one token. Its state over some positions is (out, max, sum): the largest score, the sum of
// p = exp(score - max), and out = sum of p * v. States of neighbouring spans merge (online softmax, Milakov and
// Gimelshein 2018), always in ascending order of spans.
#pragma once

// Rows whose queries and outputs stay in the first cache levels while they walk over the pages together.
constexpr std::int32_t kBlockRows = 96;

// Of them, those that go over a span together: two register tiles, for which each page is read into the first cache
// once.
constexpr std::int32_t kTileRows = 2 * kRowTile;
static_assert(kTileRows <= kLanes, "the states of a tile merge in one vector");

// The largest score of nothing. Finite, so that no difference of two maxima is NaN.
constexpr float kNoMaximum = -kLargestFloat;

inline std::int32_t smaller(std::int32_t a, std::int32_t b) { return a < b ? a : b; }
inline std::int32_t larger(std::int32_t a, std::int32_t b) { return a > b ? a : b; }

// Where a row comes from and what it sees.
struct AttentionRow {
  std::int32_t token, head;  // of q and out
  std::int32_t position;
  std::int32_t see_begin, see_end;  // positions
  // The row's state of span s lies at states + (s - first_span) * span_stride; null: this item walks all its spans.
  float* states;
  std::int64_t span_stride;
  std::int32_t first_span;
};

// One state: float [hd] out, then max, then sum. hd = head_dim_padded.
struct State {
  float* out;
  std::int32_t hd;

  float& max() const { return out[hd]; }
  float& sum() const { return out[hd + 1]; }
};

struct AttentionScratch {
  // A block of rows.
  AttentionRow* rows;    // [n_rows]
  float* gathered;       // [n_rows, state_floats], states over the spans so far
  float* q;              // [n_rows, hd], float pages
  std::int8_t* q_s8;     // [n_rows, hd], s8 pages
  float* q_scale;        // [n_rows], includes the scale of attention
  std::int32_t* q_bias;  // [n_rows], -128 * sum(q), which undoes the bias of K
  // A tile of them over one span.
  float* states;          // [kTileRows, state_floats]
  float* scores;          // [kTileRows, span_slots], overwritten by the weights
  std::uint8_t* weights;  // [kTileRows, span_slots], s8 pages
  // s8 pages, [kTileRows, span_pages] and up to whole vectors.
  float* largest_weights;   // [.., kLanes]
  float* weight_scales;     // p * v_scale = byte * weight_scale
  float* bytes_per_weight;  // its inverse
  // nhd pages: tiles of one KV head and one span.
  std::byte *tiles_k, *tiles_v;
  float *tiles_k_scale, *tiles_v_scale;  // s8
  std::int32_t n_rows;                   // of a block, at most
};

// Runs of elements in scratch, each on its own cache line.
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
  return larger(n_heads / kv.n_kv_heads, kBlockRows);
}

inline AttentionScratch lay_out_scratch(const PagedKvView& kv, std::int32_t n_heads, ScratchCursor& cursor) {
  const std::int64_t n_rows = rows_of_block(kv, n_heads), hd = kv.head_dim_padded;
  const std::int64_t span_pages = pages_of_span(kv.page_size), span_slots = span_pages * kv.page_size;
  const bool is_s8 = kv.dtype == Dtype::s8;
  AttentionScratch scratch;
  scratch.n_rows = static_cast<std::int32_t>(n_rows);
  scratch.rows = cursor.take<AttentionRow>(n_rows);
  scratch.gathered = cursor.take<float>(n_rows * state_floats(kv.head_dim_padded));
  scratch.q = cursor.take<float>(is_s8 ? 0 : n_rows * hd);
  scratch.q_s8 = cursor.take<std::int8_t>(is_s8 ? n_rows * hd : 0);
  scratch.q_scale = cursor.take<float>(n_rows);
  scratch.q_bias = cursor.take<std::int32_t>(n_rows);
  scratch.states = cursor.take<float>(kTileRows * state_floats(kv.head_dim_padded));
  scratch.scores = cursor.take<float>(kTileRows * span_slots);
  scratch.weights = cursor.take<std::uint8_t>(is_s8 ? kTileRows * span_slots : 0);
  const std::int64_t n_scales = is_s8 ? round_up(kTileRows * span_pages, kLanes) : 0;
  scratch.largest_weights = cursor.take<float>(n_scales * kLanes);
  scratch.weight_scales = cursor.take<float>(n_scales);
  scratch.bytes_per_weight = cursor.take<float>(n_scales);
  const std::int64_t n_tiles = kv.nhd == nullptr ? 0 : span_pages, n_tile_scales = is_s8 ? n_tiles * kv.page_size : 0;
  scratch.tiles_k = cursor.take<std::byte>(n_tiles * kv.head_stride_bytes);
  scratch.tiles_v = cursor.take<std::byte>(n_tiles * kv.head_stride_bytes);
  scratch.tiles_k_scale = cursor.take<float>(n_tile_scales);
  scratch.tiles_v_scale = cursor.take<float>(n_tile_scales);
  return scratch;
}

std::size_t attention_scratch_bytes(const PagedKvView& kv, std::int32_t n_heads) {
  ScratchCursor cursor{nullptr};
  lay_out_scratch(kv, n_heads, cursor);
  return cursor.used;
}

inline State state_at(float* states, std::int64_t index, std::int32_t hd) {
  return {states + index * state_floats(hd), hd};
}

inline void clear_state(const State& state) {
  for (std::int32_t i = 0; i < state.hd; i += kLanes) store(state.out + i, splat(0.0f));
  state.max() = kNoMaximum;
  state.sum() = 0.0f;
}

// Each of n states `into`, at most kLanes, then covers its own positions and those of its `next`, which lie behind
// them.
inline void merge_states_into(const State* into, const State* next, std::int32_t n) {
  alignas(64) float decays[kLanes] = {}, weights[kLanes] = {}, maxima[kLanes];
  for (std::int32_t i = 0; i < n; ++i) decays[i] = into[i].max(), weights[i] = next[i].max();
  const F32 before = load(decays), behind = load(weights), largest = max(behind, before);
  store(decays, exp_lut(sub(before, largest)));
  store(weights, exp_lut(sub(behind, largest)));
  store(maxima, largest);
  for (std::int32_t i = 0; i < n; ++i) {
    const F32 decay = splat(decays[i]), weight = splat(weights[i]);
    into[i].sum() = into[i].sum() * decays[i] + next[i].sum() * weights[i];
    into[i].max() = maxima[i];
    for (std::int32_t j = 0; j < into[i].hd; j += kLanes) {
      store(into[i].out + j, fma(load(into[i].out + j), decay, mul(load(next[i].out + j), weight)));
    }
  }
}

// As a position whose value is zero.
inline void add_sink(const State& state, float sink) {
  const float largest = sink > state.max() ? sink : state.max();
  alignas(64) float decays[kLanes] = {state.max() - largest, sink - largest};
  store(decays, exp_lut(load(decays)));
  state.max() = largest;
  state.sum() = state.sum() * decays[0] + decays[1];
  for (std::int32_t i = 0; i < state.hd; i += kLanes) {
    store(state.out + i, mul(load(state.out + i), splat(decays[0])));
  }
}

inline void finish_row(const AttentionArgs& args, std::int32_t token, std::int32_t head, const State& state) {
  if (args.sinks != nullptr) add_sink(state, args.sinks[head]);
  if (args.lse != nullptr) {
    args.lse[std::int64_t{token} * args.n_heads + head] =
        state.sum() == 0.0f ? -kInfinity : state.max() + __builtin_logf(state.sum());
  }
  const std::int32_t head_dim = args.kv.head_dim;
  float* out = args.out + token * args.out_stride + static_cast<std::int64_t>(head) * head_dim;
  const F32 divisor = splat(state.sum() == 0.0f ? 1.0f : state.sum());  // a row that sees nothing has gathered 0
  for (std::int32_t i = 0; i < head_dim; i += kLanes) store_at(out, head_dim, i, div(load(state.out + i), divisor));
}

// The first position that `position` sees.
inline std::int32_t window_begin(std::int32_t position, std::int32_t window) {
  return window > 0 && position >= window ? position - window + 1 : 0;
}

// The position after the last that `position` of the run sees.
inline std::int32_t window_end(const AttentionArgs& args, const QueryRun& run, std::int32_t position) {
  const std::int64_t end = std::int64_t{position} + args.window_right + 1;
  return end < run.n_positions ? static_cast<std::int32_t>(end) : run.n_positions;
}

// Hands out the rows of an item: runs outermost, then tokens, then the heads that share the KV head.
struct RowCursor {
  const AttentionArgs& args;
  const AttentionItem& item;
  std::int32_t run = 0, token = 0, head = 0;

  AttentionRow take() {
    const std::int32_t group = args.n_heads / args.kv.n_kv_heads;
    const QueryRun& of = args.runs[item.run_begin + run];
    const std::int32_t position = of.position_begin + token, query_head = item.kv_head * group + head;
    const std::int64_t floats = state_floats(args.kv.head_dim_padded);
    float* states =
        of.state_begin == kNoStates
            ? nullptr
            : args.states + ((of.state_begin + std::int64_t{token} * of.n_spans) * args.n_heads + query_head) * floats;
    AttentionRow row;
    row.token = of.token_begin + token;
    row.head = query_head;
    row.position = position;
    row.see_begin = window_begin(position, args.window);
    row.see_end = window_end(args, of, position);
    row.states = states;
    row.span_stride = args.n_heads * floats;
    row.first_span = of.first_span;
    if (++head == group) head = 0, ++token;
    if (token == of.n_tokens) token = 0, ++run;
    return row;
  }
};

inline const float* query_of(const AttentionArgs& args, const AttentionRow& row) {
  return args.q + row.token * args.q_stride + static_cast<std::int64_t>(row.head) * args.kv.head_dim;
}

inline void ask_for_query(const AttentionArgs& args, const AttentionRow& row) {
  const float* q = query_of(args, row);
  for (std::int32_t i = 0; i < args.kv.head_dim; i += kLanes) prefetch(q + i);
}

inline void begin_row(const AttentionArgs& args, const AttentionScratch& scratch, std::int32_t i) {
  const std::int32_t head_dim = args.kv.head_dim, hd = args.kv.head_dim_padded;
  const AttentionRow& row = scratch.rows[i];
  const float* q = query_of(args, row);
  const std::int64_t begin = static_cast<std::int64_t>(i) * hd;
  clear_state(state_at(scratch.gathered, i, hd));
  if (args.kv.dtype == Dtype::s8) {
    // Scores are weighed before they are scaled, so the scale must not turn their order: its sign goes into the row.
    const float size = int8_scale(q, head_dim, 1.0f), scale = args.scale < 0.0f ? -size : size;
    scratch.q_scale[i] = scale * args.scale;
    scratch.q_bias[i] = -128 * quantize_row(q, head_dim, hd, scale, scratch.q_s8 + begin);
  } else {
    for (std::int32_t j = 0; j < hd; j += kLanes) store(scratch.q + begin + j, load_at(q, head_dim, j, 0.0f));
    scratch.q_scale[i] = args.scale;
  }
}
