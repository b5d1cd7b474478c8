// Norms of rows. Any array is float32 or of the model's type, bfloat16 or float16.
#pragma once

#include "row_tensor.h"

namespace llm_decoder {
namespace gpu {

struct NormLaunch {
  RowTensor x;            // [n_rows, n_cols]
  OutRowTensor residual;  // the same shape or null data: x is added to it, and what it holds then is normed
  RowTensor weight;       // [n_cols]
  RowTensor bias;         // [n_cols] or null data
  // One of them: where the result goes as it is, or as int8.
  OutRowTensor out;
  QuantizedRowTensor quantized;
  std::int64_t n_rows = 0;
  int n_cols = 0;
  float eps = 0.0f;
};

// Both throw std::invalid_argument for what no kernel was compiled for, and say what is.
// out = v / sqrt(mean(v^2) + eps) * weight + bias
void rms_norm(const NormLaunch& launch, Stream stream);
// out = (v - mean(v)) / sqrt(variance(v) + eps) * weight + bias
void layer_norm(const NormLaunch& launch, Stream stream);

}  // namespace gpu
}  // namespace llm_decoder
