// Which block does which part of a step's attention: worked out once a step on the host, used by every layer.
#pragma once

#include <vector>

#include "llm_decoder/types.h"
#include "paged_attention.h"

namespace llm_decoder {
namespace gpu {

constexpr int kNarrowRows = 16;  // of a block for few rows: its warps share the keys
constexpr int kWideRows = 64;    // of a block for many rows: its warps share the rows. Hopper's takes a multiple
constexpr int kSplitUnit = 64;   // keys; splits lie at multiples, as tiles do
constexpr int kMinSplit = 256;   // keys that are worth a block of their own
constexpr int kMaxSplits = 128;  // of one token

// Sequences [first, first + n) of the batch begin with the same n_keys keys, on the same pages.
struct SharedPrefix {
  int first = 0, n = 0;
  int n_keys = 0;
};

struct PlanRequest {
  Span<const int> seq_lens;      // [n_sequences] keys, those of the tokens of this step included
  Span<const int> cu_seqlens_q;  // [n_sequences + 1] where each sequence's tokens begin
  int n_tokens = 0;              // with those of no sequence, which come last; fewer than the sequences have: theirs
  int n_heads = 0, n_kv_heads = 0;
  bool is_causal = true;
  int window_left = kUnbounded, window_right = kUnbounded;
  int n_blocks = 1;           // that the device runs at once
  int wide_rows = kWideRows;  // of an item for many rows, a multiple of kWideRows
  int fixed_split =
      0;  // keys of a split whatever the batch, so that a sequence's result does not depend on it; 0: chosen
  // Items for many rows also where there are few: a token's result does not depend on how many of its sequence come
  // with it, if the split is fixed.
  bool all_wide = false;
  Span<const SharedPrefix> prefixes;
  // So many rows over a prefix go to blocks for few rows, several of them where they are more than one takes.
  int narrow_prefix_rows = kNarrowRows;
};

struct PagedAttentionPlan {
  std::vector<PagedAttentionItem> narrow, wide;  // those that see most keys first
  std::vector<int> state_begin, n_states;        // [n_tokens]; kNoState and 0 where one item goes over all keys
  std::vector<PrefixStates> prefix_states;       // [n_tokens], none where no prefix is shared
  std::vector<int> merged_tokens;                // that have states
  int n_all_states = 0;
  int wide_rows = kWideRows;
};

// Throws std::invalid_argument for lengths that cannot be.
PagedAttentionPlan plan_paged_attention(const PlanRequest& request);

}  // namespace gpu
}  // namespace llm_decoder
