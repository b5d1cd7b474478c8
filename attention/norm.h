// RMS norm (Zhang and Sennrich 2019) and layer norm of rows, with what stands around them in a layer: x is added to the
// residual first, and the result may be quantised for the product that follows.
//
// Bytes bound it: a row is read and written once, in 16-byte words, and lies in shared memory in between. A row of 4096
// has 512 threads with one word of each array on its way, which keeps a multiprocessor's share of memory busy with two
// blocks; a single row of RMS norm is over after one trip to memory and two barriers, for its weights are met on the
// way in: (x weight) factor, not (x factor) weight.
#pragma once

#include "quantize_row.h"

namespace llm_decoder {
namespace gpu {

struct NormArgs {
  RowArray x;             // [n_rows, n_cols]
  OutRowArray residual;   // the same shape, or null data
  RowArray weight, bias;  // [n_cols]; of bias null data: none
  OutRowArray out;        // [n_rows, n_cols]; null data where the result is quantised
  QuantizedRows quantized;
  std::int64_t n_rows = 0;
  int n_cols = 0;
  float eps = 0.0f;
};

// residual += x, then out = normalised residual * weight + bias; of x itself without a residual. Grid: held_row_shape.
template <class H, bool subtracts_mean>
GPU_KERNEL norm_rows_kernel(const NormArgs args) {
  const int n = args.n_cols;
  const HeldRow held(n);
  const std::int64_t row = held.row();
  if (row >= args.n_rows) return;  // a whole warp, of a block where warps are by themselves
  const bool has_residual = args.residual.data != nullptr;
  const RowArray residual{args.residual.data, args.residual.stride, args.residual.is_float, args.residual.is_aligned};
  float sum = 0.0f;  // of the values, or of their squares
  held.for_each_eight([&](int i) {
    const RawEight raw_x = load_eight(args.x, row, i, n);
    const RawEight raw_residual = has_residual ? load_eight(residual, row, i, n) : RawEight{};
    const RawEight raw_weight = subtracts_mean ? RawEight{} : load_eight(args.weight, 0, i, n);
    float x[kEight];
    to_floats<H>(raw_x, args.x.is_float, x);
    if (has_residual) {
      float before[kEight];
      to_floats<H>(raw_residual, residual.is_float, before);
      GPU_UNROLL
      for (int k = 0; k < kEight; ++k) x[k] += before[k];
      store_eight<H>(args.residual, row, i, n, x);
      round_eight<H>(residual.is_float, x);
    }
    if constexpr (subtracts_mean) {
      GPU_UNROLL
      for (int k = 0; k < kEight; ++k) sum += x[k];
    } else {
      float weight[kEight];
      to_floats<H>(raw_weight, args.weight.is_float, weight);
      GPU_UNROLL
      for (int k = 0; k < kEight; ++k) {
        sum = fma(x[k], x[k], sum);
        x[k] *= weight[k];
      }
    }
    held.store(i, x);
  });
  const auto n_floats = static_cast<float>(n);
  float mean = 0.0f;
  if constexpr (subtracts_mean) {
    mean = held.sum(sum) / n_floats;
    sum = 0.0f;
    held.for_each_eight([&](int i) {
      float x[kEight];
      held.load(i, x);
      GPU_UNROLL
      for (int k = 0; k < kEight; ++k) {
        if (i + k < n) sum = fma(x[k] - mean, x[k] - mean, sum);
      }
    });
  }
  const float factor = rsqrt(held.sum(sum) / n_floats + args.eps);
  const bool is_quantized = args.quantized.q != nullptr, has_bias = args.bias.data != nullptr;
  held.for_each_eight([&](int i) {
    const RawEight raw_weight = subtracts_mean ? load_eight(args.weight, 0, i, n) : RawEight{};
    const RawEight raw_bias = has_bias ? load_eight(args.bias, 0, i, n) : RawEight{};
    float x[kEight];
    held.load(i, x);
    if constexpr (subtracts_mean) {
      float weight[kEight];
      to_floats<H>(raw_weight, args.weight.is_float, weight);
      GPU_UNROLL
      for (int k = 0; k < kEight; ++k) x[k] = (x[k] - mean) * weight[k];
    }
    float bias[kEight] = {};
    if (has_bias) to_floats<H>(raw_bias, args.bias.is_float, bias);
    GPU_UNROLL
    for (int k = 0; k < kEight; ++k) x[k] = fma(x[k], factor, bias[k]);
    if (is_quantized) {
      held.store(i, x);
    } else {
      store_eight<H>(args.out, row, i, n, x);
    }
  });
  if (is_quantized) quantize_held_row(held, n, args.quantized);
}

}  // namespace gpu
}  // namespace llm_decoder
