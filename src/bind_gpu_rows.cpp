// _cuda and _cuda_host: norms and activations of rows, rows of a table.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "device_guard.h"
#include "embed_launch.h"
#include "gated_launch.h"
#include "gpu_tensor.h"
#include "norm_launch.h"

namespace py = pybind11;

namespace llm_decoder {
namespace gpu {
namespace {

using OptionalTensor = std::optional<TensorTuple>;

// Rows [n_rows, n_cols]; null data where there are none.
template <class Rows>
Rows rows_of(const OptionalTensor& tuple) {
  if (!tuple) return {};
  const Tensor tensor = tensor_of(*tuple);
  return {tensor.data, tensor.dtype, tensor.strides.at(0)};
}

// One row, whatever lies behind it.
RowTensor vector_of(const OptionalTensor& tuple) {
  if (!tuple) return {};
  const Tensor tensor = tensor_of(*tuple);
  return {tensor.data, tensor.dtype, 0};
}

// The place of a result: rows as they are, or int8 rows and the address of float32 [n_rows].
using ResultTuple = std::pair<OptionalTensor, std::optional<std::pair<TensorTuple, std::uintptr_t>>>;

template <class Launch>
void add_result(Launch& launch, const ResultTuple& result) {
  launch.out = rows_of<OutRowTensor>(result.first);
  if (!result.second) return;
  const Tensor q = tensor_of(result.second->first);
  launch.quantized = {static_cast<std::int8_t*>(q.data), q.strides.at(0), pointer<float>(result.second->second)};
}

template <auto norm>
void run_norm(const TensorTuple& x, const TensorTuple& weight, const OptionalTensor& bias,
              const OptionalTensor& residual, const ResultTuple& result, float eps, int device, std::uintptr_t stream) {
  NormLaunch launch;
  const Tensor rows = tensor_of(x);
  launch.x = rows_of<RowTensor>(x);
  launch.weight = vector_of(weight);
  launch.bias = vector_of(bias);
  launch.residual = rows_of<OutRowTensor>(residual);
  add_result(launch, result);
  launch.n_rows = rows.shape.at(0);
  launch.n_cols = rows.size(1);
  launch.eps = eps;
  const DeviceGuard guard(device);
  norm(launch, stream_of(stream));
}

Activation activation_named(const std::string& name) {
  const std::pair<const char*, Activation> choices[] = {{"silu", Activation::silu},
                                                        {"gelu", Activation::gelu},
                                                        {"gelu_tanh", Activation::gelu_tanh},
                                                        {"relu", Activation::relu},
                                                        {"identity", Activation::identity}};
  for (const auto& [known, activation] : choices) {
    if (name == known) return activation;
  }
  throw std::invalid_argument(concat("[gated] activation must be one that kernels know, got ", name));
}

void run_gated(const TensorTuple& x, const std::string& activation, bool is_gated, const ResultTuple& result,
               int device, std::uintptr_t stream) {
  GatedLaunch launch;
  const Tensor rows = tensor_of(x);
  launch.x = rows_of<RowTensor>(x);
  launch.is_gated = is_gated;
  launch.activation = activation_named(activation);
  add_result(launch, result);
  launch.n_rows = rows.shape.at(0);
  launch.n_cols = is_gated ? rows.size(1) / 2 : rows.size(1);
  const DeviceGuard guard(device);
  gated(launch, stream_of(stream));
}

// ids: address of int32 [n_rows]; scale: address of float32 [vocab_size] or 0.
void run_embed(std::uintptr_t ids, const TensorTuple& table_tuple, std::uintptr_t scale, const TensorTuple& out_tuple,
               int device, std::uintptr_t stream) {
  const Tensor table = tensor_of(table_tuple), out = tensor_of(out_tuple);
  EmbedLaunch launch;
  launch.table = rows_of<RowTensor>(table_tuple);
  launch.scale = pointer<const float>(scale);
  launch.ids = pointer<const std::int32_t>(ids);
  launch.out = rows_of<OutRowTensor>(out_tuple);
  launch.n_rows = out.shape.at(0);
  launch.vocab_size = table.size(0);
  launch.n_cols = table.size(1);
  const DeviceGuard guard(device);
  embed(launch, stream_of(stream));
}

}  // namespace

void register_gpu_rows(py::module_& m);

void register_gpu_rows(py::module_& m) {
  using py::arg;
  m.def("rms_norm", &run_norm<&rms_norm>, arg("x"), arg("weight"), arg("bias").none(true), arg("residual").none(true),
        arg("result"), arg("eps"), arg("device"), arg("stream"));
  m.def("layer_norm", &run_norm<&layer_norm>, arg("x"), arg("weight"), arg("bias").none(true),
        arg("residual").none(true), arg("result"), arg("eps"), arg("device"), arg("stream"));
  m.def("gated", &run_gated, arg("x"), arg("activation"), arg("is_gated"), arg("result"), arg("device"), arg("stream"));
  m.def("embed", &run_embed, arg("ids"), arg("table"), arg("scale"), arg("out"), arg("device"), arg("stream"));
}

}  // namespace gpu
}  // namespace llm_decoder
