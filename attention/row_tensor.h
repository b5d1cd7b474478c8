// Rows as launchers are given them: a dtype that is known at run time, to what kernels are compiled for.
#pragma once

#include <initializer_list>

#include "dtype_tags.h"
#include "quantize_row.h"

namespace llm_decoder {
namespace gpu {

template <class Data>
struct BasicRowTensor {
  Data* data = nullptr;
  Dtype dtype = Dtype::f32;
  std::int64_t stride = 0;  // elements between rows
};
using RowTensor = BasicRowTensor<const void>;
using OutRowTensor = BasicRowTensor<void>;

template <class Data>
bool rows_are_aligned(const BasicRowTensor<Data>& rows, std::int64_t n_bytes) {
  return reinterpret_cast<std::uintptr_t>(rows.data) % static_cast<std::uintptr_t>(n_bytes) == 0 &&
         rows.stride * element_bytes(rows.dtype) % n_bytes == 0;
}

inline RowArray row_array(const RowTensor& rows) {
  return {rows.data, rows.stride, rows.dtype == Dtype::f32, rows_are_aligned(rows, 16)};
}
inline OutRowArray row_array(const OutRowTensor& rows) {
  return {rows.data, rows.stride, rows.dtype == Dtype::f32, rows_are_aligned(rows, 16)};
}

// int8 rows with a scale each.
struct QuantizedRowTensor {
  std::int8_t* q = nullptr;  // [n_rows, n_cols]
  std::int64_t stride = 0;
  float* scale = nullptr;  // [n_rows]
};

inline bool rows_are_aligned(const std::int8_t* q, std::int64_t stride, std::int64_t n_bytes) {
  return reinterpret_cast<std::uintptr_t>(q) % static_cast<std::uintptr_t>(n_bytes) == 0 && stride % n_bytes == 0;
}

inline QuantizedRows quantized_rows(const QuantizedRowTensor& rows) {
  return {rows.q, rows.stride, rows.scale, rows_are_aligned(rows.q, rows.stride, 8)};
}

// The shape of a launch whose blocks hold rows of n_cols.
inline LaunchShape checked_held_row_shape(std::int64_t n_rows, int n_cols, const char* place) {
  constexpr int kMaxCols = (kMaxSharedBytes - kRowScratchBytes) / 4;
  check_arg(n_cols >= 1 && n_cols <= kMaxCols, place, "n_cols must be 1 to ", kMaxCols, ", got ", n_cols);
  check_arg(n_rows >= 0 && n_rows < std::int64_t{1} << 31, place, "n_rows must be 0 to 2^31 - 1, got ", n_rows);
  return held_row_shape(n_rows, n_cols);
}

struct NamedDtype {
  const char* name;
  Dtype dtype;
};

// Calls fn(Tag<H>{}) with the type of two bytes among the dtypes, which may all be float32.
template <class Fn>
void with_half_among(std::initializer_list<NamedDtype> dtypes, const char* place, const Fn& fn) {
  const NamedDtype* half = nullptr;
  for (const NamedDtype& d : dtypes) {
    check_arg(d.dtype == Dtype::f32 || d.dtype == Dtype::bf16 || d.dtype == Dtype::f16, place, d.name,
              " must be float32, bfloat16 or float16, got ", dtype_name(d.dtype));
    if (d.dtype == Dtype::f32) continue;
    check_arg(half == nullptr || half->dtype == d.dtype, place, d.name, " must be float32 or ",
              dtype_name(half != nullptr ? half->dtype : d.dtype), " like ", half != nullptr ? half->name : d.name,
              ", got ", dtype_name(d.dtype));
    half = &d;
  }
  with_half(half != nullptr ? half->dtype : Dtype::bf16, place, "rows", fn);
}

}  // namespace gpu
}  // namespace llm_decoder
