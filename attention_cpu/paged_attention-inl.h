// Attention over pages: the walk of an item. Included after attention_span-inl.h.
//
//   item ── blocks of rows ── spans of pages, ascending ── tiles of rows
//
// A span is a fixed run of positions, so every row goes through the same spans whoever shares its item and wherever
// items are cut. Over each span a row gets a state of its own; states merge in ascending order, here when the item
// walks all spans of the row, in merge_states when several items do.
#pragma once

struct SpanWalk {
  const AttentionArgs& args;
  const AttentionItem& item;
  const AttentionItem* next;  // null when this block is not the item's last one
  const AttentionScratch& scratch;
  std::int32_t n_rows;  // of the block
  SlotRange seen;       // positions that any row of the block sees
};

// The slots that a row sees of the span that begins at first_position.
inline SlotRange seen_of_span(const AttentionRow& row, std::int32_t first_position, std::int32_t span_slots) {
  return {larger(row.see_begin - first_position, 0), smaller(row.see_end - first_position, span_slots)};
}

inline bool is_empty(SlotRange range) { return range.begin >= range.end; }

// Rows [first_row, first_row + n_rows) of the block over a span. Returns false when none sees any of it.
inline bool attend_rows(const SpanWalk& walk, SpanTile& tile, std::int32_t span, std::int32_t first_row,
                        std::int32_t n_rows) {
  const std::int32_t hd = tile.kv.head_dim_padded;
  tile.first_row = first_row;
  tile.n_rows = n_rows;
  tile.seen_by_any = {tile.span_slots, 0};
  for (std::int32_t i = 0; i < n_rows; ++i) {
    const AttentionRow& row = walk.scratch.rows[first_row + i];
    const SlotRange seen = seen_of_span(row, span * tile.span_slots, tile.span_slots);
    tile.seen[i] = seen;
    tile.state[i] = row.states == nullptr || is_empty(seen)
                        ? state_at(walk.scratch.states, i, hd)
                        : State{row.states + (span - row.first_span) * row.span_stride, hd};
    if (is_empty(seen)) continue;
    tile.seen_by_any = {smaller(tile.seen_by_any.begin, seen.begin), larger(tile.seen_by_any.end, seen.end)};
  }
  if (is_empty(tile.seen_by_any)) return false;
  attend_tile(tile);
  State gathered[kTileRows], next[kTileRows];
  std::int32_t n = 0;
  for (std::int32_t i = 0; i < n_rows; ++i) {
    if (walk.scratch.rows[first_row + i].states != nullptr || is_empty(tile.seen[i])) continue;
    gathered[n] = state_at(walk.scratch.gathered, first_row + i, hd);
    next[n++] = tile.state[i];
  }
  merge_states_into(gathered, next, n);
  return true;
}

// What the block sees of the span, out of nhd pages; the tile then goes over these tiles. Out of line, as edit_scores
// is.
__attribute__((noinline)) void make_tiles_of_span(const SpanWalk& walk, SpanTile& tile) {
  static constexpr std::int32_t kTileIds[kSpanPositions / kLanes] = {0, 1, 2,  3,  4,  5,  6,  7,
                                                                     8, 9, 10, 11, 12, 13, 14, 15};
  const std::int32_t page_size = tile.kv.page_size;
  const SlotRange seen = {larger(walk.seen.begin - tile.first_position, 0),
                          smaller(walk.seen.end - tile.first_position, tile.span_slots)};
  for (std::int32_t number = seen.begin / page_size; number * page_size < seen.end; ++number) {
    const SlotRange slots = within_page(seen, number * page_size, page_size);
    make_tile(tile.kv, {tile.pages[number], walk.item.kv_head, slots}, number);
  }
  tile.pages = kTileIds;
  tile.asks_for_v = false;
  tile.ahead = kNothingAhead;
}

// The pages that an item reads first, as far as its first run tells.
inline PagesAhead first_pages(const AttentionArgs& args, const AttentionItem& item, std::int32_t span_pages) {
  const QueryRun& run = args.runs[item.run_begin];
  const std::int32_t first_page = window_begin(run.position_begin, args.window) / args.kv.page_size;
  const std::int32_t last_page = (run.position_begin + run.n_tokens - 1) / args.kv.page_size;
  const std::int32_t span_begin = larger(first_page / span_pages, item.span_begin) * span_pages;
  return {item.block_table + span_begin, item.kv_head, larger(first_page - span_begin, 0),
          smaller(last_page + 1 - span_begin, span_pages)};
}

// The pages that are read after those of `span`.
inline PagesAhead pages_behind(const SpanWalk& walk, std::int32_t span, std::int32_t span_pages) {
  const std::int32_t page = (span + 1) * span_pages;
  const std::int32_t end_page = (walk.seen.end - 1) / walk.args.kv.page_size + 1;
  if (span + 1 < walk.item.span_end && page < end_page) {
    return {walk.item.block_table + page, walk.item.kv_head, 0, smaller(end_page - page, span_pages)};
  }
  return walk.next == nullptr ? kNothingAhead : first_pages(walk.args, *walk.next, span_pages);
}

