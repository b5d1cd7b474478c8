// y = x w^T + bias for any number of rows x, with weights that a device holds once, packed (pack_gpu_weights.h). Few
// rows read them as they lie; for more they are unpacked a slice at a time, and a dense product is made with each
// slice.
#pragma once

#include <cstdint>
#include <memory>

#include "dense_gemm.h"
#include "device_memory.h"
#include "llm_decoder/types.h"
#include "row_tensor.h"
#include "small_product_launch.h"

namespace llm_decoder {
namespace gpu {

// Products of at most so many rows read the packed weights: to be tuned on devices.
constexpr int kFewProductRows = kMaxSmallProductRows;

struct GpuProductsOptions {
  // 1 << 30: every product is one of few rows, 64 at a time, and a row's result never depends on the others.
  int few_rows = kFewProductRows;
  std::int64_t slice_bytes =
      64 << 20;  // of unpacked weights, at least 64 rows: what a dense product is made of at once
};

// Weights [n, k] on the host, as load is given them.
struct GpuMatrixSource {
  GpuWeightFormat format = GpuWeightFormat::half;  // half: bits of the dtype of GpuProducts
  int n = 0, k = 0;                                // k a multiple of 8
  Span<const std::uint8_t> packed;                 // packed_gpu_bytes
  Span<const float> scale;                         // [n], but for half
  Span<const float> bias;                          // [n], or empty
};

// The same on the device.
struct GpuMatrix {
  GpuWeightFormat format = GpuWeightFormat::half;
  int n = 0, k = 0;
  DeviceArray<std::uint8_t> packed;
  DeviceArray<float> scale;              // [n], or empty
  DeviceArray<float> bias;               // [n], or empty
  DeviceArray<std::uint16_t> half_bias;  // the same in 16 bits, for dense products
  SmallProductPlan plan;

  std::int64_t n_bytes() const;
};

// All products of a decoder: on one stream, with the scratch that they share. load all, finalize, then the rest.
class GpuProducts {
 public:
  // dtype: of rows, bf16 or f16.
  GpuProducts(Dtype dtype, std::unique_ptr<DenseGemm> gemm, Stream stream, const GpuProductsOptions& options = {});

  // Copied when it returns. Throws std::invalid_argument for sizes that contradict each other, with `name` as the
  // place, OutOfMemory.
  GpuMatrix load(const char* name, const GpuMatrixSource& source);

  // Puts another bias [n] in the place of the one that w came with. Copied when it returns.
  void set_bias(GpuMatrix& w, Span<const float> bias);

  // Scratch for products of at most max_rows with every matrix loaded so far. Throws OutOfMemory.
  void finalize(int max_rows);
  std::int64_t scratch_bytes() const;

  // out[m, n] = a[m, k] w^T + bias. a: rows of dtype, aligned to 16 bytes; out: of dtype or float32, rows aligned to 16
  // bytes where n is a multiple of 8. Throws std::invalid_argument for what no kernel takes.
  void multiply(const GpuMatrix& w, const RowTensor& a, const OutRowTensor& out, int m);

  // rows[m, w.n / 2] = silu(gate) * up, [gate, up] = a w^T + bias. rows: of dtype, aligned to 16 bytes, w.n columns of
  // which those past w.n / 2 are scratch; none of them may be those of a. Few rows take one kernel where
  // takes_gated_outputs(w.n); gate and up are rounded to dtype either way. Throws std::invalid_argument as multiply.
  void multiply_gated(const GpuMatrix& w, const RowTensor& a, const OutRowTensor& rows, int m);

  // out[n_rows, k] = rows ids[i] of w, scaled: an embedding. ids: on the device, int32 [n_rows]; one that is not in
  // [0, n) gives zeros. out: of dtype or float32.
  void embed(const GpuMatrix& w, const std::int32_t* ids, std::int64_t n_rows, const OutRowTensor& out);

  const DenseGemm& gemm() const { return *gemm_; }

 private:
  void check_rows(const char* place, const RowTensor& a, int m) const;
  bool are_few(const GpuMatrix& w, int m) const { return m <= options_.few_rows || !gemm_->takes(w.n); }
  void multiply_few(const GpuMatrix& w, const RowTensor& a, const OutRowTensor& out, int m, bool is_gated);
  void multiply_many(const GpuMatrix& w, const RowTensor& a, const OutRowTensor& out, int m);
  int slice_rows(int n, int k) const;

  const Dtype dtype_;
  const std::unique_ptr<DenseGemm> gemm_;
  const Stream stream_;
  const GpuProductsOptions options_;
  const int n_multiprocessors_;

  // What the matrices loaded so far need.
  std::int64_t n_partials_ = 0, n_counters_ = 0, n_slice_ = 0;

  int max_rows_ = 0;
  DeviceArray<float> partials_;
  DeviceArray<int> counters_;
  DeviceArray<std::uint16_t> slice_;  // unpacked rows of a matrix
  DeviceArray<std::uint8_t> workspace_;
};

}  // namespace gpu
}  // namespace llm_decoder
