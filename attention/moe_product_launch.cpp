#include "moe_product_launch.h"

#include <algorithm>
#include <iterator>
#include <limits>

#include "dtype_tags.h"
#include "llm_decoder/errors.h"
#include "moe_few_product.h"
#include "moe_product.h"

namespace llm_decoder {
namespace gpu {
namespace {

constexpr char kPlace[] = "grouped_product";

int n_blocks(const GroupedProductArgs& args, int columns) {
  const std::int64_t n = args.max_tiles * ceil_div(args.n, columns);
  check_arg(n <= std::numeric_limits<int>::max(), kPlace, "at most 2^31 - 1 blocks can be launched, got ", n,
            "; pass fewer rows at once");
  return static_cast<int>(n);
}

template <class Tile>
void run_tile(const GroupedProductArgs& args, Stream stream) {
  launch<grouped_product_kernel<Tile>>(
      stream, {{n_blocks(args, Tile::kColumns), 1, 1}, Tile::kThreads, Tile::kSharedBytes}, args);
}

template <class T, class W, bool is_gated, int aligned_bytes>
void run_few(const GroupedProductArgs& args, Stream stream) {
  constexpr int kColumns = FewProductBlock<T, W, is_gated, aligned_bytes>::kColumns;
  launch<few_product_kernel<T, W, is_gated, aligned_bytes>>(
      stream, {{n_blocks(args, kColumns), 1, 1}, kFewThreads, kFewSharedBytes}, args);
}

template <class T, class W, bool is_gated>
void run(const GroupedProductLaunch& l, Stream stream) {
  switch (l.tile_rows) {
    case kFewRows:
      if (sizeof(W) == 1 && l.args.k % 16 != 0) return run_few<T, Int8, is_gated, 8>(l.args, stream);
      return run_few<T, W, is_gated, 16>(l.args, stream);
    case 32:
      return run_tile<ProductTile<T, W, is_gated, 32, 1, 4>>(l.args, stream);
    case 64:
      return run_tile<ProductTile<T, W, is_gated, 64, 2, 2>>(l.args, stream);
    default:
      return run_tile<ProductTile<T, W, is_gated, 128, 2, 2>>(l.args, stream);
  }
}

bool is_aligned(const void* pointer) { return reinterpret_cast<std::uintptr_t>(pointer) % 16 == 0; }

}  // namespace

int choose_tile_rows(std::int64_t n_rows, int n_experts) {
  // Where the average is low, an expert in a few has more than a tile holds; reading its weights again is cheaper than
  // wider tiles for all.
  const std::int64_t average = ceil_div(n_rows, n_experts);
  if (average <= 4) return 8;
  if (average <= 24) return 32;
  return average <= 96 ? 64 : 128;
}

void check_product(const GroupedProductLaunch& l) {
  const GroupedProductArgs& a = l.args;
  check_arg(l.dtype == Dtype::bf16 || l.dtype == Dtype::f16, kPlace, "rows must be bfloat16 or float16, got ",
            dtype_name(l.dtype));
  check_arg(
      std::find(std::begin(kProductTileRows), std::end(kProductTileRows), l.tile_rows) != std::end(kProductTileRows),
      kPlace, "tile_rows must be 8, 32, 64 or 128, got ", l.tile_rows);
  check_arg(a.n > 0 && a.n % 8 == 0, kPlace, "n must be a positive multiple of 8, got ", a.n);
  check_arg(a.k > 0 && a.k % 8 == 0, kPlace, "k must be a positive multiple of 8, got ", a.k);
  check_arg(a.a_stride % 8 == 0 && a.out_stride % 8 == 0, kPlace,
            "rows of a and out must be multiples of 8 elements apart, got ", a.a_stride, " and ", a.out_stride);
  check_arg(is_aligned(a.a) && is_aligned(a.w) && is_aligned(a.out), kPlace,
            "a, w and out must be aligned to 16 bytes");
  check_arg(l.weight_dtype == l.dtype || l.weight_dtype == Dtype::s8, kPlace, "weights must be ", dtype_name(l.dtype),
            " like the rows, or int8, got ", dtype_name(l.weight_dtype));
  check_arg(l.weight_dtype != Dtype::s8 || a.w_scale != nullptr, kPlace,
            "int8 weights need scales, float32, one a row of weights");
  check_arg((a.bias == nullptr && !a.out_is_float) || (a.tiles == nullptr && a.pairs.ids == nullptr && !l.is_gated),
            kPlace, "a bias and a float32 out are of dense products that are not gated; leave them out");
}

void grouped_product(const GroupedProductLaunch& l, Stream stream) {
  check_product(l);
  if (l.args.max_tiles == 0) return;
  with_half(l.dtype, kPlace, "rows", [&](auto tag) {
    using T = typename decltype(tag)::type;
    if (l.weight_dtype == Dtype::s8) {
      return l.is_gated ? run<T, Int8, true>(l, stream) : run<T, Int8, false>(l, stream);
    }
    l.is_gated ? run<T, T, true>(l, stream) : run<T, T, false>(l, stream);
  });
}

void dense_product(GroupedProductLaunch l, Stream stream) {
  check_arg(l.args.n_rows >= 0, "dense_product", "n_rows must not be negative, got ", l.args.n_rows);
  l.args.tiles = nullptr;
  l.args.pairs = {};
  if (l.tile_rows == 0) l.tile_rows = l.args.n_rows <= kFewRows ? kFewRows : choose_tile_rows(l.args.n_rows, 1);
  l.args.max_tiles = static_cast<int>(ceil_div(l.args.n_rows, l.tile_rows));
  grouped_product(l, stream);
}

}  // namespace gpu
}  // namespace llm_decoder
