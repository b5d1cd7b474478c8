#include "row_ops.h"

#include <cmath>
#include <vector>

#include "llm_decoder/errors.h"

namespace llm_decoder {
namespace {

std::vector<float> floats_of(const OpRows& row) {
  std::vector<float> values(static_cast<std::size_t>(row.data != nullptr ? row.n_cols : 0));
  if (row.data != nullptr) row.read(0, values.data());
  return values;
}

// Floats of each thread, and bytes for a quantised row.
class RowScratch {
 public:
  RowScratch(const ThreadPool& pool, std::int64_t n_floats, std::int32_t n_cols)
      : n_floats_(n_floats),
        n_bytes_(k_padded(n_cols)),
        floats_(static_cast<std::size_t>(pool.n_threads() * n_floats_)),
        bytes_(static_cast<std::size_t>(pool.n_threads() * n_bytes_)) {}

  float* floats(int thread) { return floats_.data() + thread * n_floats_; }
  std::int8_t* bytes(int thread) { return bytes_.data() + thread * n_bytes_; }
  std::int64_t n_bytes() const { return n_bytes_; }

 private:
  std::int64_t n_floats_, n_bytes_;
  std::vector<float> floats_;
  std::vector<std::int8_t> bytes_;
};

void write_result(const RowResult& to, std::int64_t row, const float* x, const CpuKernels& kernels, RowScratch& scratch,
                  int thread) {
  if (to.out.data != nullptr) return to.out.write(row, x);
  const std::int32_t n_cols = to.quantized.n_cols;
  std::int32_t sum = 0;
  std::int8_t* const q = scratch.bytes(thread);
  kernels.quantize_rows(x, n_cols, 1, n_cols, {q, scratch.n_bytes(), to.scale + row, &sum});
  std::copy_n(q, n_cols, static_cast<std::int8_t*>(static_cast<void*>(to.quantized.row(row))));
}

// fn(floats [n_cols], thread) norms a row in place, but for the bias.
template <class Fn>
void norm_rows(const NormCall& call, const CpuKernels& kernels, ThreadPool& pool, const Fn& fn) {
  const std::int32_t n = call.x.n_cols;
  const std::vector<float> bias = floats_of(call.bias);
  RowScratch scratch(pool, 2 * n, n);
  for_rows(pool, call.x.n_rows, [&](std::int64_t row, int thread) {
    float *x = scratch.floats(thread), *before = x + n;
    call.x.read(row, x);
    if (call.residual.data != nullptr) {
      call.residual.read(row, before);
      for (std::int32_t i = 0; i < n; ++i) x[i] += before[i];
      call.residual.write(row, x);
      call.residual.read(row, x);
    }
    fn(x, n);
    if (!bias.empty()) {
      for (std::int32_t i = 0; i < n; ++i) x[i] += bias[static_cast<std::size_t>(i)];
    }
    write_result(call.result, row, x, kernels, scratch, thread);
  });
}

}  // namespace

void rms_norm_op(const NormCall& call, const CpuKernels& kernels, ThreadPool& pool) {
  const std::vector<float> weight = floats_of(call.weight);
  norm_rows(call, kernels, pool,
            [&](float* x, std::int32_t n) { kernels.rms_norm(x, n, weight.data(), call.eps, 1, n, x, n); });
}

void layer_norm_op(const NormCall& call, const CpuKernels& kernels, ThreadPool& pool) {
  const std::vector<float> weight = floats_of(call.weight);
  norm_rows(call, kernels, pool, [&](float* x, std::int32_t n) {
    double sum = 0.0, squares = 0.0;
    for (std::int32_t i = 0; i < n; ++i) sum += x[i];
    const auto mean = static_cast<float>(sum / n);
    for (std::int32_t i = 0; i < n; ++i) {
      x[i] -= mean;
      squares += static_cast<double>(x[i]) * x[i];
    }
    const auto factor = static_cast<float>(1.0 / std::sqrt(squares / n + call.eps));
    for (std::int32_t i = 0; i < n; ++i) x[i] *= factor * weight[static_cast<std::size_t>(i)];
  });
}

void gated_op(const GatedCall& call, const CpuKernels& kernels, ThreadPool& pool) {
  const std::int32_t n_in = call.x.n_cols, n = call.is_gated ? n_in / 2 : n_in;
  RowScratch scratch(pool, n_in + n, n);
  for_rows(pool, call.x.n_rows, [&](std::int64_t row, int thread) {
    float *x = scratch.floats(thread), *result = x + n_in;
    call.x.read(row, x);
    kernels.activate(call.activation, call.is_gated, x, n_in, 1, n, result, n);
    write_result(call.result, row, result, kernels, scratch, thread);
  });
}

void embed_op(const OpRows& table, const float* scale, const std::int32_t* ids, const OpRows& out, ThreadPool& pool) {
  for (std::int64_t i = 0; i < out.n_rows; ++i) {
    check_arg(ids[i] >= 0 && ids[i] < table.n_rows, "ops.embed", "ids[", i, "] must be in [0, ", table.n_rows,
              "), got ", ids[i]);
  }
  RowScratch scratch(pool, table.n_cols, table.n_cols);
  for_rows(pool, out.n_rows, [&](std::int64_t row, int thread) {
    float* const x = scratch.floats(thread);
    table.read(ids[row], x);
    if (scale != nullptr) {
      for (std::int32_t i = 0; i < table.n_cols; ++i) x[i] *= scale[ids[row]];
    }
    out.write(row, x);
  });
}

}  // namespace llm_decoder
