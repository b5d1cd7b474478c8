// _cuda and _cuda_host: products of few rows, and the layout of their weights.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "array_view.h"
#include "device_guard.h"
#include "device_memory.h"
#include "gpu_tensor.h"
#include "pack_gpu_weights.h"
#include "quantize_f8.h"
#include "small_product_launch.h"

namespace py = pybind11;

namespace llm_decoder {
namespace gpu {
namespace {

GpuWeightFormat format_named(const std::string& name) {
  const std::pair<const char*, GpuWeightFormat> choices[] = {{"half", GpuWeightFormat::half},
                                                             {"w8", GpuWeightFormat::w8},
                                                             {"w4", GpuWeightFormat::w4},
                                                             {"f8", GpuWeightFormat::f8}};
  for (const auto& [known, format] : choices) {
    if (name == known) return format;
  }
  throw std::invalid_argument(concat("[small_product] format must be half, w8, w4 or f8, got ", name));
}

// fn(n, k, bytes of the packed weights), into a new array.
template <class Fn>
py::array_t<std::uint8_t> packed_array(GpuWeightFormat format, const py::array& w, const Fn& fn) {
  const std::int64_t n = w.shape(0), k = w.shape(1);
  py::array_t<std::uint8_t> packed(static_cast<py::ssize_t>(packed_gpu_bytes(format, n, k)));
  std::uint8_t* const out = packed.mutable_data();
  const py::gil_scoped_release release;
  fn(n, k, out);
  return packed;
}

py::array_t<std::uint8_t> py_pack_half(const py::array& w) {
  const auto* data = read_array<std::uint16_t>(w, "pack_gpu_half", "w", {kAny, kAny}).data;
  return packed_array(GpuWeightFormat::half, w,
                      [&](std::int64_t n, std::int64_t k, std::uint8_t* out) { pack_gpu_half(data, k, n, k, out); });
}

py::array_t<std::uint8_t> py_pack_w8(const py::array& q) {
  const auto* data = read_array<std::int8_t>(q, "pack_gpu_w8", "q", {kAny, kAny}).data;
  return packed_array(GpuWeightFormat::w8, q,
                      [&](std::int64_t n, std::int64_t k, std::uint8_t* out) { pack_gpu_w8(data, k, n, k, out); });
}

py::array_t<std::uint8_t> py_pack_w4(const py::array& q, const py::array& group_scale, const py::array& group_min) {
  constexpr char kPlace[] = "pack_gpu_w4";
  const auto* data = read_array<std::uint8_t>(q, kPlace, "q", {kAny, kAny}).data;
  const Shape groups = {q.shape(0), static_cast<py::ssize_t>(ceil_div(q.shape(1), kGpuGroupInputs))};
  const auto* scales = read_array<std::uint8_t>(group_scale, kPlace, "group_scale", groups).data;
  const auto* minima = read_array<std::int8_t>(group_min, kPlace, "group_min", groups).data;
  return packed_array(GpuWeightFormat::w4, q, [&](std::int64_t n, std::int64_t k, std::uint8_t* out) {
    pack_gpu_w4(data, k, scales, minima, n, k, out);
  });
}

py::array_t<std::uint8_t> py_pack_f8(const py::array& q) {
  const auto* data = read_array<std::uint8_t>(q, "pack_gpu_f8", "q", {kAny, kAny}).data;
  return packed_array(GpuWeightFormat::f8, q,
                      [&](std::int64_t n, std::int64_t k, std::uint8_t* out) { pack_gpu_f8(data, k, n, k, out); });
}

std::pair<py::array_t<std::uint8_t>, py::array_t<float>> py_quantize_f8_rows(const py::array& w) {
  const auto* data = read_array<float>(w, "quantize_f8_rows", "w", {kAny, kAny}).data;
  const py::ssize_t n = w.shape(0), k = w.shape(1);
  py::array_t<std::uint8_t> q({n, k});
  py::array_t<float> scale(n);
  std::uint8_t* const to = q.mutable_data();
  float* const scales = scale.mutable_data();
  {
    const py::gil_scoped_release release;
    quantize_f8_rows(data, k, n, k, to, scales);
  }
  return {q, scale};
}

// (bricks_per_split, n_splits), for a device.
std::tuple<int, int> plan_for(const std::string& format, int n, int k, int device) {
  const SmallProductPlan plan = plan_small_product(format_named(format), n, k, device_properties(device).n_sms);
  return {plan.bricks_per_split, plan.n_splits};
}

std::int64_t partials_of(const std::tuple<int, int>& plan, int m, int n) {
  return small_product_partials({std::get<0>(plan), std::get<1>(plan)}, m, n);
}

// a [m, k], out [m, n]; addresses of packed weights, float32 [n] scales and bias or 0, partials and counters.
void run_small_product(const TensorTuple& a_tuple, const std::string& format, std::uintptr_t packed,
                       std::uintptr_t w_scale, std::uintptr_t bias, const TensorTuple& out_tuple,
                       const std::tuple<int, int>& plan, std::uintptr_t partials, std::uintptr_t counters, int device,
                       std::uintptr_t stream) {
  const Tensor a = tensor_of(a_tuple), out = tensor_of(out_tuple);
  SmallProductLaunch launch;
  launch.dtype = a.dtype;
  launch.out_dtype = out.dtype;
  launch.format = format_named(format);
  launch.plan = {std::get<0>(plan), std::get<1>(plan)};
  SmallProductArgs& args = launch.args;
  args.a = a.data;
  args.a_stride = a.strides.at(0);
  args.w = pointer<const std::uint32_t>(packed);
  args.w_scale = pointer<const float>(w_scale);
  args.bias = pointer<const float>(bias);
  args.out = out.data;
  args.out_stride = out.strides.at(0);
  args.m = a.size(0);
  args.n = out.size(1);
  args.k = a.size(1);
  args.partials = pointer<float>(partials);
  args.n_arrived = pointer<int>(counters);
  const DeviceGuard guard(device);
  small_product(launch, stream_of(stream));
}

}  // namespace

void register_gpu_products(py::module_& m);

void register_gpu_products(py::module_& m) {
  using py::arg;
  m.def("pack_gpu_half", &py_pack_half, "uint16 [n, k] -> uint8 [packed]", arg("w"));
  m.def("pack_gpu_w8", &py_pack_w8, "int8 [n, k] -> uint8 [packed]", arg("q"));
  m.def("pack_gpu_w4", &py_pack_w4, "uint8 [n, k], uint8 and int8 [n, ceil(k / 32)] -> uint8 [packed]", arg("q"),
        arg("group_scale"), arg("group_min"));
  m.def("pack_gpu_f8", &py_pack_f8, "uint8 [n, k], bits of finite fp8 (e4m3) -> uint8 [packed]", arg("q"));
  m.def("quantize_f8_rows", &py_quantize_f8_rows,
        "float32 [n, k] -> bits of fp8 (e4m3) uint8 [n, k], scale float32 [n]: max|w| / 448, w / scale to the nearest.",
        arg("w"));
  m.def("plan_small_product", &plan_for, arg("format"), arg("n"), arg("k"), arg("device"));
  m.def("small_product_partials", &partials_of, "Floats that a product of m rows needs.", arg("plan"), arg("m"),
        arg("n"));
  m.def("small_product_counters", &small_product_counters, "Ints that it needs, zero before and after.", arg("n"));
  m.def("small_product", &run_small_product, arg("a"), arg("format"), arg("packed"), arg("w_scale"), arg("bias"),
        arg("out"), arg("plan"), arg("partials"), arg("counters"), arg("device"), arg("stream"));
  m.attr("MAX_SMALL_PRODUCT_ROWS") = kMaxSmallProductRows;
}

}  // namespace gpu
}  // namespace llm_decoder
