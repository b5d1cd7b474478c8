// Activations of rows. x and out are float32 or of the model's type, bfloat16 or float16.
#pragma once

#include "gated.h"
#include "row_tensor.h"

namespace llm_decoder {
namespace gpu {

struct GatedLaunch {
  RowTensor x;           // [n_rows, 2 n_cols], gate first, or [n_rows, n_cols]
  bool is_gated = true;  // out = activation(gate) * up, else activation(x)
  Activation activation = Activation::silu;
  // One of them, [n_rows, n_cols]: where the result goes as it is, or as int8. out may be the first columns of x.
  OutRowTensor out;
  QuantizedRowTensor quantized;
  std::int64_t n_rows = 0;
  int n_cols = 0;
};

// Throws std::invalid_argument for what no kernel was compiled for, and says what is.
void gated(const GatedLaunch& launch, Stream stream);

}  // namespace gpu
}  // namespace llm_decoder
