// Rows that ops on the CPU go over: of any dtype, at any distance, some of them at a time on each thread.
#pragma once

#include <algorithm>
#include <cstdint>

#include "llm_decoder/cpu_kernels.h"
#include "llm_decoder/parallel.h"

namespace llm_decoder {

struct OpRows {
  Dtype dtype = Dtype::f32;
  std::byte* data = nullptr;  // [n_rows, n_cols]; null: none
  std::int64_t stride_bytes = 0;
  std::int64_t n_rows = 0;
  std::int32_t n_cols = 0;

  std::byte* row(std::int64_t i) const { return data + i * stride_bytes; }
  void read(std::int64_t i, float* to) const { widen_row(dtype, row(i), n_cols, to); }
  void write(std::int64_t i, const float* from) const { narrow_row(dtype, from, n_cols, 1.0f, row(i)); }
};

// fn(row, thread) for each of n rows.
template <class Fn>
void for_rows(ThreadPool& pool, std::int64_t n, const Fn& fn) {
  constexpr std::int64_t kRows = 16;
  pool.parallel_for(ceil_div(n, kRows), [&](std::int64_t item, int thread) {
    const std::int64_t end = std::min((item + 1) * kRows, n);
    for (std::int64_t row = item * kRows; row < end; ++row) fn(row, thread);
  });
}

}  // namespace llm_decoder
