// llm_decoder.ops on the CPU: attention over pages that belong to others, by the kernels of the decoder.
#pragma once

#include <cstdint>

#include "llm_decoder/cpu_kernels.h"
#include "llm_decoder/parallel.h"

namespace llm_decoder {

// [n_tokens, n_heads, head_dim], the elements of a head beside each other.
struct HeadRows {
  Dtype dtype = Dtype::f32;
  std::byte* data = nullptr;
  std::int64_t token_stride_bytes = 0, head_stride_bytes = 0;

  std::byte* row(std::int64_t token, std::int64_t head) const {
    return data + token * token_stride_bytes + head * head_stride_bytes;
  }
};

// nhd pages and their sizes.
struct NhdPool {
  NhdPages pages;
  std::int64_t n_pages = 0;
  std::int32_t page_size = 0, n_kv_heads = 0, head_dim = 0;
  bool makes_k_scale = false, makes_v_scale = false;  // one a slot and head, which append_kv_op writes
};

constexpr std::int32_t kNoWindow = -1;

struct PagedAttentionCall {
  HeadRows q, out;
  float* lse = nullptr;  // [n_tokens, n_heads], base e, or null
  NhdPool pool;
  std::int32_t n_tokens = 0, n_heads = 0;
  std::int32_t n_sequences = 0;
  const std::int32_t* block_table = nullptr;  // [n_sequences, table_width]; entries that no token needs may be anything
  std::int32_t table_width = 0;
  const std::int32_t* seq_lens = nullptr;      // [n_sequences] positions, those of the sequence's tokens being the last
  const std::int32_t* cu_seqlens_q = nullptr;  // [n_sequences + 1] where each sequence's tokens begin
  float scale = 1.0f;
  bool is_causal = true;
  std::int32_t window_left = kNoWindow, window_right = kNoWindow;  // positions seen before and after a token's own
  float softcap = 0.0f;
  const float* alibi_slopes = nullptr;
  const float* sinks = nullptr;
};

// Writes every row of out and lse: 0 and the sink, or -inf without one, for a token that sees nothing; 0 and -inf for
// tokens of no sequence. Throws std::invalid_argument for lengths and live table entries that cannot be.
void paged_attention_op(const PagedAttentionCall& call, const CpuKernels& kernels, ThreadPool& pool);

// What attention found over some of the keys, for the same tokens.
struct PartialAttention {
  HeadRows out;
  const float* lse;  // [n_tokens, n_heads], base e
};

// out and lse (or null) as over all the keys. Where lse is -inf that part's out may be anything.
void merge_states_op(const PartialAttention* parts, std::int32_t n_parts, std::int64_t n_tokens, std::int32_t n_heads,
                     std::int32_t head_dim, const HeadRows& out, float* lse, ThreadPool& pool);

}  // namespace llm_decoder
