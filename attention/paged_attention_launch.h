// Runs a planned attention: both kinds of blocks, then the merge.
//
// Few rows (decode) are bound by memory whatever multiplies, and take mma.sync. Many rows (prompts) take wgmma where
// the device has it and the pages are of the queries' dtype (hopper_attention.h); pages of bytes must be widened in
// registers on their way to the tensor cores, where wgmma takes its right operand from shared memory alone, and stay on
// mma.sync.
#pragma once

#include "device_memory.h"
#include "paged_attention.h"
#include "paged_attention_plan.h"

namespace llm_decoder {
namespace gpu {

constexpr int kMaxHeadDim = 256;
constexpr int kBlocksPerSm = 2;  // that the smallest blocks leave room for on a multiprocessor

// Who multiplies many rows. Where it is chosen, the environment variable LLM_DECODER_ATTENTION_PATH may say mma_sync or
// wgmma instead; what was asked for and cannot be is an error.
enum class AttentionPath { chosen, mma_sync, wgmma };

// The plan's arrays on the device.
struct PagedAttentionLaunch {
  Dtype q_dtype = Dtype::bf16;   // bf16, f16
  Dtype kv_dtype = Dtype::bf16;  // q_dtype, fp8, s8
  PagedAttentionArgs args;       // its items are those below
  const PagedAttentionItem *narrow = nullptr, *wide = nullptr;
  int n_narrow = 0, n_wide = 0;
  int wide_rows = kWideRows;  // of the plan
  AttentionPath path = AttentionPath::chosen;
  const int* merged_tokens = nullptr;  // kNoToken: none
  const int* n_states = nullptr;
  int n_merged_tokens = 0;
  const PrefixStates* prefix_states = nullptr;  // null where no prefix is shared
};

// Throws std::invalid_argument for what no kernel was compiled for, and says what is.
void paged_attention(const PagedAttentionLaunch& launch, Stream stream);

// What plans for a device give as PlanRequest::wide_rows.
int wide_rows_for(const DeviceProperties& device);

}  // namespace gpu
}  // namespace llm_decoder
