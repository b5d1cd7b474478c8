// Packing, the list of ISAs, and _core.kernels: the products on NumPy arrays, for tests and benchmarks only.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstring>
#include <new>
#include <optional>
#include <string>
#include <thread>
#include <tuple>
#include <vector>

#include "array_view.h"
#include "llm_decoder/cpu_kernels.h"

namespace py = pybind11;

namespace llm_decoder {

void register_row_kernels(py::module_& kernels);  // bind_rows_attention.cpp
void register_kernels(py::module_& m);

namespace {

using Array = const py::array&;

// A new array whose first element lies on a 64-byte boundary, as matrices must.
template <class T>
py::array_t<T> aligned_array(const Shape& shape) {
  constexpr std::size_t kAlign = 64;
  py::ssize_t n_elements = 1;
  for (const py::ssize_t extent : shape) n_elements *= extent;
  const std::size_t n_bytes = static_cast<std::size_t>(n_elements) * sizeof(T);
  void* memory = ::operator new(n_bytes + kAlign, std::align_val_t{kAlign});
  const py::capsule owner(memory, [](void* p) { ::operator delete(p, std::align_val_t{kAlign}); });
  return py::array_t<T>(shape, static_cast<const T*>(memory), owner);
}

py::array_t<float> py_pack_f32(Array w) {
  const float* data = read_array<float>(w, "pack_f32", "w", {kAny, kAny}).data;
  const std::int64_t n = w.shape(0), k = w.shape(1);
  py::array_t<float> packed = aligned_array<float>({packed_f32_bytes(n, k) / 4});
  float* out = packed.mutable_data();
  const py::gil_scoped_release release;
  pack_f32(data, k, n, k, out);
  return packed;
}

py::array_t<std::uint16_t> py_pack_bf16(Array w) {
  const float* data = read_array<float>(w, "pack_bf16", "w", {kAny, kAny}).data;
  const std::int64_t n = w.shape(0), k = w.shape(1);
  py::array_t<std::uint16_t> packed = aligned_array<std::uint16_t>({packed_bf16_bytes(n, k) / 2});
  Bf16* out = reinterpret_cast<Bf16*>(packed.mutable_data());
  const py::gil_scoped_release release;
  pack_bf16(data, k, n, k, out);
  return packed;
}

py::array_t<std::uint8_t> py_pack_w8(Array q) {
  const std::int8_t* data = read_array<std::int8_t>(q, "pack_w8", "q", {kAny, kAny}).data;
  const std::int64_t n = q.shape(0), k = q.shape(1);
  py::array_t<std::uint8_t> packed = aligned_array<std::uint8_t>({packed_w8_bytes(n, k)});
  std::uint8_t* out = packed.mutable_data();
  const py::gil_scoped_release release;
  pack_w8(data, k, n, k, out);
  return packed;
}

py::array_t<std::int8_t> py_unpack_w8(Array packed, std::int64_t n, std::int64_t k) {
  check_arg(n > 0 && k > 0, "unpack_w8", "n and k must be positive, got ", n, " and ", k);
  const std::uint8_t* data = read_array<std::uint8_t>(packed, "unpack_w8", "packed", {packed_w8_bytes(n, k)}).data;
  py::array_t<std::int8_t> q({n, k});
  std::int8_t* out = q.mutable_data();
  const py::gil_scoped_release release;
  unpack_w8(data, n, k, out, k);
  return q;
}

auto py_quantize_weight_rows(Array w) {
  const float* data = read_array<float>(w, "quantize_weight_rows", "w", {kAny, kAny}).data;
  const std::int64_t n = w.shape(0), k = w.shape(1);
  py::array_t<std::int8_t> q({n, k});
  py::array_t<float> scale(n);
  std::int8_t* q_out = q.mutable_data();
  float* scale_out = scale.mutable_data();
  {
    const py::gil_scoped_release release;
    quantize_weight_rows(data, k, n, k, q_out, k, scale_out);
  }
  return std::make_tuple(q, scale);
}

py::array_t<std::uint8_t> py_pack_w4(Array q, Array group_scale, Array group_min) {
  const std::uint8_t* values = read_array<std::uint8_t>(q, "pack_w4", "q", {kAny, kAny}).data;
  const std::int64_t n = q.shape(0), k = q.shape(1);
  const auto* scales = read_array<std::uint8_t>(group_scale, "pack_w4", "group_scale", {n, n_groups(k)}).data;
  const auto* minima = read_array<std::int8_t>(group_min, "pack_w4", "group_min", {n, n_groups(k)}).data;
  py::array_t<std::uint8_t> packed = aligned_array<std::uint8_t>({packed_w4_bytes(n, k)});
  std::uint8_t* out = packed.mutable_data();
  const py::gil_scoped_release release;
  pack_w4(values, scales, minima, n, k, out);
  return packed;
}

py::array_t<std::int8_t> py_expand_w4(Array packed, std::int64_t n, std::int64_t k) {
  check_arg(n > 0 && k > 0, "expand_w4", "n and k must be positive, got ", n, " and ", k);
  const std::uint8_t* data = read_array<std::uint8_t>(packed, "expand_w4", "packed", {packed_w4_bytes(n, k)}).data;
  py::array_t<std::int8_t> q({n, k});
  std::int8_t* out = q.mutable_data();
  const py::gil_scoped_release release;
  expand_w4(data, n, k, out);
  return q;
}

auto py_quantize_weight_groups(Array w, const std::string& isa) {
  const CpuKernels& kernels = select_cpu_kernels(isa.c_str());
  const float* data = read_array<float>(w, "quantize_weight_groups", "w", {kAny, kAny}).data;
  const std::int64_t n = w.shape(0), k = w.shape(1);
  py::array_t<std::uint8_t> q({n, k}), group_scale({n, n_groups(k)});
  py::array_t<std::int8_t> group_min({n, n_groups(k)});
  py::array_t<float> scale(n);
  std::uint8_t *q_out = q.mutable_data(), *group_scale_out = group_scale.mutable_data();
  std::int8_t* group_min_out = group_min.mutable_data();
  float* scale_out = scale.mutable_data();
  {
    const py::gil_scoped_release release;
    quantize_weight_groups(kernels, data, n, k, q_out, group_scale_out, group_min_out, scale_out);
  }
  return std::make_tuple(q, group_scale, group_min, scale);
}

std::vector<std::string> isas() {
  std::vector<std::string> names;
  for (const CpuKernels* table : cpu_kernels()) names.emplace_back(table->name);
  return names;
}

// Columns past `panel_end` and rows past m stay as they are: `out` may be wider than the product.
template <class Gemm>
void run_panels(const Gemm& gemm, std::int32_t panel_begin, std::int32_t panel_end, int n_threads) {
  const py::gil_scoped_release release;
  if (n_threads == 1) return gemm(panel_begin, panel_end);
  std::vector<std::thread> threads;
  for (std::int64_t t = 0; t < n_threads; ++t) {
    const std::int64_t n = panel_end - panel_begin;
    threads.emplace_back(gemm, panel_begin + static_cast<std::int32_t>(n * t / n_threads),
                         panel_begin + static_cast<std::int32_t>(n * (t + 1) / n_threads));
  }
  for (std::thread& thread : threads) thread.join();
}

// Poisoned memory of exactly n_bytes, so that a sanitizer sees what passes its end.
struct Scratch {
  explicit Scratch(std::size_t n_bytes)
      : memory(static_cast<std::byte*>(::operator new(n_bytes, std::align_val_t{kAlign}))) {
    std::memset(memory, 0xa5, n_bytes);
  }
  ~Scratch() { ::operator delete(memory, std::align_val_t{kAlign}); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  static constexpr std::size_t kAlign = 64;
  std::byte* memory;
};

struct PanelRange {
  std::int32_t begin, end;
};

PanelRange checked_panels(const char* place, std::int64_t n, std::int32_t begin, std::int32_t end) {
  if (end < 0) end = static_cast<std::int32_t>(n_panels(n));
  check_arg(0 <= begin && begin <= end && end <= n_panels(n), place, "panels must lie in [0, ", n_panels(n), "], got [",
            begin, ", ", end, ")");
  return {begin, end};
}

// What differs between the float products: the weights in the kernel and in NumPy.
struct F32 {
  using Weight = float;
  using Element = float;
  static constexpr const char* kGemmPlace = "kernels.gemm_f32";
  static constexpr const char* kEmbedPlace = "kernels.embed_f32";
  static constexpr auto kGemm = &CpuKernels::gemm_f32;
  static constexpr auto kEmbed = &CpuKernels::embed_f32;
};
struct Bfloat16 {
  using Weight = Bf16;
  using Element = std::uint16_t;
  static constexpr const char* kGemmPlace = "kernels.gemm_bf16";
  static constexpr const char* kEmbedPlace = "kernels.embed_bf16";
  static constexpr auto kGemm = &CpuKernels::gemm_bf16;
  static constexpr auto kEmbed = &CpuKernels::embed_bf16;
};

template <class Layout>
const typename Layout::Weight* read_float_weights(Array w, const char* place, std::int64_t n, std::int64_t k) {
  const auto* data = read_array<typename Layout::Element>(w, place, "w", {n_panels(n) * kPanelWidth * k}).data;
  return reinterpret_cast<const typename Layout::Weight*>(data);
}

template <class Layout>
void gemm_floats(const std::string& isa, Array a, Array w, std::int32_t n, py::array& out,
                 const std::optional<py::array>& bias, bool accumulate, std::int32_t panel_begin,
                 std::int32_t panel_end, int n_threads) {
  constexpr const char* kPlace = Layout::kGemmPlace;
  GemmFloatArgs<typename Layout::Weight> args;
  args.a = read_array<float>(a, kPlace, "a", {kAny, kAny}).data;
  check_arg(n > 0, kPlace, "n must be positive, got ", n);
  args.m = static_cast<std::int32_t>(a.shape(0));
  args.n = n;
  args.k = static_cast<std::int32_t>(w.size() / (n_panels(n) * kPanelWidth));
  args.a_stride = a.shape(1);
  args.w = read_float_weights<Layout>(w, kPlace, n, args.k);
  check_arg(args.k > 0 && a.shape(1) >= args.k, kPlace, "a must have at least ", args.k, " columns, got ", a.shape(1));
  args.out = write_array<float>(out, kPlace, "out", {a.shape(0), kAny}).data;
  args.out_stride = out.shape(1);
  check_arg(out.shape(1) >= n, kPlace, "out must have at least ", n, " columns, got ", out.shape(1));
  if (bias) args.bias = read_array<float>(*bias, kPlace, "bias", {n}).data;
  args.accumulate = accumulate;
  const PanelRange panels = checked_panels(kPlace, n, panel_begin, panel_end);
  const auto gemm = select_cpu_kernels(isa.c_str()).*Layout::kGemm;
  run_panels([&](std::int32_t begin, std::int32_t end) { gemm(args, begin, end); }, panels.begin, panels.end,
             n_threads);
}

// A product on int8 activations; `packed_bytes(n, k)` is the size of the weights' layout.
GemmW8Args int8_args(const char* place, Array a, Array a_scale, Array a_sum, Array w, Array w_scale, std::int32_t k,
                     py::array& out, const std::optional<py::array>& bias, bool accumulate,
                     std::int64_t (*packed_bytes)(std::int64_t, std::int64_t)) {
  GemmW8Args args;
  args.a = read_array<std::int8_t>(a, place, "a", {kAny, kAny}).data;
  args.m = static_cast<std::int32_t>(a.shape(0));
  args.k = k;
  args.n = static_cast<std::int32_t>(w_scale.size());
  args.a_stride = a.shape(1);
  check_arg(k > 0 && a.shape(1) >= k_padded(k), place, "a must have at least ", k_padded(k), " columns, got ",
            a.shape(1));
  args.a_scale = read_array<float>(a_scale, place, "a_scale", {args.m}).data;
  args.a_sum = read_array<std::int32_t>(a_sum, place, "a_sum", {args.m}).data;
  args.w = read_array<std::uint8_t>(w, place, "w", {packed_bytes(args.n, k)}).data;
  args.w_scale = read_array<float>(w_scale, place, "w_scale").data;
  args.out = write_array<float>(out, place, "out", {args.m, kAny}).data;
  args.out_stride = out.shape(1);
  check_arg(out.shape(1) >= args.n, place, "out must have at least ", args.n, " columns, got ", out.shape(1));
  if (bias) args.bias = read_array<float>(*bias, place, "bias", {args.n}).data;
  args.accumulate = accumulate;
  return args;
}

void gemm_w8(const std::string& isa, Array a, Array a_scale, Array a_sum, Array w, Array w_scale, std::int32_t k,
             py::array& out, const std::optional<py::array>& bias, bool accumulate, std::int32_t panel_begin,
             std::int32_t panel_end, int n_threads) {
  constexpr const char* kPlace = "kernels.gemm_w8";
  const GemmW8Args args = int8_args(kPlace, a, a_scale, a_sum, w, w_scale, k, out, bias, accumulate, &packed_w8_bytes);
  const PanelRange panels = checked_panels(kPlace, args.n, panel_begin, panel_end);
  const auto gemm = select_cpu_kernels(isa.c_str()).gemm_w8;
  run_panels([&](std::int32_t begin, std::int32_t end) { gemm(args, begin, end); }, panels.begin, panels.end,
             n_threads);
}

void gemm_w4(const std::string& isa, Array a, Array a_scale, Array a_sum, Array w, Array w_scale, std::int32_t k,
             py::array& out, const std::optional<py::array>& bias, bool accumulate, std::int32_t panel_begin,
             std::int32_t panel_end, int n_threads) {
  constexpr const char* kPlace = "kernels.gemm_w4";
  const GemmW8Args args = int8_args(kPlace, a, a_scale, a_sum, w, w_scale, k, out, bias, accumulate, &packed_w4_bytes);
  const PanelRange panels = checked_panels(kPlace, args.n, panel_begin, panel_end);
  const CpuKernels& table = select_cpu_kernels(isa.c_str());
  const std::size_t n_bytes = table.gemm_w4_scratch_bytes(k);
  const auto multiply_with_scratch = [&](std::int32_t begin, std::int32_t end) {
    const Scratch scratch(n_bytes);
    table.gemm_w4(args, begin, end, scratch.memory);
  };
  run_panels(multiply_with_scratch, panels.begin, panels.end, n_threads);
}

void check_token(const char* place, std::int32_t token, std::int64_t n) {
  check_arg(0 <= token && token < n, place, "token must lie in [0, ", n, "), got ", token);
}

template <class Layout>
py::array_t<float> embed_floats(const std::string& isa, Array w, std::int32_t n, std::int32_t hidden,
                                std::int32_t token) {
  check_token(Layout::kEmbedPlace, token, n);
  const auto* data = read_float_weights<Layout>(w, Layout::kEmbedPlace, n, hidden);
  py::array_t<float> out(hidden);
  (select_cpu_kernels(isa.c_str()).*Layout::kEmbed)(data, token, hidden, out.mutable_data());
  return out;
}

py::array_t<float> embed_w8(const std::string& isa, Array w, Array w_scale, std::int32_t hidden, std::int32_t token) {
  constexpr const char* kPlace = "kernels.embed_w8";
  check_token(kPlace, token, w_scale.size());
  const std::uint8_t* data = read_array<std::uint8_t>(w, kPlace, "w", {packed_w8_bytes(w_scale.size(), hidden)}).data;
  py::array_t<float> out(hidden);
  const float* scales = read_array<float>(w_scale, kPlace, "w_scale").data;
  select_cpu_kernels(isa.c_str()).embed_w8(data, scales, token, hidden, out.mutable_data());
  return out;
}

}  // namespace

void register_kernels(py::module_& m) {
  using py::arg;
  m.def("isas", &isas, "The ISAs that this machine runs, best first.");
  m.def("pack_f32", &py_pack_f32, "float32 [n, k] -> float32 [packed], see cpu_kernels.h", arg("w"));
  m.def("pack_bf16", &py_pack_bf16, "float32 [n, k] -> uint16 [packed], rounded to the nearest, ties to even",
        arg("w"));
  m.def("pack_w8", &py_pack_w8, "int8 [n, k] -> uint8 [packed], see cpu_kernels.h", arg("q"));
  m.def("unpack_w8", &py_unpack_w8, "uint8 [packed] -> int8 [n, k]", arg("packed"), arg("n"), arg("k"));
  m.def("pack_w4", &py_pack_w4, "as quantize_weight_groups returns them -> uint8 [packed], see cpu_kernels.h", arg("q"),
        arg("group_scale"), arg("group_min"));
  m.def("expand_w4", &py_expand_w4, "uint8 [packed] -> int8 [n, k], the w8 matrix that a w4 one stands for",
        arg("packed"), arg("n"), arg("k"));
  m.def("quantize_weight_groups", &py_quantize_weight_groups,
        "float32 [n, k] -> q uint8 [n, k], group_scale uint8 and group_min int8 [n, ceil(k / 32)], scale float32 [n]; "
        "the same bits on every isa",
        arg("w"), arg("isa") = "auto");
  m.def("quantize_weight_rows", &py_quantize_weight_rows, "float32 [n, k] -> int8 [n, k], float32 [n]", arg("w"));

  py::module_ kernels = m.def_submodule("kernels", "Each kernel on NumPy arrays, for tests and benchmarks only.");
  kernels.def("gemm_f32", &gemm_floats<F32>, "out [m, >= n] (+)= a [m, >= k] . w [n, k] + bias [n]", arg("isa"),
              arg("a"), arg("w"), arg("n"), arg("out"), arg("bias") = py::none(), arg("accumulate") = false,
              arg("panel_begin") = 0, arg("panel_end") = -1, arg("n_threads") = 1);
  kernels.def("gemm_bf16", &gemm_floats<Bfloat16>, "The same on bf16 weights.", arg("isa"), arg("a"), arg("w"),
              arg("n"), arg("out"), arg("bias") = py::none(), arg("accumulate") = false, arg("panel_begin") = 0,
              arg("panel_end") = -1, arg("n_threads") = 1);
  kernels.def("gemm_w8", &gemm_w8, "out [m, >= n] (+)= (a [m, >= k] . w [n, k]) * a_scale [m] * w_scale [n] + bias [n]",
              arg("isa"), arg("a"), arg("a_scale"), arg("a_sum"), arg("w"), arg("w_scale"), arg("k"), arg("out"),
              arg("bias") = py::none(), arg("accumulate") = false, arg("panel_begin") = 0, arg("panel_end") = -1,
              arg("n_threads") = 1);
  kernels.def("gemm_w4", &gemm_w4, "The same on w4 weights.", arg("isa"), arg("a"), arg("a_scale"), arg("a_sum"),
              arg("w"), arg("w_scale"), arg("k"), arg("out"), arg("bias") = py::none(), arg("accumulate") = false,
              arg("panel_begin") = 0, arg("panel_end") = -1, arg("n_threads") = 1);
  kernels.def("embed_f32", &embed_floats<F32>, arg("isa"), arg("w"), arg("n"), arg("hidden"), arg("token"));
  kernels.def("embed_bf16", &embed_floats<Bfloat16>, arg("isa"), arg("w"), arg("n"), arg("hidden"), arg("token"));
  kernels.def("embed_w8", &embed_w8, arg("isa"), arg("w"), arg("w_scale"), arg("hidden"), arg("token"));
  register_row_kernels(kernels);
}

}  // namespace llm_decoder
