// llm_decoder.ops on the CPU: a step's keys and values into pages that belong to others, with what may stand between
// them and the product that made them.
#pragma once

#include "attention_ops.h"

namespace llm_decoder {

struct AppendKvCall {
  HeadRows q;           // [n_tokens, n_heads, head_dim], changed in place
  HeadRows key, value;  // [n_tokens, n_kv_heads, head_dim]
  NhdPool pool;
  // [n_tokens] token i goes to slot slots[i] % page_size of page slots[i] / page_size, nowhere when that is negative;
  // no two tokens to the same.
  const std::int64_t* slots = nullptr;
  std::int64_t n_tokens = 0;
  std::int32_t n_heads = 0;  // 0: no queries

  const float *q_norm = nullptr, *k_norm = nullptr;  // [head_dim] or null
  float norm_eps = 0.0f;
  // The first 2 * half channels of queries and keys are rotated: channel i with i + half or, interleaved, 2 i with
  // 2 i + 1.
  std::int32_t half = 0;
  const float *cos = nullptr, *sin = nullptr;  // [n_tokens, half]
  bool is_interleaved = false;
};

// Throws std::invalid_argument for a slot outside.
void append_kv_op(const AppendKvCall& call, const CpuKernels& kernels, ThreadPool& pool);

}  // namespace llm_decoder
