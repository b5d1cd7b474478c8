// Rows of packed weights, row-major: a range of them, or by id.
#pragma once

#include "pack_gpu_weights.h"
#include "row_tensor.h"

namespace llm_decoder {
namespace gpu {

struct UnpackWeightsLaunch {
  GpuWeightFormat format = GpuWeightFormat::half;
  Dtype dtype = Dtype::bf16;          // of half weights: bf16, f16
  const std::uint8_t* w = nullptr;    // packed [n, k], aligned to 16 bytes
  const float* scale = nullptr;       // [n], or null for 1
  const std::int32_t* ids = nullptr;  // [n_rows]; what is not in [0, n) gives zeros. Null: rows from `begin` on
  int begin = 0;
  OutRowTensor out;  // [n_rows, k], float32 or 16 bits, of half weights those of dtype
  std::int64_t n_rows = 0;
  int n = 0, k = 0;
};

// Throws std::invalid_argument for what no kernel was compiled for, and says what is.
void unpack_weights(const UnpackWeightsLaunch& launch, Stream stream);

}  // namespace gpu
}  // namespace llm_decoder
