// What attention over pages is asked, as kernels see it. All pointers are the device's.
#pragma once

#include <cstdint>

#include "elements.h"

namespace llm_decoder {
namespace gpu {

// K or V of all pages: element (page, slot, kv_head, d) at page * page_stride + slot * slot_stride + kv_head *
// head_stride + d.
struct PagedTensor {
  const void* data = nullptr;
  std::int64_t page_stride = 0, slot_stride = 0, head_stride = 0;  // elements
  std::int64_t n_pages = 0;                                        // 0: not known, so no copies by tensor map
};

// x ~ element * scale, scale from the first of these that is there: one a slot and head, one a head, one for all.
struct KvScale {
  float all = 1.0f;
  const float* per_head = nullptr;  // [n_kv_heads]
  const float* per_slot = nullptr;  // [n_pages, page_size, n_kv_heads]
};

// Rows that go over the same keys of one sequence. Of consecutive tokens every query head of a KV head is a row, row =
// token * group + head; an item takes rows [row_begin, row_begin + n_rows) of those that begin with token_begin.
struct PagedAttentionItem {
  int token_begin = 0;
  int row_begin = 0, n_rows = 0;  // none: the item does nothing
  int sequence = 0;               // row of the block table, or kNoSequence
  int first_position = 0;         // of token_begin
  int position_step = 1;          // 0: all tokens are at the same position
  int key_begin = 0, key_end = 0;
  int split = 0;  // which of its tokens' states this item writes, where they have states
};

// Of a token's states the first n are over a prefix that others share: found as if it stood right behind the prefix,
// and not n_between positions after that.
struct PrefixStates {
  int n = 0, n_between = 0;
};

constexpr int kNoSequence = -1;  // rows that pad the batch: they see nothing, not even a sink
constexpr int kUnbounded = 1 << 30;
constexpr int kNoState = -1;
constexpr int kNoToken = -1;

struct PagedAttentionArgs {
  const void* q = nullptr;  // [n_tokens, n_heads, head_dim]
  std::int64_t q_token_stride = 0, q_head_stride = 0;
  void* out = nullptr;  // the same shape
  std::int64_t out_token_stride = 0, out_head_stride = 0;
  float* lse = nullptr;  // [n_tokens, n_heads], base e, or null
  PagedTensor k, v;
  KvScale k_scale, v_scale;
  const int* block_table = nullptr;  // [n_sequences, block_table_stride]; entries that no key needs may be anything
  std::int64_t block_table_stride = 0;
  int n_heads = 0, n_kv_heads = 0, head_dim = 0, page_size = 0;

  float scale = 1.0f;  // of q . k
  bool is_causal = true;
  int window_left = kUnbounded, window_right = kUnbounded;  // keys seen before and after a token's own position
  float softcap = 0.0f;                                     // 0: none
  const float* alibi_slopes = nullptr;                      // [n_heads] or null
  const float* sinks = nullptr;  // [n_heads] or null: a logit that takes part in the sum only

  const PagedAttentionItem* items = nullptr;
  int blocks_per_item = 1;  // that share its rows
  // Tokens that several items share have states: of token t and head h, normalised out [head_dim] and log-sum-exp
  // (base 2) at (state_begin[t] + split) * n_heads + h. kNoState where one item goes over all keys.
  const int* state_begin = nullptr;  // [n_tokens]
  float* states = nullptr;
  float* state_lse = nullptr;
};

}  // namespace gpu
}  // namespace llm_decoder
