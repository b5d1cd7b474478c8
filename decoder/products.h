// Matrix products of a step over all threads. Panels are split, and rows where there are many; never a sum.
#pragma once

#include <cstddef>
#include <cstdint>

#include "llm_decoder/cpu_kernels.h"
#include "llm_decoder/decoder.h"
#include "llm_decoder/parallel.h"
#include "weight_resolver.h"

namespace llm_decoder {

// What a product reads: rows of float32 or of int8, as the layout of the weights wants.
struct Operand {
  float* rows = nullptr;  // [m, k]
  std::int64_t stride = 0;
  QuantizedRows quantized;  // [m, k_padded]
};

inline QuantizedRows row_of(const QuantizedRows& rows, std::int64_t row) {
  return {rows.q + row * rows.q_stride, rows.q_stride, rows.scale + row, rows.sum + row};
}

struct Output {
  float* rows = nullptr;  // [m, n]
  std::int64_t stride = 0;
  bool accumulate = false;
};

// Scratch of each thread, as the kernels of the weights' layout want it.
struct ProductScratch {
  std::byte* memory = nullptr;
  std::size_t stride = 0;

  std::byte* of(int thread) const { return memory + static_cast<std::size_t>(thread) * stride; }
};

// What a product with `w` takes of it.
std::size_t product_scratch_bytes(const CpuKernels& kernels, const Matrix& w);

// Row `index` of a table that is f32, bf16 or w8. out: [table.k].
void embed_row(const CpuKernels& kernels, const Matrix& table, std::int32_t index, float* out);

// out (+)= in . w^T + bias for m rows.
void multiply(const CpuKernels& kernels, ThreadPool& pool, const Matrix& w, const Operand& in, std::int32_t m,
              const Output& out, const ProductScratch& scratch);

}  // namespace llm_decoder
