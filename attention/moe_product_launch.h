// Products of rows with the weights of their experts, and the dense product that is the case of one expert.
#pragma once

#include "grouped_product.h"
#include "machine.h"

namespace llm_decoder {
namespace gpu {

// Rows of the tiles that kernels were compiled for; the first is for decoding.
constexpr int kProductTileRows[] = {8, 32, 64, 128};

// The tile for so many rows of an expert on average.
int choose_tile_rows(std::int64_t n_rows, int n_experts);

struct GroupedProductLaunch {
  Dtype dtype = Dtype::bf16;         // of a and out: bf16, f16; a dense product may have float32 for out
  Dtype weight_dtype = Dtype::bf16;  // dtype, or s8 with scales
  bool is_gated = false;
  int tile_rows = 0;  // of kProductTileRows: as the tiles were made
  GroupedProductArgs args;
};

// Throws std::invalid_argument for what no kernel was compiled for, and says what is.
void check_product(const GroupedProductLaunch& launch);

// Throws as check_product does.
void grouped_product(const GroupedProductLaunch& launch, Stream stream);

// out[n_rows, n] = a[n_rows, k] w[n, k]^T, by grouped_product without tiles. tile_rows may be 0: chosen by n_rows.
void dense_product(GroupedProductLaunch launch, Stream stream);

}  // namespace gpu
}  // namespace llm_decoder
