// How the attention of a step is cut into items: which sequences read the same pages together, and what each thread may
// take. Neither changes a bit of any result.
#pragma once

#include <cstdint>
#include <vector>

#include "llm_decoder/cpu_kernels.h"

namespace llm_decoder {

struct AttentionShape {
  std::int32_t n_heads = 0, n_kv_heads = 0;
  std::int32_t page_size = 0;
  std::int32_t window = 0;  // the widest of the layers that use the plan, 0: everything
  int n_threads = 1;
  std::int32_t window_right = 0;  // positions after its own that a token sees
};

// Tokens of a sequence that ask, the first at position_begin.
struct QuerySequence {
  const std::int32_t* block_table = nullptr;
  std::int32_t token_begin = 0;  // row of q and out
  std::int32_t n_tokens = 0;
  std::int32_t position_begin = 0;
  std::int32_t n_positions = INT32_MAX;  // of the sequence
};

// A long chunk of a prompt reads each page for many rows anyway: it is cut into runs of tokens, each of which goes over
// all its spans. Sequences with few tokens are cut across spans, and where their page tables agree over whole spans
// they read them as one:
//
//   A  [ 7 2 ][ 9 4 ][ 5 ]        items (two pages a span)   [7 2] for A B C
//   B  [ 7 2 ][ 9 4 ][ 8 ]                                   [9 4] for A B, [3 6] for C
//   C  [ 7 2 ][ 3 6 ]                                        [5] for A, [8] for B
//
// Sequences that agree over part of a span read that part one after the other, while it is in the cache.
class AttentionPlan {
 public:
  std::vector<QueryRun> runs;        // named by items
  std::vector<AttentionItem> items;  // any thread may run them in any order
  std::vector<QueryRun> merges;      // of a token each, finished by merge_states after all items
  std::int64_t n_states = 0;         // of all heads: states need n_states * n_heads * state_floats floats
  std::int64_t n_pairs = 0;          // (query head, visible position) pairs: how much work it is

  void make(const AttentionShape& shape, const std::vector<QuerySequence>& sequences);

 private:
  struct Short {  // a sequence with few tokens
    QuerySequence of;
    std::int32_t first_page, last_page;  // that it sees
    std::int32_t n_common;               // leading spans that it shares with the next one
    std::int32_t n_items;                // that its spans are cut into
  };
  struct Segment {  // short sequences [begin, end) go over these spans together, in n_cuts items a KV head
    std::int32_t begin, end;
    std::int32_t span_begin, span_end;
    std::int32_t n_cuts;
  };

  void add_long(const AttentionShape& shape, const QuerySequence& sequence, std::int32_t max_run);
  void find_shared(const AttentionShape& shape);
  void add_segments(std::int32_t begin, std::int32_t end, std::int32_t span, std::int32_t span_pages);
  std::int64_t n_rows(const AttentionShape& shape, const Segment& segment) const;
  void choose_cuts(const AttentionShape& shape);
  std::int64_t n_items(const AttentionShape& shape) const;  // of short sequences
  std::int32_t end_of_item(const AttentionShape& shape, const Segment& segment, std::int32_t begin) const;
  void add_short_runs(const AttentionShape& shape);
  void add_short_items(const AttentionShape& shape);

  std::vector<Short> shorts_;
  std::vector<Segment> segments_;
  std::vector<AttentionItem> in_order_;  // of short sequences, before they are dealt to threads
  std::int64_t most_rows_ = 0;           // of several sequences in an item
};

}  // namespace llm_decoder
