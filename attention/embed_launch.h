// Rows of an embedding table.
#pragma once

#include "row_tensor.h"

namespace llm_decoder {
namespace gpu {

struct EmbedLaunch {
  // [vocab_size, n_cols] of bfloat16, float16, float32, or of int8 with a scale a row.
  RowTensor table;
  const float* scale = nullptr;       // [vocab_size], of int8
  const std::int32_t* ids = nullptr;  // [n_rows]; the caller checks that they are in [0, vocab_size), others give zeros
  OutRowTensor out;                   // [n_rows, n_cols], float32 or the type of the table
  std::int64_t n_rows = 0;
  int vocab_size = 0, n_cols = 0;
};

// Throws std::invalid_argument for what no kernel was compiled for, and says what is.
void embed(const EmbedLaunch& launch, Stream stream);

}  // namespace gpu
}  // namespace llm_decoder
