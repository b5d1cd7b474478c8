// A mixture of experts: pairs sorted by expert, silu(gate) * up, the product back weighed by the router, and the
// sum of each token's choices. Shapes and names as vLLM has them.
#pragma once

#include "machine.h"
#include "moe.h"

namespace llm_decoder {
namespace gpu {

struct FusedMoeLaunch {
  Dtype dtype = Dtype::bf16;         // of hidden and out: bf16, f16
  Dtype weight_dtype = Dtype::bf16;  // dtype, or s8 with scales
  const void* hidden = nullptr;      // [n_tokens, k]
  std::int64_t hidden_stride = 0;
  const void* w1 = nullptr;                              // [n_experts, 2 n, k], the rows of the gate first
  const void* w2 = nullptr;                              // [n_experts, k, n]
  const float *w1_scale = nullptr, *w2_scale = nullptr;  // [n_experts, 2 n], [n_experts, k]; null: 1
  const float* topk_weights = nullptr;                   // [n_tokens, top_k]
  const int* topk_ids = nullptr;    // the same shape; an id that is none of n_ids adds nothing, as one not here does
  const int* expert_map = nullptr;  // [n_ids] which of the n_experts an id is, or kNotHere; null: the id itself
  int n_ids = 0;
  void* out = nullptr;  // [n_tokens, k]; may be hidden
  std::int64_t out_stride = 0;
  int n_tokens = 0, top_k = 0, n_experts = 0;
  int n = 0, k = 0;           // multiples of 8
  int tile_rows = 0;          // of kProductTileRows, so that a token's result does not depend on the batch; 0: chosen
  void* workspace = nullptr;  // fused_moe_workspace_bytes, about 2 (n + k) a pair, aligned to 16
};

// Throws std::invalid_argument for shapes that cannot be.
std::int64_t fused_moe_workspace_bytes(const FusedMoeLaunch& launch);

// Throws std::invalid_argument for what no kernel was compiled for, and says what is. Copies nothing from the device:
// it can be captured in a graph.
void fused_moe(const FusedMoeLaunch& launch, Stream stream);

}  // namespace gpu
}  // namespace llm_decoder
