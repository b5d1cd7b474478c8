#include "small_product_launch.h"

#include <algorithm>
#include <limits>

#include "dtype_tags.h"
#include "llm_decoder/errors.h"

namespace llm_decoder {
namespace gpu {
namespace {

constexpr char kPlace[] = "small_product";

// What the plan takes a device for; see small_product.h.
constexpr double kLatencyUs = 1.0;        // of memory under load
constexpr double kBytesPerUs = 36 << 10;  // of memory's bandwidth, a multiprocessor's share
constexpr double kBlockUs = 2.0;          // that a block takes beside its rounds: the first bytes, the sums

std::int64_t n_block_rows(std::int64_t n) { return ceil_div(n, kBlockOutputs); }

template <class T, class Weights>
void run_rows(const SmallProductLaunch& l, Stream stream) {
  const auto run = [&](auto tile) {
    using Tile = decltype(tile);
    SmallProductArgs args = l.args;
    args.out_is_float = l.out_dtype == Dtype::f32;
    args.bricks_per_split = l.plan.bricks_per_split;
    const Dim3 grid{static_cast<int>(n_block_rows(args.n)), l.plan.n_splits, 1};
    gpu::launch<small_product_kernel<Tile>>(stream, {grid, kProductThreads, Tile::kSharedBytes}, args);
  };
  const int m = l.args.m;
  if (m <= 8) return run(ProductTile<T, Weights, 1>{});
  if (m <= 16) return run(ProductTile<T, Weights, 2>{});
  if (m <= 32) return run(ProductTile<T, Weights, 4>{});
  run(ProductTile<T, Weights, 8>{});
}

template <class T>
void run_format(const SmallProductLaunch& l, Stream stream) {
  switch (l.format) {
    case GpuWeightFormat::half:
      return run_rows<T, HalfWeights<T>>(l, stream);
    case GpuWeightFormat::w8:
      return run_rows<T, ByteWeights<T, GpuWeightFormat::w8>>(l, stream);
    case GpuWeightFormat::f8:
      return run_rows<T, ByteWeights<T, GpuWeightFormat::f8>>(l, stream);
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
  check_arg(!args.is_gated || (takes_gated_outputs(args.n) && l.out_dtype == l.dtype), kPlace, "gated outputs must be ",
            dtype_name(l.dtype), " like a and come from a multiple of ", 2 * kBrickOutputs, ", got ",
            dtype_name(l.out_dtype), " from ", args.n, "; multiply, then use gated");
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
  // A round is a brick for each warp. With one block on each multiprocessor at once, whatever fits: a plan is for any
  // m.
  const double round_bytes = kProductWarpsN * kProductWarpsK * brick_shape(format).bytes();
  const double latency_us = kLatencyUs / bricks_ahead(format, 1);
  const std::int64_t n_bricks = n_brick_columns(format, k), n_rounds = ceil_div(n_bricks, kProductWarpsK);
  std::int64_t best = n_rounds;
  double best_us = std::numeric_limits<double>::infinity();
  for (std::int64_t rounds = n_rounds; rounds > 0; --rounds) {
    const std::int64_t n_blocks = n_block_rows(n) * ceil_div(n_rounds, rounds);
    const auto n_at_once = static_cast<double>(std::min<std::int64_t>(n_blocks, n_multiprocessors));
    const double round_us = std::max(latency_us, n_at_once * round_bytes / (kBytesPerUs * n_multiprocessors));
    const auto n_waves = static_cast<double>(ceil_div(n_blocks, n_multiprocessors));
    const double us = n_waves * (static_cast<double>(rounds) * round_us + kBlockUs);
    if (us < best_us) best = rounds, best_us = us;
  }
  const std::int64_t bricks_per_split = best * kProductWarpsK;
  return {static_cast<int>(bricks_per_split), static_cast<int>(ceil_div(n_bricks, bricks_per_split))};
}

std::int64_t small_product_partials(const SmallProductPlan& plan, int m, int n) {
  return plan.n_splits == 1 ? 0 : plan.n_splits * n_block_rows(n) * kBlockOutputs * m;
}

std::int64_t small_product_counters(int n) { return n_block_rows(n); }

void small_product(const SmallProductLaunch& l, Stream stream) {
  check(l);
  if (l.args.m == 0) return;
  with_half(l.dtype, kPlace, "a", [&](auto tag) { run_format<typename decltype(tag)::type>(l, stream); });
}

}  // namespace gpu
}  // namespace llm_decoder
