#include "products.h"

#include <algorithm>

namespace llm_decoder {
namespace {

// With few rows a product is a walk over the weights: items of this many bytes are long enough to stream and short
// enough that no thread waits long for the last one.
constexpr std::int64_t kFewRows = 8;
constexpr std::int64_t kStreamedBytes = 96 << 10;
// W4 wants longer items: its kernel asks for the item's next panels while it reads these.
constexpr std::int64_t kStreamedW4Bytes = 256 << 10;
constexpr std::int64_t kMinItemsPerThread = 4;
// With many rows, rows and panels of an item stay in the L2 cache together.
constexpr std::int64_t kManyRowsItemPanels = 12;
constexpr std::int64_t kOperandBytes = 1 << 20;
// The kernels take this many panels at a time; an item of another number of them leaves some to be taken alone.
constexpr std::int64_t kPanelsAtOnce = 4;

struct Split {
  std::int32_t rows_of_item, panels_of_item;
  std::int64_t n_row_blocks, n_panel_blocks;
};

std::int64_t evenly(std::int64_t n, std::int64_t n_parts) { return ceil_div(n, std::max<std::int64_t>(1, n_parts)); }

Split split_panels(std::int64_t m, std::int64_t n, std::int64_t n_items) {
  const std::int64_t panels = n_panels(n);
  std::int64_t per_item = evenly(panels, std::clamp<std::int64_t>(n_items, 1, panels));
  if (per_item > kPanelsAtOnce) per_item = per_item / kPanelsAtOnce * kPanelsAtOnce;
  return {static_cast<std::int32_t>(m), static_cast<std::int32_t>(per_item), 1, ceil_div(panels, per_item)};
}

Split split_rows_and_panels(std::int64_t m, std::int64_t n, std::int64_t row_bytes, int n_threads) {
  const std::int64_t rows = evenly(m, ceil_div(m * row_bytes, kOperandBytes));
  const std::int64_t n_items = std::max(ceil_div(n_panels(n), kManyRowsItemPanels), kMinItemsPerThread * n_threads);
  Split split = split_panels(rows, n, n_items);
  split.n_row_blocks = ceil_div(m, rows);
  return split;
}

std::int64_t packed_bytes(const Matrix& w) {
  switch (w.layout) {
    case WeightView::Layout::w4:
      return packed_w4_bytes(w.n, w.k);
    case WeightView::Layout::w8:
      return packed_w8_bytes(w.n, w.k);
    default:
      return packed_f32_bytes(w.n, w.k);
  }
}

Split split_product(const Matrix& w, std::int64_t m, int n_threads) {
  const std::int64_t operand_bytes = is_quantized(w.layout) ? 1 : 4;
  if (m > kFewRows) return split_rows_and_panels(m, w.n, w.k * operand_bytes, n_threads);
  const bool is_w4 = w.layout == WeightView::Layout::w4;
  const std::int64_t n_streams = packed_bytes(w) / (is_w4 ? kStreamedW4Bytes : kStreamedBytes);
  return split_panels(m, w.n, n_threads == 1 ? 1 : std::max(n_streams, kMinItemsPerThread * n_threads));
}

GemmF32Args f32_args(const Matrix& w, const Operand& in, const Output& out) {
  GemmF32Args args;
  args.a = in.rows;
  args.a_stride = in.stride;
  args.w = static_cast<const float*>(w.data);
  args.bias = w.bias;
  args.out = out.rows;
  args.out_stride = out.stride;
  args.n = w.n;
  args.k = w.k;
  args.accumulate = out.accumulate;
  return args;
}

GemmW8Args w8_args(const Matrix& w, const Operand& in, const Output& out) {
  GemmW8Args args;
  args.a = in.quantized.q;
  args.a_stride = in.quantized.q_stride;
  args.a_scale = in.quantized.scale;
  args.a_sum = in.quantized.sum;
  args.w = static_cast<const std::uint8_t*>(w.data);
  args.w_scale = w.scales;
  args.bias = w.bias;
  args.out = out.rows;
  args.out_stride = out.stride;
  args.n = w.n;
  args.k = w.k;
  args.accumulate = out.accumulate;
  return args;
}

GemmF32Args rows_from(GemmF32Args args, std::int64_t row) {
  args.a += row * args.a_stride;
  args.out += row * args.out_stride;
  return args;
}

GemmW8Args rows_from(GemmW8Args args, std::int64_t row) {
  args.a += row * args.a_stride;
  args.a_scale += row;
  args.a_sum += row;
  args.out += row * args.out_stride;
  return args;
}

// Items of one row block follow each other, so that its rows stay in the cache. kernel(args, panel_begin, panel_end,
// thread).
template <class Args, class Kernel>
void run_items(ThreadPool& pool, const Split& split, std::int32_t m, const Args& args, const Kernel& kernel) {
  const std::int64_t panels = n_panels(args.n);
  pool.parallel_for(split.n_row_blocks * split.n_panel_blocks, [&](std::int64_t item, int thread) {
    const std::int64_t row = item / split.n_panel_blocks * split.rows_of_item;
    const std::int64_t panel = item % split.n_panel_blocks * split.panels_of_item;
    Args mine = rows_from(args, row);
    mine.m = static_cast<std::int32_t>(std::min<std::int64_t>(split.rows_of_item, m - row));
    kernel(mine, static_cast<std::int32_t>(panel),
           static_cast<std::int32_t>(std::min(panel + split.panels_of_item, panels)), thread);
  });
}

}  // namespace

std::size_t product_scratch_bytes(const CpuKernels& kernels, const Matrix& w) {
  return w.layout == WeightView::Layout::w4 ? kernels.gemm_w4_scratch_bytes(w.k) : 0;
}

void multiply(const CpuKernels& kernels, ThreadPool& pool, const Matrix& w, const Operand& in, std::int32_t m,
              const Output& out, const ProductScratch& scratch) {
  const Split split = split_product(w, m, pool.n_threads());
  if (w.layout == WeightView::Layout::f32) {
    run_items(pool, split, m, f32_args(w, in, out),
              [&](const GemmF32Args& args, std::int32_t begin, std::int32_t end, int) {
                kernels.gemm_f32(args, begin, end);
              });
  } else if (w.layout == WeightView::Layout::w8) {
    run_items(
        pool, split, m, w8_args(w, in, out),
        [&](const GemmW8Args& args, std::int32_t begin, std::int32_t end, int) { kernels.gemm_w8(args, begin, end); });
  } else {
    run_items(pool, split, m, w8_args(w, in, out),
              [&](const GemmW8Args& args, std::int32_t begin, std::int32_t end, int thread) {
                kernels.gemm_w4(args, begin, end, scratch.of(thread));
              });
  }
}

}  // namespace llm_decoder
