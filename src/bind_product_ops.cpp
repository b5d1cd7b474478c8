// _core.*_op, products with packed weights.
#include "op_arrays.h"
#include "products.h"
#include "workspace.h"

namespace llm_decoder {

void register_product_ops(py::module_& m);

namespace {

Matrix matrix_of(const py::array& packed, const std::string& layout, std::int32_t n, std::int32_t k,
                 const char* place) {
  check_arg(n > 0 && k > 0, place, "n and k must be positive, got ", n, " and ", k);
  Matrix w;
  w.n = n;
  w.k = k;
  if (layout == "float32") {
    w.layout = WeightView::Layout::f32;
    w.data = read_array<float>(packed, place, "packed", {packed_f32_bytes(n, k) / 4}).data;
  } else if (layout == "bfloat16") {
    w.layout = WeightView::Layout::bf16;
    w.data = read_array<std::uint16_t>(packed, place, "packed", {packed_bf16_bytes(n, k) / 2}).data;
  } else if (layout == "w8") {
    w.layout = WeightView::Layout::w8;
    w.data = read_array<std::uint8_t>(packed, place, "packed", {packed_w8_bytes(n, k)}).data;
  } else {
    check_arg(layout == "w4", place, "layout must be float32, bfloat16, w8 or w4, got ", layout);
    w.layout = WeightView::Layout::w4;
    w.data = read_array<std::uint8_t>(packed, place, "packed", {packed_w4_bytes(n, k)}).data;
  }
  return w;
}

// a, out: rows of any float dtype. Quantised weights meet rows in int8, with a scale each.
void py_product(const NamedArray& a, const py::array& packed, const std::string& layout, std::int32_t n,
                const py::object& w_scale, const py::object& bias, const NamedArray& out, int n_threads,
                const std::string& isa) {
  constexpr char kPlace[] = "ops.small_product";
  const OpRows rows = rows_of(a, kPlace, "a", {kAny, kAny});
  Matrix w = matrix_of(packed, layout, n, rows.n_cols, kPlace);
  w.bias = optional_array<float>(bias, kPlace, "bias", {n});
  w.scales = optional_array<float>(w_scale, kPlace, "w_scale", {n});
  check_arg(is_quantized(w.layout) == (w.scales != nullptr), kPlace, "w_scale must be there for w8 and w4 alone, got ",
            layout, w.scales != nullptr ? " with it" : " without it");
  const OpRows to = out_rows_of(out, kPlace, "out", {rows.n_rows, n});
  const CpuKernels& kernels = select_cpu_kernels(isa.c_str());
  const auto size = [](std::int64_t count) { return static_cast<std::size_t>(count); };
  const std::int64_t m = rows.n_rows, k = rows.n_cols, q_stride = k_padded(k);
  const AlignedBuffer floats(size(m * k) * sizeof(float)), products(size(m * n) * sizeof(float)), q(size(m * q_stride)),
      scale(size(m) * sizeof(float)), sum(size(m) * sizeof(std::int32_t));
  Operand in;
  in.rows = floats.as<float>();
  in.stride = k;
  in.quantized = {q.as<std::int8_t>(), q_stride, scale.as<float>(), sum.as<std::int32_t>()};
  const std::size_t scratch_bytes =
      static_cast<std::size_t>(round_up(static_cast<std::int64_t>(product_scratch_bytes(kernels, w)), 64));
  const AlignedBuffer scratch(scratch_bytes * size(n_threads));
  run_op(kPlace, n_threads, [&](ThreadPool& pool) {
    for_rows(pool, m, [&](std::int64_t row, int) {
      float* const x = floats.as<float>() + row * k;
      rows.read(row, x);
      if (is_quantized(w.layout)) kernels.quantize_rows(x, k, 1, rows.n_cols, row_of(in.quantized, row));
    });
    if (m > 0) {
      multiply(kernels, pool, w, in, static_cast<std::int32_t>(m), {products.as<float>(), n},
               {scratch.as<std::byte>(), scratch_bytes});
    }
    for_rows(pool, m, [&](std::int64_t row, int) { to.write(row, products.as<float>() + row * n); });
  });
}

}  // namespace

void register_product_ops(py::module_& m) {
  using py::arg;
  m.def(
      "product_op", &py_product,
      "out [m, n] = a [m, k] . w [n, k] * w_scale [n] + bias [n]; a and out are (array, dtype), w is packed as layout "
      "says: float32,\nbfloat16, w8 or w4.",
      arg("a"), arg("packed"), arg("layout"), arg("n"), arg("w_scale").none(true), arg("bias").none(true), arg("out"),
      arg("n_threads"), arg("isa") = "auto");
}

}  // namespace llm_decoder
