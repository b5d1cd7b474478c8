#include "small_product_launch.h"

#include <algorithm>

#include "dtype_tags.h"
#include "llm_decoder/errors.h"

namespace llm_decoder {
namespace gpu {
namespace {

constexpr char kPlace[] = "small_product";

// Bytes on their way that a multiprocessor needs, with some to spare; see small_product.h.
constexpr int kBytesInFlight = 48 << 10;

// Up to 16 rows a warp has all 64 outputs of a brick; then sums take the registers of half of them.
template <class T, class Weights>
void run_rows(const SmallProductLaunch& l, Stream stream) {
  const auto run = [&](auto tile) {
    using Tile = decltype(tile);
    SmallProductArgs args = l.args;
    args.out_is_float = l.out_dtype == Dtype::f32;
    args.bricks_per_split = l.plan.bricks_per_split;
    const LaunchShape shape{
        {static_cast<int>(n_brick_rows(args.n)), l.plan.n_splits, 1}, Tile::kThreads, Tile::kSharedBytes};
    gpu::launch<small_product_kernel<Tile>>(stream, shape, args);
  };
  const int m = l.args.m;
  if (m <= 8) return run(ProductTile<T, Weights, 1, 4>{});
  if (m <= 16) return run(ProductTile<T, Weights, 2, 4>{});
  if (m <= 32) return run(ProductTile<T, Weights, 4, 2>{});
  run(ProductTile<T, Weights, 8, 2>{});
}

template <class T>
void run_format(const SmallProductLaunch& l, Stream stream) {
  switch (l.format) {
    case GpuWeightFormat::half:
      return run_rows<T, HalfWeights<T>>(l, stream);
    case GpuWeightFormat::w8:
      return run_rows<T, W8Weights<T>>(l, stream);
    case GpuWeightFormat::w4:
      return run_rows<T, W4Weights<T>>(l, stream);
  }
}

bool is_aligned(const void* pointer) { return reinterpret_cast<std::uintptr_t>(pointer) % 16 == 0; }

void check(const SmallProductLaunch& l) {
  const SmallProductArgs& args = l.args;
  check_arg(args.m >= 0 && args.m <= kMaxSmallProductRows, kPlace, "a must have 0 to ", kMaxSmallProductRows,
            " rows, got ", args.m, "; larger products belong to a library of dense ones");
  check_arg(args.n > 0 && args.k > 0 && args.k % 8 == 0, kPlace,
            "n must be positive and k a positive multiple of 8, got ", args.n, " and ", args.k,
            "; pad the inputs with zeros");
  check_arg(l.out_dtype == l.dtype || l.out_dtype == Dtype::f32, kPlace, "out must be ", dtype_name(l.dtype),
            " like a or float32, got ", dtype_name(l.out_dtype));
  check_arg(is_aligned(args.a) && args.a_stride % 8 == 0, kPlace,
            "rows of a must be aligned to 16 bytes, got a stride of ", args.a_stride, " elements; copy them");
  check_arg(is_aligned(args.w), kPlace, "packed weights must be aligned to 16 bytes; place them so");
  const std::int64_t n_bricks = n_brick_columns(l.format, args.k);
  check_arg(l.plan.bricks_per_split > 0 && ceil_div(n_bricks, l.plan.bricks_per_split) == l.plan.n_splits, kPlace,
            "the plan must cut ", n_bricks, " bricks, got ", l.plan.n_splits, " splits of ", l.plan.bricks_per_split,
            "; plan for this k and format");
  check_arg(l.plan.n_splits == 1 || (args.partials != nullptr && args.n_arrived != nullptr), kPlace, l.plan.n_splits,
            " splits need partials and n_arrived, got null; see small_product_partials");
}

}  // namespace

SmallProductPlan plan_small_product(GpuWeightFormat format, int n, int k, int n_multiprocessors) {
  check_arg(n > 0 && k > 0 && n_multiprocessors > 0, "plan_small_product",
            "n, k and n_multiprocessors must be positive, got ", n, ", ", k, " and ", n_multiprocessors);
  const std::int64_t block_bytes = std::int64_t{kProductWarpsK} * brick_shape(format).bytes();
  const std::int64_t n_blocks = ceil_div(std::int64_t{kBytesInFlight} * n_multiprocessors, block_bytes);
  // In rounds: a brick for each warp.
  const std::int64_t n_bricks = n_brick_columns(format, k), n_rounds = ceil_div(n_bricks, kProductWarpsK);
  const std::int64_t n_wanted = std::min(n_rounds, ceil_div(n_blocks, n_brick_rows(n)));
  std::int64_t rounds_per_split = ceil_div(n_rounds, n_wanted);
  if (ceil_div(n_rounds, rounds_per_split) < n_wanted) rounds_per_split = n_rounds / n_wanted;
  const std::int64_t bricks_per_split = rounds_per_split * kProductWarpsK;
  return {static_cast<int>(bricks_per_split), static_cast<int>(ceil_div(n_bricks, bricks_per_split))};
}

std::int64_t small_product_partials(const SmallProductPlan& plan, int m, int n) {
  return plan.n_splits == 1 ? 0 : plan.n_splits * n_brick_rows(n) * kBrickOutputs * m;
}

std::int64_t small_product_counters(int n) { return n_brick_rows(n); }

void small_product(const SmallProductLaunch& l, Stream stream) {
  check(l);
  if (l.args.m == 0) return;
  with_half(l.dtype, kPlace, "a", [&](auto tag) { run_format<typename decltype(tag)::type>(l, stream); });
}

}  // namespace gpu
}  // namespace llm_decoder
