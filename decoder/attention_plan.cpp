#include "attention_plan.h"

#include <algorithm>
#include <utility>

#include "llm_decoder/parallel.h"

namespace llm_decoder {
namespace {

// The attention kernel reads keys and values once for this many rows (a query head of a token each), so a run of tokens
// has no fewer; and not many more, so that every thread gets several items.
constexpr std::int32_t kMinRunRows = 32;
constexpr std::int32_t kMaxRunRows = 192;
// Up to so many rows of a sequence are cut across spans: a decode with its drafts, the last few tokens of a prompt.
constexpr std::int64_t kMaxShortRows = 128;
constexpr std::int64_t kItemsPerThread = 6;
// Rows of sequences that share an item: they fit a block of the kernel, fewer only for the sake of more threads.
constexpr std::int64_t kMostRows = 64;
constexpr std::int64_t kFewestRows = 8;
// Reading a span's pages takes as long as computing about so many rows over it.
constexpr std::int64_t kReadCost = 8;

// Query-position pairs of tokens at [begin, end) of a sequence that see everything before them.
std::int64_t n_visible(std::int64_t begin, std::int64_t end) { return (end * (end + 1) - begin * (begin + 1)) / 2; }

std::int32_t group_of(const AttentionShape& shape) { return shape.n_heads / shape.n_kv_heads; }

bool is_short(const AttentionShape& shape, const QuerySequence& sequence) {
  return sequence.n_tokens == 1 || std::int64_t{sequence.n_tokens} * group_of(shape) <= kMaxShortRows;
}

std::int32_t first_position(const AttentionShape& shape, const QuerySequence& sequence) {
  const std::int32_t position = sequence.position_begin;
  return shape.window > 0 && position >= shape.window ? position - shape.window + 1 : 0;
}

// The last position that any of n_tokens tokens from `position` on sees.
std::int32_t last_position(const AttentionShape& shape, std::int32_t position, std::int32_t n_tokens,
                           std::int32_t n_positions) {
  const std::int64_t last = std::int64_t{position} + n_tokens - 1 + shape.window_right;
  return static_cast<std::int32_t>(std::min<std::int64_t>(last, n_positions - 1));
}

// Tokens of an item of a long chunk.
std::int32_t run_length(const AttentionShape& shape, std::int64_t n_tokens) {
  const std::int64_t group = group_of(shape);
  const std::int64_t smallest = ceil_div(kMinRunRows, group);
  const std::int64_t largest = std::max<std::int64_t>(smallest, kMaxRunRows / group);
  const std::int64_t even = ceil_div(n_tokens * shape.n_kv_heads, kItemsPerThread * shape.n_threads);
  return static_cast<std::int32_t>(std::clamp(round_up(even, smallest), smallest, largest));
}

}  // namespace

void AttentionPlan::make(const AttentionShape& shape, const std::vector<QuerySequence>& sequences) {
  runs.clear();
  items.clear();
  merges.clear();
  shorts_.clear();
  segments_.clear();
  n_states = n_pairs = 0;
  std::int64_t n_tokens = 0;
  for (const QuerySequence& s : sequences) n_tokens += s.n_tokens;
  for (const QuerySequence& s : sequences) {
    n_pairs += shape.n_heads * n_visible(s.position_begin, std::int64_t{s.position_begin} + s.n_tokens);
    if (s.n_tokens == 0) continue;
    if (!is_short(shape, s)) {
      add_long(shape, s, run_length(shape, n_tokens));
      continue;
    }
    const std::int32_t last = last_position(shape, s.position_begin, s.n_tokens, s.n_positions);
    shorts_.push_back({s, first_position(shape, s) / shape.page_size, last / shape.page_size, 0, 0});
  }
  if (shorts_.empty()) return;
  find_shared(shape);
  choose_cuts(shape);
  add_short_runs(shape);
  add_short_items(shape);
}

// Cuts a chunk into runs, the dearest (latest) first, so that the cheap ones fill the gaps at the end.
void AttentionPlan::add_long(const AttentionShape& shape, const QuerySequence& sequence, std::int32_t max_run) {
  const std::int32_t span_positions = pages_of_span(shape.page_size) * shape.page_size;
  const auto run_begin = static_cast<std::int32_t>(runs.size());
  for (std::int32_t end = sequence.n_tokens; end > 0;) {
    const std::int32_t begin = (end - 1) / max_run * max_run;
    runs.push_back({sequence.token_begin + begin, end - begin, sequence.position_begin + begin, kNoStates, 0, 0,
                    sequence.n_positions});
    end = begin;
  }
  for (std::int32_t head = 0; head < shape.n_kv_heads; ++head) {
    for (std::int32_t i = run_begin; i < static_cast<std::int32_t>(runs.size()); ++i) {
      const QueryRun& run = runs[static_cast<std::size_t>(i)];
      const std::int32_t last = last_position(shape, run.position_begin, run.n_tokens, run.n_positions);
      items.push_back({sequence.block_table, head, i, 1, 0, last / span_positions + 1});
    }
  }
}

// Sorted by their page tables, sequences that share a prefix are neighbours, and what any two of them share is the
// least that neighbours between them share. When nothing is shared this compares first pages only.
void AttentionPlan::find_shared(const AttentionShape& shape) {
  const std::int32_t span_pages = pages_of_span(shape.page_size);
  // The first page where two tables differ; a window may have let go of different pages.
  const auto first_difference = [](const Short& a, const Short& b) {
    if (a.first_page != b.first_page) return 0;
    const std::int32_t end = std::min(a.last_page, b.last_page) + 1;
    const auto* begin = a.of.block_table + a.first_page;
    return static_cast<std::int32_t>(
        std::mismatch(begin, a.of.block_table + end, b.of.block_table + b.first_page).first - a.of.block_table);
  };
  std::sort(shorts_.begin(), shorts_.end(), [&](const Short& a, const Short& b) {
    if (a.first_page != b.first_page) return a.first_page < b.first_page;
    const std::int32_t page = first_difference(a, b);
    if (page <= std::min(a.last_page, b.last_page)) return a.of.block_table[page] < b.of.block_table[page];
    return std::pair(a.last_page, a.of.token_begin) < std::pair(b.last_page, b.of.token_begin);
  });
  for (std::size_t i = 0; i + 1 < shorts_.size(); ++i) {
    shorts_[i].n_common = first_difference(shorts_[i], shorts_[i + 1]) / span_pages;
  }
  add_segments(0, static_cast<std::int32_t>(shorts_.size()), 0, span_pages);
}

// Segments of sequences [begin, end), which agree over the spans before `span`.
void AttentionPlan::add_segments(std::int32_t begin, std::int32_t end, std::int32_t span, std::int32_t span_pages) {
  const Short& first = shorts_[static_cast<std::size_t>(begin)];
  std::int32_t common_end = first.last_page / span_pages + 1;  // of one alone: all its spans
  for (std::int32_t i = begin; i + 1 < end; ++i) {
    common_end = std::min(common_end, shorts_[static_cast<std::size_t>(i)].n_common);
  }
  const std::int32_t span_begin = std::max(span, first.first_page / span_pages);
  if (common_end > span_begin) {
    segments_.push_back({begin, end, span_begin, common_end, 1});
  }
  if (end - begin == 1) return;
  for (std::int32_t part = begin; part < end;) {
    std::int32_t part_end = part + 1;
    while (part_end < end && shorts_[static_cast<std::size_t>(part_end - 1)].n_common > common_end) ++part_end;
    add_segments(part, part_end, std::max(span, common_end), span_pages);
    part = part_end;
  }
}

std::int64_t AttentionPlan::n_rows(const AttentionShape& shape, const Segment& segment) const {
  std::int64_t n_tokens = 0;
  for (std::int32_t i = segment.begin; i < segment.end; ++i)
    n_tokens += shorts_[static_cast<std::size_t>(i)].of.n_tokens;
  return n_tokens * group_of(shape);
}

// Cuts segments across spans, so that every thread gets several items of about the same cost.
void AttentionPlan::choose_cuts(const AttentionShape& shape) {
  const auto cost = [&](const Segment& s) { return (s.span_end - s.span_begin) * (kReadCost + n_rows(shape, s)); };
  std::int64_t total = 0;
  for (const Segment& s : segments_) total += cost(s);
  const std::int64_t most =
      shape.n_threads == 1 ? total : ceil_div(total * shape.n_kv_heads, kItemsPerThread * shape.n_threads);
  for (Segment& s : segments_) {
    const std::int64_t n_cuts = std::min<std::int64_t>(s.span_end - s.span_begin, ceil_div(cost(s), most));
    s.n_cuts = static_cast<std::int32_t>(n_cuts);
    for (std::int32_t i = s.begin; i < s.end; ++i) shorts_[static_cast<std::size_t>(i)].n_items += s.n_cuts;
  }
  // Too few spans for the threads: rows are split too, and read what the others read out of a cache.
  for (most_rows_ = kMostRows; most_rows_ > kFewestRows && n_items(shape) < shape.n_threads;) most_rows_ /= 2;
}

std::int64_t AttentionPlan::n_items(const AttentionShape& shape) const {
  std::int64_t n = 0;
  for (const Segment& s : segments_) n += s.n_cuts * ceil_div(n_rows(shape, s), most_rows_);
  return n * shape.n_kv_heads;
}

// A run for each short sequence, in their order; those that several items work on get states.
void AttentionPlan::add_short_runs(const AttentionShape& shape) {
  const std::int32_t span_pages = pages_of_span(shape.page_size);
  for (const Short& s : shorts_) {
    const std::int32_t first_span = s.first_page / span_pages, n_spans = s.last_page / span_pages + 1 - first_span;
    QueryRun run = {s.of.token_begin, s.of.n_tokens, s.of.position_begin, kNoStates,
                    first_span,       n_spans,       s.of.n_positions};
    if (s.n_items > 1) {
      run.state_begin = n_states;
      n_states += std::int64_t{n_spans} * s.of.n_tokens;
      for (std::int32_t i = 0; i < s.of.n_tokens; ++i) {
        merges.push_back({run.token_begin + i, 1, run.position_begin + i, run.state_begin + std::int64_t{i} * n_spans,
                          first_span, n_spans, run.n_positions});
      }
    }
    runs.push_back(run);
  }
}

// The sequences of a segment from `begin` on that one item takes.
std::int32_t AttentionPlan::end_of_item(const AttentionShape& shape, const Segment& segment, std::int32_t begin) const {
  std::int64_t n_tokens = shorts_[static_cast<std::size_t>(begin)].of.n_tokens;
  std::int32_t end = begin + 1;
  for (; end < segment.end; ++end) {
    n_tokens += shorts_[static_cast<std::size_t>(end)].of.n_tokens;
    if (n_tokens * group_of(shape) > most_rows_) break;
  }
  return end;
}

// Items over the same pages, or over the next KV head of the same pages, follow each other on one thread: what one
// reads is in a cache for the other, or lies behind it in memory.
void AttentionPlan::add_short_items(const AttentionShape& shape) {
  in_order_.clear();
  const auto first_run = static_cast<std::int32_t>(runs.size() - shorts_.size());
  for (const Segment& s : segments_) {
    const std::int32_t n_spans = s.span_end - s.span_begin;
    for (std::int32_t head = 0; head < shape.n_kv_heads; ++head) {
      for (std::int32_t cut = 0; cut < s.n_cuts; ++cut) {
        const std::int32_t span_begin =
            s.span_begin + static_cast<std::int32_t>(std::int64_t{n_spans} * cut / s.n_cuts);
        const std::int32_t span_end =
            s.span_begin + static_cast<std::int32_t>(std::int64_t{n_spans} * (cut + 1) / s.n_cuts);
        for (std::int32_t begin = s.begin; begin < s.end;) {
          const std::int32_t end = end_of_item(shape, s, begin);
          const QuerySequence& first = shorts_[static_cast<std::size_t>(begin)].of;
          in_order_.push_back({first.block_table, head, first_run + begin, end - begin, span_begin, span_end});
          begin = end;
        }
      }
    }
  }
  const auto n = static_cast<std::int64_t>(in_order_.size());
  for (std::int64_t i = 0; i < n; ++i) {
    items.push_back(in_order_[static_cast<std::size_t>(neighbour_of(i, n, shape.n_threads))]);
  }
}

}  // namespace llm_decoder
