// What stands for libcublasLt where there is no device: its functions as NVIDIA documents them, in plain loops over
// columns, and as strict as it is about what it is given. Built into a library that dense_gemm_cublaslt.cpp loads.
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>

#include "elements.h"

#define DOUBLE_API extern "C" __attribute__((visibility("default")))

namespace {

using namespace llm_decoder;
using namespace llm_decoder::gpu;

constexpr int kSuccess = 0, kInvalidValue = 7, kExecutionFailed = 13, kNotSupported = 15;
constexpr std::uint64_t kMagic = 0x6c65737462657374u;

struct Description {
  int compute_type, scale_type;
  std::map<int, std::uint64_t> attributes;

  std::uint64_t get(int attribute, std::uint64_t usual) const {
    const auto found = attributes.find(attribute);
    return found == attributes.end() ? usual : found->second;
  }
};
struct Matrix {
  int type;
  std::uint64_t n_rows, n_columns;
  std::int64_t stride;

  float load(const void* data, std::int64_t i) const {
    if (type == 0) return static_cast<const float*>(data)[i];
    const std::uint16_t bits = static_cast<const std::uint16_t*>(data)[i];
    return type == 14 ? to_float(Bf16{bits}) : to_float(Fp16{bits});
  }
  void store(void* data, std::int64_t i, float x) const {
    if (type == 0) {
      static_cast<float*>(data)[i] = x;
    } else {
      static_cast<std::uint16_t*>(data)[i] = type == 14 ? from_float<Bf16>(x).bits : from_float<Fp16>(x).bits;
    }
  }
};
struct Algorithm {
  std::uint64_t data[8];
};
struct Heuristic {
  Algorithm algorithm;
  std::size_t workspace_bytes;
  int status;
  float n_waves;
  int reserved[4];
};

int set_attribute(void* object, int attribute, const void* value, std::size_t n_bytes) {
  if (n_bytes > sizeof(std::uint64_t)) return kInvalidValue;
  std::uint64_t bits = 0;
  std::memcpy(&bits, value, n_bytes);
  static_cast<Description*>(object)->attributes[attribute] = bits;
  return kSuccess;
}

}  // namespace

DOUBLE_API int cublasLtCreate(void** handle) {
  *handle = new int;
  return kSuccess;
}
DOUBLE_API int cublasLtDestroy(void* handle) {
  delete static_cast<int*>(handle);
  return kSuccess;
}
DOUBLE_API const char* cublasLtGetStatusString(int status) {
  if (status == kExecutionFailed) return "CUBLAS_STATUS_EXECUTION_FAILED";
  return status == kInvalidValue ? "CUBLAS_STATUS_INVALID_VALUE" : "CUBLAS_STATUS_NOT_SUPPORTED";
}

DOUBLE_API int cublasLtMatmulDescCreate(void** description, int compute_type, int scale_type) {
  *description = new Description{compute_type, scale_type, {}};
  return kSuccess;
}
DOUBLE_API int cublasLtMatmulDescDestroy(void* description) {
  delete static_cast<Description*>(description);
  return kSuccess;
}
DOUBLE_API int cublasLtMatmulDescSetAttribute(void* description, int attribute, const void* value,
                                              std::size_t n_bytes) {
  return set_attribute(description, attribute, value, n_bytes);
}

DOUBLE_API int cublasLtMatrixLayoutCreate(void** layout, int type, std::uint64_t n_rows, std::uint64_t n_columns,
                                          std::int64_t stride) {
  if (stride < static_cast<std::int64_t>(n_rows)) return kInvalidValue;
  *layout = new Matrix{type, n_rows, n_columns, stride};
  return kSuccess;
}
DOUBLE_API int cublasLtMatrixLayoutDestroy(void* layout) {
  delete static_cast<Matrix*>(layout);
  return kSuccess;
}

