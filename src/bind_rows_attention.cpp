// _core.kernels, the part on rows and pages: each kernel on NumPy arrays, for tests and benchmarks only.
//
// A pool's arrays have the shapes of the tiles in paged_kv.h (P pages, H KV heads, S = page_size, D = head_dim_padded):
//   f32   k float32 [P, H, D, S]           v float32 [P, H, S, D]          no scales
//   bf16  k uint16 [P, H, D, S]            v uint16 [P, H, S, D]           no scales
//   s8    k uint8 [P, H, D / 4, S, 4]      v int8 [P, H, S / 4, D, 4]      k_scale, v_scale float32 [P, H, S]
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <map>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "array_view.h"
#include "attention_plan.h"
#include "llm_decoder/cpu_kernels.h"
#include "workspace.h"

namespace py = pybind11;

namespace llm_decoder {
namespace {

using Array = const py::array&;
using FloatArray = py::array_t<float>;

std::int32_t size_of(const py::array& array, int axis) { return static_cast<std::int32_t>(array.shape(axis)); }

auto quantize_rows(const std::string& isa, Array x) {
  const float* data = read_array<float>(x, "kernels.quantize_rows", "x", {kAny, kAny}).data;
  const std::int32_t n_rows = size_of(x, 0), n_cols = size_of(x, 1);
  const std::int64_t q_stride = k_padded(n_cols);
  py::array_t<std::int8_t> q({py::ssize_t{n_rows}, static_cast<py::ssize_t>(q_stride)});
  FloatArray scale(n_rows);
  py::array_t<std::int32_t> sum(n_rows);
  const QuantizedRows out{q.mutable_data(), q_stride, scale.mutable_data(), sum.mutable_data()};
  select_cpu_kernels(isa.c_str()).quantize_rows(data, n_cols, n_rows, n_cols, out);
  return std::make_tuple(q, scale, sum);
}

FloatArray rms_norm(const std::string& isa, Array x, Array weight, float eps) {
  const float* data = read_array<float>(x, "kernels.rms_norm", "x", {kAny, kAny}).data;
  const std::int32_t n_rows = size_of(x, 0), n_cols = size_of(x, 1);
  const float* weights = read_array<float>(weight, "kernels.rms_norm", "weight", {n_cols}).data;
  FloatArray out({n_rows, n_cols});
  select_cpu_kernels(isa.c_str()).rms_norm(data, n_cols, weights, eps, n_rows, n_cols, out.mutable_data(), n_cols);
  return out;
}

void rms_norm_in_place(const std::string& isa, py::array& x, Array weight, float eps) {
  float* data = write_array<float>(x, "kernels.rms_norm_in_place", "x", {kAny, kAny}).data;
  const std::int32_t n_rows = size_of(x, 0), n_cols = size_of(x, 1);
  const float* weights = read_array<float>(weight, "kernels.rms_norm_in_place", "weight", {n_cols}).data;
  select_cpu_kernels(isa.c_str()).rms_norm(data, n_cols, weights, eps, n_rows, n_cols, data, n_cols);
}

FloatArray silu_mul(const std::string& isa, Array gate_up) {
  const float* data = read_array<float>(gate_up, "kernels.silu_mul", "gate_up", {kAny, kAny}).data;
  const std::int32_t n_rows = size_of(gate_up, 0), n_cols = size_of(gate_up, 1) / 2;
  check_arg(size_of(gate_up, 1) == 2 * n_cols, "kernels.silu_mul", "gate_up must have an even number of columns, got ",
            size_of(gate_up, 1));
  FloatArray out({n_rows, n_cols});
  select_cpu_kernels(isa.c_str()).silu_mul(data, 2 * n_cols, n_rows, n_cols, out.mutable_data(), n_cols);
  return out;
}

// Columns from n_cols on are written by nobody: out has them too, as they were.
FloatArray layer_norm(const std::string& isa, Array x, Array weight, const std::optional<py::array>& bias, float eps) {
  constexpr char kPlace[] = "kernels.layer_norm";
  const float* data = read_array<float>(x, kPlace, "x", {kAny, kAny}).data;
  const std::int32_t n_rows = size_of(x, 0), n_cols = size_of(weight, 0);
  check_arg(n_cols <= size_of(x, 1), kPlace, "weight must have at most the columns of x, got ", n_cols);
  const float* weights = read_array<float>(weight, kPlace, "weight", {n_cols}).data;
  const float* biases = bias ? read_array<float>(*bias, kPlace, "bias", {n_cols}).data : nullptr;
  const std::int64_t stride = size_of(x, 1);
  FloatArray out = copy_to_array(data, shape_of(x));
  select_cpu_kernels(isa.c_str())
      .layer_norm(data, stride, weights, biases, eps, n_rows, n_cols, out.mutable_data(), stride);
  return out;
}

void layer_norm_in_place(const std::string& isa, py::array& x, Array weight, float eps) {
  float* data = write_array<float>(x, "kernels.layer_norm_in_place", "x", {kAny, kAny}).data;
  const std::int32_t n_rows = size_of(x, 0), n_cols = size_of(x, 1);
  const float* weights = read_array<float>(weight, "kernels.layer_norm_in_place", "weight", {n_cols}).data;
  select_cpu_kernels(isa.c_str()).layer_norm(data, n_cols, weights, nullptr, eps, n_rows, n_cols, data, n_cols);
}

// x: [n_rows, n_cols], or [n_rows, 2 * n_cols] where is_gated. out: [n_rows, n_cols + 1], the last column as `fill`.
FloatArray activate(const std::string& isa, const std::string& activation, bool is_gated, Array x, float fill) {
  constexpr char kPlace[] = "kernels.activate";
  static const std::map<std::string, Activation> kNames = {{"silu", Activation::silu},
                                                           {"gelu", Activation::gelu},
                                                           {"gelu_tanh", Activation::gelu_tanh},
                                                           {"relu", Activation::relu},
                                                           {"identity", Activation::identity}};
  const auto found = kNames.find(activation);
  check_arg(found != kNames.end(), kPlace, "no such activation: ", activation);
  const float* data = read_array<float>(x, kPlace, "x", {kAny, kAny}).data;
  const std::int32_t n_rows = size_of(x, 0), n_in = size_of(x, 1), n_cols = is_gated ? n_in / 2 : n_in;
  FloatArray out({n_rows, n_cols + 1});
  std::fill_n(out.mutable_data(), out.size(), fill);
  select_cpu_kernels(isa.c_str())
      .activate(found->second, is_gated, data, n_in, n_rows, n_cols, out.mutable_data(), n_cols + 1);
  return out;
}

void rope(const std::string& isa, py::array& x, Array cos, Array sin) {
  float* data = write_array<float>(x, "kernels.rope", "x", {kAny, kAny}).data;
  const std::int32_t half = static_cast<std::int32_t>(cos.size());
  check_arg(2 * half <= size_of(x, 1), "kernels.rope", "cos must have at most head_dim / 2 values, got ", half);
  const float* cosines = read_array<float>(cos, "kernels.rope", "cos", {half}).data;
  const float* sines = read_array<float>(sin, "kernels.rope", "sin", {half}).data;
  select_cpu_kernels(isa.c_str()).rope(data, size_of(x, 0), size_of(x, 1), half, cosines, sines);
}

std::tuple<float, float, bool> log_sum_exp(const std::string& isa, Array x) {
  const Span<const float> row = read_array<float>(x, "kernels.log_sum_exp", "x");
  float max = 0.0f;
  bool is_finite = false;
  const float value =
      select_cpu_kernels(isa.c_str()).log_sum_exp(row.data, static_cast<std::int32_t>(row.size), &max, &is_finite);
  return {value, max, is_finite};
}

std::int32_t index_of_max(const std::string& isa, Array x, float max) {
  const Span<const float> row = read_array<float>(x, "kernels.index_of_max", "x");
  return select_cpu_kernels(isa.c_str()).index_of_max(row.data, static_cast<std::int32_t>(row.size), max);
}

PagedKvView view_of(py::array& k, py::array& v, py::object& k_scale, py::object& v_scale, std::int32_t head_dim,
                    const char* place) {
  PagedKvView view;
  view.dtype = py::isinstance<py::array_t<float>>(k)           ? Dtype::f32
               : py::isinstance<py::array_t<std::uint16_t>>(k) ? Dtype::bf16
                                                               : Dtype::s8;
  const bool is_s8 = view.dtype == Dtype::s8;
  check_arg(k.ndim() == (is_s8 ? 5 : 4), place, "k must have shape ", is_s8 ? "[P, H, D / 4, S, 4]" : "[P, H, D, S]",
            ", got ", k.ndim(), " axes");
  const std::int32_t n_pages = size_of(k, 0);
  view.page_size = size_of(k, 3);
  view.n_kv_heads = size_of(k, 1);
  view.head_dim = head_dim;
  view.head_dim_padded = static_cast<std::int32_t>(round_up(head_dim, kHeadDimAlign));
  const std::int32_t heads = view.n_kv_heads, hd = view.head_dim_padded, page_size = view.page_size;
  check_arg(page_size > 0 && page_size % 16 == 0, place, "page_size must be a multiple of 16, got ", page_size);
  view.head_stride_bytes = static_cast<std::int64_t>(hd) * page_size * element_bytes(view.dtype);
  view.page_stride_bytes = view.head_stride_bytes * heads;
  const Shape k_shape = {n_pages, heads, hd, page_size}, v_shape = {n_pages, heads, page_size, hd};
  if (view.dtype == Dtype::f32) {
    view.k = reinterpret_cast<std::byte*>(write_array<float>(k, place, "k", k_shape).data);
    view.v = reinterpret_cast<std::byte*>(write_array<float>(v, place, "v", v_shape).data);
    return view;
  }
  if (view.dtype == Dtype::bf16) {
    view.k = reinterpret_cast<std::byte*>(write_array<std::uint16_t>(k, place, "k", k_shape).data);
    view.v = reinterpret_cast<std::byte*>(write_array<std::uint16_t>(v, place, "v", v_shape).data);
    return view;
  }
  py::array k_scales = py::cast<py::array>(k_scale), v_scales = py::cast<py::array>(v_scale);
  view.k = reinterpret_cast<std::byte*>(
      write_array<std::uint8_t>(k, place, "k", {n_pages, heads, hd / 4, page_size, 4}).data);
  view.v = reinterpret_cast<std::byte*>(
      write_array<std::int8_t>(v, place, "v", {n_pages, heads, page_size / 4, hd, 4}).data);
  view.scale_stride_floats = std::int64_t{heads} * page_size;
  view.k_scale = write_array<float>(k_scales, place, "k_scale", {n_pages, heads, page_size}).data;
  view.v_scale = write_array<float>(v_scales, place, "v_scale", {n_pages, heads, page_size}).data;
  return view;
}

// key, value: float32 [n_tokens, H, head_dim], written from `position` of the sequence on.
void append_kv(const std::string& isa, py::array& k, py::array& v, py::object k_scale, py::object v_scale,
               Array block_table, std::int32_t position, Array key, Array value) {
  const char* place = "kernels.append_kv";
  check_arg(key.ndim() == 3, place, "key must have shape [n_tokens, H, head_dim], got ", key.ndim(), " axes");
  const PagedKvView view = view_of(k, v, k_scale, v_scale, size_of(key, 2), place);
  const Shape shape = {kAny, view.n_kv_heads, view.head_dim};
  const float* keys = read_array<float>(key, place, "key", shape).data;
  const float* values = read_array<float>(value, place, "value", {size_of(key, 0), shape[1], shape[2]}).data;
  const Span<const std::int32_t> pages = read_array<std::int32_t>(block_table, place, "block_table");
  const CpuKernels& kernels = select_cpu_kernels(isa.c_str());
  const std::int64_t token_stride = static_cast<std::int64_t>(view.n_kv_heads) * view.head_dim;
  for (std::int32_t token = 0; token < size_of(key, 0); ++token) {
    const std::int32_t at = position + token;
    kernels.append_kv(view, pages[static_cast<std::size_t>(at / view.page_size)], at % view.page_size,
                      keys + token * token_stride, values + token * token_stride);
  }
}

std::vector<QuerySequence> sequences_of(Array block_table, Array cu_seqlens_q, Array position_begin,
                                        const char* place) {
  const Span<const std::int32_t> positions = read_array<std::int32_t>(position_begin, place, "position_begin");
  const py::ssize_t n = static_cast<py::ssize_t>(positions.size);
  const std::int32_t* tables = read_array<std::int32_t>(block_table, place, "block_table", {n, kAny}).data;
  const std::int32_t* begins = read_array<std::int32_t>(cu_seqlens_q, place, "cu_seqlens_q", {n + 1}).data;
  std::vector<QuerySequence> sequences;
  for (py::ssize_t i = 0; i < n; ++i) {
    sequences.push_back({tables + i * block_table.shape(1), begins[i], begins[i + 1] - begins[i],
                         positions[static_cast<std::size_t>(i)]});
  }
  return sequences;
}

// How the decoder cuts attention: [(kv_head, [(token_begin, n_tokens), ...], page ids), ...].
py::list attention_items(Array block_table, Array cu_seqlens_q, Array position_begin, std::int32_t n_heads,
                         std::int32_t n_kv_heads, std::int32_t page_size, std::int32_t window, int n_threads) {
  const std::vector<QuerySequence> sequences =
      sequences_of(block_table, cu_seqlens_q, position_begin, "kernels.attention_items");
  AttentionPlan plan;
  plan.make({n_heads, n_kv_heads, page_size, window, n_threads}, sequences);
  py::list items;
  for (const AttentionItem& item : plan.items) {
    py::list runs, pages;
    std::int32_t see_begin = std::numeric_limits<std::int32_t>::max(), see_end = 0;
    for (std::int32_t i = item.run_begin; i < item.run_begin + item.n_runs; ++i) {
      const QueryRun& run = plan.runs[static_cast<std::size_t>(i)];
      runs.append(std::make_tuple(run.token_begin, run.n_tokens));
      see_begin = std::min(see_begin, window > 0 ? std::max(run.position_begin - window + 1, 0) : 0);
      see_end = std::max(see_end, run.position_begin + run.n_tokens);
    }
    const std::int32_t first = std::max(item.span_begin * pages_of_span(page_size), see_begin / page_size);
    const std::int32_t end =
        std::min(item.span_end * pages_of_span(page_size), static_cast<std::int32_t>(ceil_div(see_end, page_size)));
    for (std::int32_t page = first; page < end; ++page) pages.append(item.block_table[page]);
    items.append(std::make_tuple(item.kv_head, runs, pages));
  }
  return items;
}

// q: float32 [T, n_heads, head_dim], the tokens of B sequences one after the other, cu_seqlens_q int32 [B + 1] where
// each begins, position_begin int32 [B] the position of its first token here, block_table int32 [B, M]. Planned for
// n_threads and run on one, sharing pages, or with n_threads = 0 one item for each sequence and KV head. Scratch,
// states and out begin as NaN.
FloatArray paged_attention(const std::string& isa, Array q, py::array& k, py::array& v, py::object k_scale,
                           py::object v_scale, Array block_table, Array cu_seqlens_q, Array position_begin, float scale,
                           std::int32_t window, int n_threads) {
  const char* place = "kernels.paged_attention";
  AttentionArgs args;
  args.q = read_array<float>(q, place, "q", {kAny, kAny, kAny}).data;
  args.kv = view_of(k, v, k_scale, v_scale, size_of(q, 2), place);
  args.n_heads = size_of(q, 1);
  check_arg(args.n_heads % args.kv.n_kv_heads == 0, place, "n_heads must be a multiple of ", args.kv.n_kv_heads,
            ", got ", args.n_heads);
  args.scale = scale;
  args.window = window;
  args.q_stride = args.out_stride = static_cast<std::int64_t>(args.n_heads) * args.kv.head_dim;
  FloatArray out({q.shape(0), q.shape(1), q.shape(2)});
  args.out = out.mutable_data();
  std::memset(args.out, 0xff, static_cast<std::size_t>(out.nbytes()));

  const AttentionShape shape{args.n_heads, args.kv.n_kv_heads, args.kv.page_size, window, std::max(n_threads, 1)};
  const std::vector<QuerySequence> sequences = sequences_of(block_table, cu_seqlens_q, position_begin, place);
  const CpuKernels& kernels = select_cpu_kernels(isa.c_str());
  const py::gil_scoped_release release;
  AlignedBuffer scratch(kernels.attention_scratch_bytes(args.kv, args.n_heads));
  std::memset(scratch.as<std::byte>(), 0xff, scratch.n_bytes());
  const auto run = [&](const AttentionPlan& plan) {
    const std::int64_t n_floats = plan.n_states * args.n_heads * state_floats(args.kv.head_dim_padded);
    AlignedBuffer states(static_cast<std::size_t>(n_floats) * sizeof(float));
    std::memset(states.as<std::byte>(), 0xff, states.n_bytes());
    args.runs = plan.runs.data();
    args.states = states.as<float>();
    const AttentionItem* end = plan.items.data() + plan.items.size();
    for (const AttentionItem* item = plan.items.data(); item != end; ++item) {
      kernels.paged_attention(args, *item, item + 1 == end ? nullptr : item + 1, scratch.as<std::byte>());
    }
    for (const QueryRun& merge : plan.merges) kernels.merge_states(args, merge, scratch.as<std::byte>());
  };
  AttentionPlan plan;
  if (n_threads > 0) {
    plan.make(shape, sequences);
    run(plan);
  } else {
    for (const QuerySequence& sequence : sequences) {
      plan.make(shape, {sequence});
      run(plan);
    }
  }
  return out;
}

}  // namespace

void register_row_kernels(py::module_& kernels);

void register_row_kernels(py::module_& kernels) {
  using py::arg;
  kernels.def("quantize_rows", &quantize_rows, arg("isa"), arg("x"));
  kernels.def("rms_norm", &rms_norm, arg("isa"), arg("x"), arg("weight"), arg("eps"));
  kernels.def("rms_norm_in_place", &rms_norm_in_place, arg("isa"), arg("x"), arg("weight"), arg("eps"));
  kernels.def("silu_mul", &silu_mul, arg("isa"), arg("gate_up"));
  kernels.def("layer_norm", &layer_norm, arg("isa"), arg("x"), arg("weight"), arg("bias").none(true), arg("eps"));
  kernels.def("layer_norm_in_place", &layer_norm_in_place, arg("isa"), arg("x"), arg("weight"), arg("eps"));
  kernels.def("activate", &activate, arg("isa"), arg("activation"), arg("is_gated"), arg("x"), arg("fill"));
  kernels.def("rope", &rope, "in place", arg("isa"), arg("x"), arg("cos"), arg("sin"));
  kernels.def("log_sum_exp", &log_sum_exp, "(log(sum(exp(x))), max, is_finite)", arg("isa"), arg("x"));
  kernels.def("index_of_max", &index_of_max, arg("isa"), arg("x"), arg("max"));
  kernels.def("append_kv", &append_kv, arg("isa"), arg("k"), arg("v"), arg("k_scale"), arg("v_scale"),
              arg("block_table"), arg("position"), arg("key"), arg("value"));
  kernels.def("paged_attention", &paged_attention, arg("isa"), arg("q"), arg("k"), arg("v"), arg("k_scale"),
              arg("v_scale"), arg("block_table"), arg("cu_seqlens_q"), arg("position_begin"), arg("scale"),
              arg("window") = 0, arg("n_threads") = 0);
  kernels.def("attention_items", &attention_items, arg("block_table"), arg("cu_seqlens_q"), arg("position_begin"),
              arg("n_heads"), arg("n_kv_heads"), arg("page_size"), arg("window") = 0, arg("n_threads") = 1);
}

}  // namespace llm_decoder
