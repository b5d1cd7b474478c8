// llm_decoder.ops on the CPU: norms and activations of rows, rows of a table.
#pragma once

#include "op_rows.h"

namespace llm_decoder {

// Where a result goes: as it is, or as int8 with a scale a row.
struct RowResult {
  OpRows out;              // or null data
  OpRows quantized;        // int8, or null data
  float* scale = nullptr;  // [n_rows], of quantized
};

struct NormCall {
  OpRows x;             // [n_rows, n_cols]
  OpRows residual;      // the same shape or null data: x is added to it, and what it holds then is normed
  OpRows weight, bias;  // [1, n_cols]; of bias null data: none
  RowResult result;
  float eps = 0.0f;
};

// v / sqrt(mean(v^2) + eps) * weight + bias
void rms_norm_op(const NormCall& call, const CpuKernels& kernels, ThreadPool& pool);
// (v - mean(v)) / sqrt(variance(v) + eps) * weight + bias
void layer_norm_op(const NormCall& call, const CpuKernels& kernels, ThreadPool& pool);

struct GatedCall {
  OpRows x;              // [n_rows, 2 n_cols], gate first, or [n_rows, n_cols]
  bool is_gated = true;  // activation(gate) * up, else activation(x)
  Activation activation = Activation::silu;
  RowResult result;  // [n_rows, n_cols]
};

void gated_op(const GatedCall& call, const CpuKernels& kernels, ThreadPool& pool);

// ids: [out.n_rows]. scale: [table.n_rows], of a table of int8, or null. Throws std::invalid_argument for an id outside
// the table.
void embed_op(const OpRows& table, const float* scale, const std::int32_t* ids, const OpRows& out, ThreadPool& pool);

}  // namespace llm_decoder
