#include "products.h"

#include <algorithm>

namespace llm_decoder {
namespace {

// The rows of an item stay in the L2 cache while its panels pass, so do panels of this size while the rows pass.
constexpr std::int64_t kOperandBytes = 512 << 10;
constexpr std::int64_t kItemBytes = 384 << 10;
constexpr std::int64_t kMinItemPanels = 8;  // for which the rows are copied once
// Enough items that a thread which the machine has held up finds its work done by the others.
constexpr std::int64_t kMinItemsPerThread = 2;
// The kernels take this many panels at a time; an item of another number of them leaves some to be taken alone.
constexpr std::int64_t kFewRows = 28;
constexpr std::int64_t kPanelsAtOnceOfFewRows = 4;
constexpr std::int64_t kPanelsAtOnce = 2;

// Items in the order of the weights in memory, and again for the next rows.
struct Split {
  std::int64_t n_rows, n_panels;
  std::int64_t n_row_blocks, n_panel_blocks;
  std::int64_t panels_at_once;

  std::int64_t n_items() const { return n_row_blocks * n_panel_blocks; }
  std::int64_t row(std::int64_t block) const { return n_rows * block / n_row_blocks; }
  std::int64_t panel(std::int64_t block) const {
    const std::int64_t n_units = ceil_div(n_panels, panels_at_once);
    return std::min(n_units * block / n_panel_blocks * panels_at_once, n_panels);
  }
};

Split split_product(const Matrix& w, std::int64_t m, int n_threads) {
  const std::int64_t row_bytes = std::int64_t{w.k} * (is_quantized(w.layout) ? 1 : 4);
  const std::int64_t channel_bytes = w.layout == WeightView::Layout::bf16 ? row_bytes / 2 : row_bytes;
  Split split;
  split.n_rows = m;
  split.n_panels = n_panels(w.n);
  split.panels_at_once = m <= kFewRows ? kPanelsAtOnceOfFewRows : kPanelsAtOnce;
  split.n_row_blocks = ceil_div(m * row_bytes, kOperandBytes);
  const std::int64_t n_units = ceil_div(split.n_panels, split.panels_at_once);
  const std::int64_t panels_of_item = std::max(kItemBytes / (kPanelWidth * channel_bytes), kMinItemPanels);
  const std::int64_t share = ceil_div(split.n_panels, n_threads);
  split.n_panel_blocks = std::min(std::max(kMinItemsPerThread, ceil_div(share, panels_of_item)) * n_threads, n_units);
  return split;
}

template <class Weight>
GemmFloatArgs<Weight> float_args(const Matrix& w, const Operand& in, const Output& out) {
  GemmFloatArgs<Weight> args;
  args.a = in.rows;
  args.a_stride = in.stride;
  args.w = static_cast<const Weight*>(w.data);
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

template <class Weight>
GemmFloatArgs<Weight> rows_from(GemmFloatArgs<Weight> args, std::int64_t row) {
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

// kernel(args, panel_begin, panel_end, thread). A thread's own items are neighbours in memory: what the kernel asks for
// behind one of them is the next of them.
template <class Args, class Kernel>
void run_items(ThreadPool& pool, const Split& split, const Args& args, const Kernel& kernel) {
  pool.parallel_for(split.n_items(), [&](std::int64_t item, int thread) {
    const std::int64_t place = neighbour_of(item, split.n_items(), pool.n_threads());
    const std::int64_t row_block = place / split.n_panel_blocks, panel_block = place % split.n_panel_blocks;
    Args mine = rows_from(args, split.row(row_block));
    mine.m = static_cast<std::int32_t>(split.row(row_block + 1) - split.row(row_block));
    kernel(mine, static_cast<std::int32_t>(split.panel(panel_block)),
           static_cast<std::int32_t>(split.panel(panel_block + 1)), thread);
  });
}

}  // namespace

std::size_t product_scratch_bytes(const CpuKernels& kernels, const Matrix& w) {
  return w.layout == WeightView::Layout::w4 ? kernels.gemm_w4_scratch_bytes(w.k) : 0;
}

void embed_row(const CpuKernels& kernels, const Matrix& table, std::int32_t index, float* out) {
  if (table.layout == WeightView::Layout::w8) {
    kernels.embed_w8(static_cast<const std::uint8_t*>(table.data), table.scales, index, table.k, out);
  } else if (table.layout == WeightView::Layout::bf16) {
    kernels.embed_bf16(static_cast<const Bf16*>(table.data), index, table.k, out);
  } else {
    kernels.embed_f32(static_cast<const float*>(table.data), index, table.k, out);
  }
}

void multiply(const CpuKernels& kernels, ThreadPool& pool, const Matrix& w, const Operand& in, std::int32_t m,
              const Output& out, const ProductScratch& scratch) {
  const Split split = split_product(w, m, pool.n_threads());
  if (w.layout == WeightView::Layout::f32) {
    run_items(pool, split, float_args<float>(w, in, out),
              [&](const GemmF32Args& args, std::int32_t begin, std::int32_t end, int) {
                kernels.gemm_f32(args, begin, end);
              });
  } else if (w.layout == WeightView::Layout::bf16) {
    run_items(pool, split, float_args<Bf16>(w, in, out),
              [&](const GemmBf16Args& args, std::int32_t begin, std::int32_t end, int) {
                kernels.gemm_bf16(args, begin, end);
              });
  } else if (w.layout == WeightView::Layout::w8) {
    run_items(pool, split, w8_args(w, in, out), [&](const GemmW8Args& args, std::int32_t begin, std::int32_t end, int) {
      kernels.gemm_w8(args, begin, end);
    });
  } else {
    run_items(pool, split, w8_args(w, in, out),
              [&](const GemmW8Args& args, std::int32_t begin, std::int32_t end, int thread) {
                kernels.gemm_w4(args, begin, end, scratch.of(thread));
              });
  }
}

}  // namespace llm_decoder
