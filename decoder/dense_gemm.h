// Dense products of many rows on a device: the seam to whoever does them best. Ours (dense_product) goes wherever the
// kernels go; cuBLASLt is loaded at run time where a device is.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "row_tensor.h"

namespace llm_decoder {
namespace gpu {

// out[m, n] = a[m, k] w[n, k]^T + bias[n]
struct GemmLaunch {
  RowTensor a;                 // bf16 or f16, rows aligned to 16 bytes
  const void* w = nullptr;     // of the dtype of a, rows without gaps, aligned to 16 bytes
  const void* bias = nullptr;  // of the dtype of out, aligned to 16 bytes, or null
  OutRowTensor out;            // the dtype of a, or f32; rows aligned to 16 bytes
  int m = 0, n = 0, k = 0;     // k a multiple of 8
};

// For one stream at a time.
class DenseGemm {
 public:
  virtual ~DenseGemm() = default;
  DenseGemm() = default;
  DenseGemm(const DenseGemm&) = delete;
  DenseGemm& operator=(const DenseGemm&) = delete;

  virtual const char* name() const = 0;
  // Whether it makes products of n outputs. Others are made of products of few rows.
  virtual bool takes(int n) const = 0;
  // Of device memory that run is given, aligned to 256 bytes.
  virtual std::int64_t workspace_bytes() const = 0;
  // Throws std::runtime_error with the library's own words where it fails, DeviceLost where the device is gone.
  virtual void run(const GemmLaunch& launch, void* workspace, Stream stream) = 0;
};

std::unique_ptr<DenseGemm> make_our_gemm();
// On devices. Throws as make_gemm does.
std::unique_ptr<DenseGemm> make_cublaslt_gemm(const std::vector<std::string>& libraries);

// The best of this machine: on a device cuBLASLt, on the host machine ours; LLM_DECODER_GEMM=ours or cublaslt chooses
// instead. `libraries`: paths of libcublasLt to try in turn, empty for what the system's loader knows. Throws
// std::invalid_argument for another name, std::runtime_error where cuBLASLt is not to be had, with what to install.
std::unique_ptr<DenseGemm> make_gemm(const std::vector<std::string>& libraries);

}  // namespace gpu
}  // namespace llm_decoder
