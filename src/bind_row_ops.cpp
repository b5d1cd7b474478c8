// _core.*_op, rows: norms and activations of rows, rows of a table. Arrays come with the name of their dtype.
#include "op_arrays.h"
#include "row_ops.h"

namespace llm_decoder {

void register_row_ops(py::module_& m);

namespace {

// The place of a result [n_rows, n_cols]: rows as they are, or int8 (an array) and float32 [n_rows].
using ResultArrays = std::pair<NamedArray, std::optional<std::pair<py::array, py::array>>>;

RowResult result_of(const ResultArrays& arrays, const char* place, const Shape& need) {
  RowResult result;
  const auto& [out, quantized] = arrays;
  check_arg(out.has_value() != quantized.has_value(), place,
            "the result must have one place to go, rows or int8 with scales");
  result.out = out_rows_of(out, place, "out", need);
  if (quantized) {
    py::array scale = quantized->second;
    result.quantized = out_rows_of(std::pair(quantized->first, std::string("int8")), place, "q", need, {Dtype::s8});
    result.scale = write_array<float>(scale, place, "scale", {need[0]}).data;
  }
  return result;
}

NormCall norm_call(const NamedArray& x, const NamedArray& weight, const NamedArray& bias, const NamedArray& residual,
                   const ResultArrays& result, float eps, const char* place) {
  NormCall call;
  call.x = rows_of(x, place, "x", {kAny, kAny});
  const Shape shape = {call.x.n_rows, call.x.n_cols};
  call.weight = rows_of(weight, place, "weight", {1, shape[1]});
  call.bias = rows_of(bias, place, "bias", {1, shape[1]});
  call.residual = out_rows_of(residual, place, "residual", shape);
  call.result = result_of(result, place, shape);
  call.eps = eps;
  return call;
}

template <auto norm>
void py_norm(const NamedArray& x, const NamedArray& weight, const NamedArray& bias, const NamedArray& residual,
             const ResultArrays& result, float eps, int n_threads, const std::string& isa) {
  constexpr char kPlace[] = "ops.norm";
  const NormCall call = norm_call(x, weight, bias, residual, result, eps, kPlace);
  check_arg(call.x.data != nullptr && call.weight.data != nullptr, kPlace, "x and weight must be there, got None");
  const CpuKernels& kernels = select_cpu_kernels(isa.c_str());
  run_op(kPlace, n_threads, [&](ThreadPool& pool) { norm(call, kernels, pool); });
}

Activation activation_named(const std::string& name, const char* place) {
  const std::pair<const char*, Activation> choices[] = {{"silu", Activation::silu},
                                                        {"gelu", Activation::gelu},
                                                        {"gelu_tanh", Activation::gelu_tanh},
                                                        {"relu", Activation::relu},
                                                        {"identity", Activation::identity}};
  for (const auto& [known, activation] : choices) {
    if (name == known) return activation;
  }
  check_arg(false, place, "activation must be silu, gelu, gelu_tanh, relu or identity, got ", name);
  return Activation::identity;
}

void py_gated(const NamedArray& x, const std::string& activation, bool is_gated, const ResultArrays& result,
              int n_threads, const std::string& isa) {
  constexpr char kPlace[] = "ops.gated";
  GatedCall call;
  call.x = rows_of(x, kPlace, "x", {kAny, kAny});
  check_arg(call.x.data != nullptr && (!is_gated || call.x.n_cols % 2 == 0), kPlace,
            "x must be there, with an even number of columns where it has a gate, got ", call.x.n_cols);
  call.is_gated = is_gated;
  call.activation = activation_named(activation, kPlace);
  call.result = result_of(result, kPlace, {call.x.n_rows, is_gated ? call.x.n_cols / 2 : call.x.n_cols});
  const CpuKernels& kernels = select_cpu_kernels(isa.c_str());
  run_op(kPlace, n_threads, [&](ThreadPool& pool) { gated_op(call, kernels, pool); });
}

void py_embed(const py::array& ids, const NamedArray& table, const py::object& scale, const NamedArray& out,
              int n_threads) {
  constexpr char kPlace[] = "ops.embed";
  const OpRows from = rows_of(table, kPlace, "table", {kAny, kAny}, {Dtype::f32, Dtype::bf16, Dtype::f16, Dtype::s8});
  const Span<const std::int32_t> rows = read_array<std::int32_t>(ids, kPlace, "ids");
  const OpRows to = out_rows_of(out, kPlace, "out", {static_cast<py::ssize_t>(rows.size), from.n_cols});
  check_arg(from.data != nullptr && to.data != nullptr, kPlace, "table and out must be there, got None");
  const float* scales = optional_array<float>(scale, kPlace, "scale", {from.n_rows});
  run_op(kPlace, n_threads, [&](ThreadPool& pool) { embed_op(from, scales, rows.data, to, pool); });
}

}  // namespace

void register_row_ops(py::module_& m) {
  using py::arg;
  const char* norm_doc =
      "x [n_rows, n_cols], weight, bias [1, n_cols], residual as x or None (x is added to it in place first), each "
      "(array, dtype);\nresult: ((array, dtype), None) or (None, (int8 [n_rows, n_cols], float32 [n_rows])). "
      "ValueError "
      "for what does not fit.";
  m.def("rms_norm_op", &py_norm<&rms_norm_op>, norm_doc, arg("x"), arg("weight"), arg("bias").none(true),
        arg("residual").none(true), arg("result"), arg("eps"), arg("n_threads"), arg("isa") = "auto");
  m.def("layer_norm_op", &py_norm<&layer_norm_op>, norm_doc, arg("x"), arg("weight"), arg("bias").none(true),
        arg("residual").none(true), arg("result"), arg("eps"), arg("n_threads"), arg("isa") = "auto");
  m.def("gated_op", &py_gated,
        "activation(gate) * up of x [n_rows, 2 n_cols], or activation(x); x and result as in rms_norm_op.", arg("x"),
        arg("activation"), arg("is_gated"), arg("result"), arg("n_threads"), arg("isa") = "auto");
  m.def("embed_op", &py_embed,
        "Rows ids (int32 [n_rows]) of table [vocab_size, n_cols], float or int8 with scale float32 [vocab_size], into "
        "out.",
        arg("ids"), arg("table"), arg("scale").none(true), arg("out"), arg("n_threads"));
}

}  // namespace llm_decoder
