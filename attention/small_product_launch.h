// Products of few rows: which kernel, and how k is shared among blocks.
#pragma once

#include "llm_decoder/types.h"
#include "machine.h"
#include "small_product.h"

namespace llm_decoder {
namespace gpu {

constexpr int kMaxSmallProductRows = 64;

// Whether a product of n outputs, [gate, up], can be gated: their halves are whole bricks.
constexpr bool takes_gated_outputs(int n) { return n % (2 * kBrickOutputs) == 0; }

// How k is cut, for every m: results do not depend on how many rows there are.
struct SmallProductPlan {
  int bricks_per_split = 1, n_splits = 1;
};

// For a device of so many multiprocessors. Throws std::invalid_argument for sizes that are not positive.
SmallProductPlan plan_small_product(GpuWeightFormat format, int n, int k, int n_multiprocessors);

// What a product of m rows needs on the device: floats, and ints that are zero before its first use and after each.
// Products of one stream can share them.
std::int64_t small_product_partials(const SmallProductPlan& plan, int m, int n);
std::int64_t small_product_counters(int n);

struct SmallProductLaunch {
  Dtype dtype = Dtype::bf16;      // of a, and of half weights: bf16, f16
  Dtype out_dtype = Dtype::bf16;  // the same, or f32
  GpuWeightFormat format = GpuWeightFormat::w8;
  SmallProductPlan plan;
  SmallProductArgs args;  // out_is_float and bricks_per_split are those above
};

// Throws std::invalid_argument for what no kernel was compiled for, and says what is.
void small_product(const SmallProductLaunch& launch, Stream stream);

}  // namespace gpu
}  // namespace llm_decoder