DOUBLE_API int cublasLtMatmulPreferenceCreate(void** preference) {
  *preference = new Description{};
  return kSuccess;
}
DOUBLE_API int cublasLtMatmulPreferenceDestroy(void* preference) {
  delete static_cast<Description*>(preference);
  return kSuccess;
}
DOUBLE_API int cublasLtMatmulPreferenceSetAttribute(void* preference, int attribute, const void* value,
                                                    std::size_t n_bytes) {
  return set_attribute(preference, attribute, value, n_bytes);
}

// It knows nothing for products of 13 rows.
DOUBLE_API int cublasLtMatmulAlgoGetHeuristic(void*, void*, void*, void* b, void*, void*, void* preference,
                                              int n_wanted, Heuristic* results, int* n_found) {
  const auto& wishes = *static_cast<Description*>(preference);
  *n_found = 0;
  if (n_wanted < 1 || wishes.get(1, 0) == 0) return kInvalidValue;
  for (int attribute = 5; attribute <= 8; ++attribute) {
    if (wishes.get(attribute, 256) != 16) return kInvalidValue;
  }
  if (static_cast<Matrix*>(b)->n_columns == 13) return kSuccess;
  results[0] = {{{kMagic}}, 1 << 20, kSuccess, 1.0f, {}};
  *n_found = 1;
  return kSuccess;
}

// D = alpha op(A) op(B) + beta C + bias, matrices by columns. The device fails at products of 14 rows.
DOUBLE_API int cublasLtMatmul(void*, void* description, const void* alpha, const void* a, void* a_layout, const void* b,
                              void* b_layout, const void* beta, const void*, void*, void* d, void* d_layout,
                              const Algorithm* algorithm, void* workspace, std::size_t workspace_bytes, void*) {
  const auto& how = *static_cast<Description*>(description);
  const auto &of_a = *static_cast<Matrix*>(a_layout), &of_b = *static_cast<Matrix*>(b_layout),
             &of_d = *static_cast<Matrix*>(d_layout);
  const bool turns_a = how.get(3, 0) == 1, turns_b = how.get(4, 0) == 1;
  const std::uint64_t k = turns_a ? of_a.n_rows : of_a.n_columns;
  if (how.compute_type != 68 || how.scale_type != 0 || algorithm->data[0] != kMagic) return kInvalidValue;
  if ((turns_a ? of_a.n_columns : of_a.n_rows) != of_d.n_rows || (turns_b ? of_b.n_columns : of_b.n_rows) != k ||
      (turns_b ? of_b.n_rows : of_b.n_columns) != of_d.n_columns) {
    return kInvalidValue;
  }
  if (of_b.n_columns == 14) return kExecutionFailed;
  if (of_a.type != of_b.type || (of_d.type != of_a.type && of_d.type != 0)) return kNotSupported;
  if (workspace == nullptr || workspace_bytes < 1 << 20) return kInvalidValue;
  const std::uint64_t epilogue = how.get(7, 1);
  const auto* const bias = reinterpret_cast<const void*>(how.get(8, 0));
  if (epilogue != 1 && (epilogue != 4 || bias == nullptr)) return kNotSupported;
  if (*static_cast<const float*>(beta) != 0.0f) return kNotSupported;
  for (std::int64_t column = 0; column < static_cast<std::int64_t>(of_d.n_columns); ++column) {
    for (std::int64_t row = 0; row < static_cast<std::int64_t>(of_d.n_rows); ++row) {
      float sum = 0.0f;
      for (std::int64_t i = 0; i < static_cast<std::int64_t>(k); ++i) {
        const float left = of_a.load(a, turns_a ? row * of_a.stride + i : i * of_a.stride + row);
        sum += left * of_b.load(b, turns_b ? i * of_b.stride + column : column * of_b.stride + i);
      }
      sum *= *static_cast<const float*>(alpha);
      if (epilogue == 4) sum += of_d.load(bias, row);
      of_d.store(d, column * of_d.stride + row, sum);
    }
  }
  return kSuccess;
}
