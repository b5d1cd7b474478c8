// Runs a planned attention: both kinds of blocks, then the merge.
#pragma once

#include "machine.h"
#include "paged_attention.h"

namespace llm_decoder {
namespace gpu {

constexpr int kMaxHeadDim = 256;

// The plan's arrays on the device.
struct PagedAttentionLaunch {
  Dtype q_dtype = Dtype::bf16;   // bf16, f16
  Dtype kv_dtype = Dtype::bf16;  // q_dtype, fp8, s8
  PagedAttentionArgs args;       // its items are those below
  const PagedAttentionItem *narrow = nullptr, *wide = nullptr;
  int n_narrow = 0, n_wide = 0;
  const int* merged_tokens = nullptr;
  const int* n_states = nullptr;
  int n_merged_tokens = 0;
};

// Throws std::invalid_argument for what no kernel was compiled for, and says what is.
void paged_attention(const PagedAttentionLaunch& launch, Stream stream);

}  // namespace gpu
}  // namespace llm_decoder