// The block over one span, in tiles of even size.
inline void attend_span(const SpanWalk& walk, SpanTile& tile, std::int32_t span) {
  const std::int32_t n_tiles = (walk.n_rows + kTileRows - 1) / kTileRows;
  tile.first_position = span * tile.span_slots;
  tile.pages = walk.item.block_table + static_cast<std::int64_t>(span) * tile.span_pages;
  if (tile.kv.nhd != nullptr) {
    make_tiles_of_span(walk, tile);
  } else {
    tile.asks_for_v = true;
    tile.ahead = pages_behind(walk, span, tile.span_pages);
  }
  for (std::int32_t i = 0; i < n_tiles; ++i) {
    const std::int32_t begin = walk.n_rows * i / n_tiles, end = walk.n_rows * (i + 1) / n_tiles;
    if (!attend_rows(walk, tile, span, begin, end - begin)) continue;
    tile.asks_for_v = false;  // asked for once
    tile.ahead = kNothingAhead;
  }
}

inline void attend_block(const SpanWalk& walk) {
  SpanTile tile;
  tile.kv = walk.args.kv;
  tile.scratch = walk.scratch;
  tile.kv_head = walk.item.kv_head;
  if (tile.kv.nhd != nullptr) {
    tile.kv.k = walk.scratch.tiles_k;
    tile.kv.v = walk.scratch.tiles_v;
    tile.kv.k_scale = walk.scratch.tiles_k_scale;
    tile.kv.v_scale = walk.scratch.tiles_v_scale;
    tile.kv_head = 0;
  }
  tile.edits = {walk.args.softcap, walk.args.alibi_slopes};
  tile.span_pages = pages_of_span(tile.kv.page_size);
  tile.span_slots = tile.span_pages * tile.kv.page_size;
  const std::int32_t begin = larger(walk.seen.begin / tile.span_slots, walk.item.span_begin);
  const std::int32_t end = smaller((walk.seen.end - 1) / tile.span_slots + 1, walk.item.span_end);
  for (std::int32_t span = begin; span < end; ++span) attend_span(walk, tile, span);
}

void paged_attention(const AttentionArgs& args, const AttentionItem& item, const AttentionItem* next,
                     std::byte* scratch_bytes) {
  ScratchCursor scratch_cursor{scratch_bytes};
  const AttentionScratch scratch = lay_out_scratch(args.kv, args.n_heads, scratch_cursor);
  std::int32_t n_left = 0;
  for (std::int32_t i = 0; i < item.n_runs; ++i) n_left += args.runs[item.run_begin + i].n_tokens;
  n_left *= args.n_heads / args.kv.n_kv_heads;
  RowCursor cursor{args, item};
  for (; n_left > 0; n_left -= scratch.n_rows) {
    const std::int32_t n_rows = smaller(n_left, scratch.n_rows);
    SlotRange seen = {INT32_MAX, 0};
    for (std::int32_t i = 0; i < n_rows; ++i) {
      scratch.rows[i] = cursor.take();
      ask_for_query(args, scratch.rows[i]);
      seen = {smaller(seen.begin, scratch.rows[i].see_begin), larger(seen.end, scratch.rows[i].see_end)};
    }
    for (std::int32_t i = 0; i < n_rows; ++i) begin_row(args, scratch, i);
    attend_block({args, item, n_left == n_rows ? next : nullptr, scratch, n_rows, seen});
    for (std::int32_t i = 0; i < n_rows; ++i) {
      const AttentionRow& row = scratch.rows[i];
      if (row.states != nullptr) continue;
      finish_row(args, row.token, row.head, state_at(scratch.gathered, i, args.kv.head_dim_padded));
    }
  }
}

void merge_states(const AttentionArgs& args, const QueryRun& run, std::byte* scratch_bytes) {
  const std::int32_t hd = args.kv.head_dim_padded;
  const std::int32_t span_slots = pages_of_span(args.kv.page_size) * args.kv.page_size;
  const State gathered = state_at(reinterpret_cast<float*>(scratch_bytes), 0, hd);
  const std::int32_t position = run.position_begin;
  const std::int32_t begin = window_begin(position, args.window) / span_slots;
  const std::int32_t end = (window_end(args, run, position) - 1) / span_slots + 1;
  for (std::int32_t head = 0; head < args.n_heads; ++head) {
    clear_state(gathered);
    for (std::int32_t span = begin; span < end; ++span) {
      const std::int64_t of_span = run.state_begin + span - run.first_span;
      const State next = state_at(args.states, of_span * args.n_heads + head, hd);
      merge_states_into(&gathered, &next, 1);
    }
    finish_row(args, run.token_begin, head, gathered);
  }
}
