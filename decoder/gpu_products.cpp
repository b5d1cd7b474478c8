#include "gpu_products.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "gated_launch.h"
#include "llm_decoder/errors.h"
#include "unpack_weights_launch.h"

namespace llm_decoder {
namespace gpu {
namespace {

template <class T>
DeviceArray<T> on_device(Span<const T> host, Stream stream) {
  DeviceArray<T> array(static_cast<std::int64_t>(host.size));
  if (!host.empty()) copy_memory(array.data(), host.data, array.n_bytes(), stream);
  return array;
}

std::uint16_t half_bits(Dtype dtype, float x) {
  return dtype == Dtype::bf16 ? from_float<Bf16>(x).bits : from_float<Fp16>(x).bits;
}

const void* column_at(const RowTensor& rows, std::int64_t i) {
  return static_cast<const std::byte*>(rows.data) + i * element_bytes(rows.dtype);
}
void* element_at(const OutRowTensor& rows, std::int64_t row, std::int64_t column) {
  return static_cast<std::byte*>(rows.data) + (row * rows.stride + column) * element_bytes(rows.dtype);
}

}  // namespace

std::int64_t GpuMatrix::n_bytes() const {
  return packed.n_bytes() + scale.n_bytes() + bias.n_bytes() + half_bias.n_bytes();
}

GpuProducts::GpuProducts(Dtype dtype, std::unique_ptr<DenseGemm> gemm, Stream stream, const GpuProductsOptions& options)
    : dtype_(dtype),
      gemm_(std::move(gemm)),
      stream_(stream),
      options_(options),
      n_multiprocessors_(device_properties(current_device()).n_sms) {
  check_arg(dtype == Dtype::bf16 || dtype == Dtype::f16, "GpuProducts", "rows must be bfloat16 or float16, got ",
            dtype_name(dtype));
}

// A multiple of a brick's outputs, so that bricks are read whole.
int GpuProducts::slice_rows(int n, int k) const {
  const std::int64_t n_bricks = options_.slice_bytes / (std::int64_t{k} * 2 * kBrickOutputs);
  return static_cast<int>(std::min<std::int64_t>(std::max<std::int64_t>(n_bricks, 1) * kBrickOutputs, n));
}

GpuMatrix GpuProducts::load(const char* name, const GpuMatrixSource& source) {
  const bool is_half = source.format == GpuWeightFormat::half;
  const auto n = static_cast<std::size_t>(std::max(source.n, 0));
  check_arg(source.n > 0 && source.k > 0 && source.k % 8 == 0, name,
            "n must be positive and k a positive multiple of 8, got ", source.n, " and ", source.k);
  const auto n_bytes = static_cast<std::size_t>(packed_gpu_bytes(source.format, source.n, source.k));
  check_arg(source.packed.size == n_bytes, name, "packed weights of ", source.n, " x ", source.k, " must have ",
            n_bytes, " bytes, got ", source.packed.size);
  check_arg(source.scale.size == (is_half ? 0 : n), name, "scale must have ", is_half ? 0 : n,
            " values (one a row of quantised weights, none of 16 bits), got ", source.scale.size);
  check_arg(source.bias.empty() || source.bias.size == n, name, "bias must have ", n, " values or none, got ",
            source.bias.size);

  GpuMatrix matrix;
  matrix.format = source.format;
  matrix.n = source.n;
  matrix.k = source.k;
  matrix.packed = on_device(source.packed, stream_);
  matrix.scale = on_device(source.scale, stream_);
  set_bias(matrix, source.bias);
  matrix.plan = plan_small_product(source.format, source.n, source.k, n_multiprocessors_);
  synchronize(stream_);  // what is here goes now

  n_partials_ = std::max(n_partials_, small_product_partials(matrix.plan, kMaxSmallProductRows, matrix.n));
  n_counters_ = std::max(n_counters_, small_product_counters(matrix.n));
  n_slice_ = std::max(n_slice_, std::int64_t{slice_rows(matrix.n, matrix.k)} * matrix.k);
  return matrix;
}

void GpuProducts::set_bias(GpuMatrix& w, Span<const float> bias) {
  w.bias = on_device(bias, stream_);
  std::vector<std::uint16_t> half_bias;
  for (const float value : bias) half_bias.push_back(half_bits(dtype_, value));
  w.half_bias = on_device<std::uint16_t>(half_bias, stream_);
  synchronize(stream_);  // what is here goes now
}

void GpuProducts::finalize(int max_rows) {
  check_arg(max_rows > 0, "GpuProducts.finalize", "max_rows must be positive, got ", max_rows);
  const bool has_many = max_rows > options_.few_rows;
  max_rows_ = max_rows;
  partials_ = DeviceArray<float>(n_partials_);
  counters_ = DeviceArray<int>(n_counters_);
  slice_ = DeviceArray<std::uint16_t>(has_many ? n_slice_ : 0);
  workspace_ = DeviceArray<std::uint8_t>(has_many ? gemm_->workspace_bytes() : 0);
  const std::vector<int> zeros(static_cast<std::size_t>(n_counters_));
  copy_memory(counters_.data(), zeros.data(), counters_.n_bytes(), stream_);
  synchronize(stream_);
}

std::int64_t GpuProducts::scratch_bytes() const {
  return partials_.n_bytes() + counters_.n_bytes() + slice_.n_bytes() + workspace_.n_bytes();
}

void GpuProducts::check_rows(const char* place, const RowTensor& a, int m) const {
  check_arg(m >= 0 && m <= max_rows_, place, "there must be 0 to ", max_rows_, " rows, as finalize was told, got ", m);
  check_arg(a.dtype == dtype_, place, "rows must be ", dtype_name(dtype_), ", got ", dtype_name(a.dtype));
}

void GpuProducts::multiply(const GpuMatrix& w, const RowTensor& a, const OutRowTensor& out, int m) {
  check_rows("GpuProducts.multiply", a, m);
  if (are_few(w, m)) return multiply_few(w, a, out, m, false);
  multiply_many(w, a, out, m);
}

void GpuProducts::multiply_gated(const GpuMatrix& w, const RowTensor& a, const OutRowTensor& rows, int m) {
  constexpr char kPlace[] = "GpuProducts.multiply_gated";
  check_rows(kPlace, a, m);
  check_arg(w.n % 2 == 0 && rows.dtype == dtype_, kPlace, "gate and up must be of one size and become ",
            dtype_name(dtype_), ", got ", w.n, " outputs and ", dtype_name(rows.dtype));
  if (are_few(w, m) && takes_gated_outputs(w.n)) return multiply_few(w, a, rows, m, true);
  multiply(w, a, rows, m);
  GatedLaunch launch;
  launch.x = {rows.data, rows.dtype, rows.stride};
  launch.out = rows;
  launch.n_rows = m;
  launch.n_cols = w.n / 2;
  gated(launch, stream_);
}

void GpuProducts::multiply_few(const GpuMatrix& w, const RowTensor& a, const OutRowTensor& out, int m, bool is_gated) {
  SmallProductLaunch l;
  l.dtype = dtype_;
  l.out_dtype = out.dtype;
  l.format = w.format;
  l.plan = w.plan;
  SmallProductArgs& args = l.args;
  args.a_stride = a.stride;
  args.w = static_cast<const std::uint32_t*>(static_cast<const void*>(w.packed.data()));
  args.w_scale = w.scale.data();
  args.bias = w.bias.data();
  args.out_stride = out.stride;
  args.is_gated = is_gated;
  args.n = w.n;
  args.k = w.k;
  args.partials = partials_.data();
  args.n_arrived = counters_.data();
  for (int row = 0; row < m; row += kMaxSmallProductRows) {
    args.m = std::min(m - row, kMaxSmallProductRows);
    args.a = column_at(a, row * a.stride);
    args.out = element_at(out, row, 0);
    small_product(l, stream_);
  }
}

void GpuProducts::multiply_many(const GpuMatrix& w, const RowTensor& a, const OutRowTensor& out, int m) {
  GemmLaunch gemm;
  gemm.a = a;
  gemm.w = slice_.data();
  gemm.m = m;
  gemm.k = w.k;
  const bool has_bias = w.bias.size() > 0;
  const int n_slice = slice_rows(w.n, w.k);
  gemm.n = n_slice;
  for (int begin = 0; begin < w.n; begin += n_slice) {
    UnpackWeightsLaunch unpack;
    unpack.format = w.format;
    unpack.dtype = dtype_;
    unpack.w = w.packed.data();
    unpack.scale = w.scale.data();
    unpack.begin = begin;
    unpack.n_rows = gemm.n = std::min(n_slice, w.n - begin);
    unpack.n = w.n;
    unpack.k = w.k;
    unpack.out = {slice_.data(), dtype_, w.k};
    unpack_weights(unpack, stream_);
    gemm.out = {element_at(out, 0, begin), out.dtype, out.stride};
    if (has_bias) {
      gemm.bias = out.dtype == Dtype::f32 ? static_cast<const void*>(w.bias.data() + begin)
                                          : static_cast<const void*>(w.half_bias.data() + begin);
    }
    gemm_->run(gemm, workspace_.data(), stream_);
  }
}

void GpuProducts::embed(const GpuMatrix& w, const std::int32_t* ids, std::int64_t n_rows, const OutRowTensor& out) {
  UnpackWeightsLaunch unpack;
  unpack.format = w.format;
  unpack.dtype = dtype_;
  unpack.w = w.packed.data();
  unpack.scale = w.scale.data();
  unpack.ids = ids;
  unpack.n_rows = n_rows;
  unpack.n = w.n;
  unpack.k = w.k;
  unpack.out = out;
  unpack_weights(unpack, stream_);
}

}  // namespace gpu
}  // namespace llm_decoder
