// Activations of the feed-forward layer: of rows [gate, up] activation(gate) * up, of others activation(x).
//
// Bytes bound it. Without quantisation a thread has eight elements, and rows are spread over blocks, so that one row
// fills many multiprocessors; with it a block holds its row, as the scale wants all of it.
#pragma once

#include "activation.h"
#include "quantize_row.h"

namespace llm_decoder {
namespace gpu {

struct GatedArgs {
  RowArray x;  // [n_rows, 2 n_cols], gate first, or [n_rows, n_cols]
  bool is_gated = true;
  Activation activation = Activation::silu;
  OutRowArray out;  // [n_rows, n_cols], may be those of x; null data where the result is quantised
  QuantizedRows quantized;
  std::int64_t n_rows = 0;
  int n_cols = 0;
  RowArray up;  // x from column n_cols on
};

template <class H>
GPU_FUNCTION void activate_eight(const GatedArgs& args, std::int64_t row, int i, float (&x)[kEight]) {
  const RawEight raw_gate = load_eight(args.x, row, i, args.n_cols);
  const RawEight raw_up = args.is_gated ? load_eight(args.up, row, i, args.n_cols) : RawEight{};
  to_floats<H>(raw_gate, args.x.is_float, x);
  GPU_UNROLL
  for (int k = 0; k < kEight; ++k) x[k] = activate(x[k], args.activation);
  if (args.is_gated) {
    float up[kEight];
    to_floats<H>(raw_up, args.up.is_float, up);
    GPU_UNROLL
    for (int k = 0; k < kEight; ++k) x[k] *= up[k];
  }
}

constexpr int kGatedThreads = 256;

// grid {n_rows, ceil(n_cols / (8 * kGatedThreads))}
template <class H>
GPU_KERNEL gated_rows_kernel(const GatedArgs args) {
  const int i = (block_index().y * kGatedThreads + thread_index()) * kEight;
  if (i >= args.n_cols) return;
  float x[kEight];
  activate_eight<H>(args, block_index().x, i, x);
  store_eight<H>(args.out, block_index().x, i, args.n_cols, x);
}

// Grid: held_row_shape.
template <class H>
GPU_KERNEL gated_quantized_rows_kernel(const GatedArgs args) {
  const HeldRow held(args.n_cols);
  if (held.row() >= args.n_rows) return;  // a whole warp, of a block where warps are by themselves
  held.for_each_eight([&](int i) {
    float x[kEight];
    activate_eight<H>(args, held.row(), i, x);
    held.store(i, x);
  });
  quantize_held_row(held, args.n_cols, args.quantized);
}

}  // namespace gpu
}  // namespace llm_decoder
