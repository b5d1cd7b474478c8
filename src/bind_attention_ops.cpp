// _core.*_op, attention: llm_decoder.ops on NumPy arrays, checked at this door. 16-bit floats come as uint16, fp8 as
// uint8, with the name of their dtype beside them; axes may have any strides but the last.
#include <cmath>
#include <string>
#include <vector>

#include "append_op.h"
#include "attention_ops.h"
#include "op_arrays.h"

namespace llm_decoder {

void register_attention_ops(py::module_& m);

namespace {

using Array = const py::array&;

HeadRows heads_of(const py::array& array, Dtype dtype, const char* place, const char* name, const Shape& need) {
  return {dtype, strided(array, dtype, place, name, need), array.strides(0), array.strides(1)};
}

NhdTensor tensor_of(const py::array& array, Dtype dtype, const char* place, const char* name, const Shape& need) {
  NhdTensor tensor;
  tensor.data = strided(array, dtype, place, name, need);
  tensor.page_stride_bytes = array.strides(0);
  tensor.slot_stride_bytes = array.strides(1);
  tensor.head_stride_bytes = array.strides(2);
  return tensor;
}

// None, a float, float32 [n_kv_heads] or [n_pages, page_size, n_kv_heads], which must outlive the call as `all` must.
// Returns whether there is one a slot.
bool add_scale(NhdTensor& tensor, const py::object& scale, float& all, const Shape& cache, const char* place,
               const char* name) {
  if (scale.is_none()) return false;
  const auto check_sign = [&](float value) {
    check_arg(value >= 0.0f && std::isfinite(value), place, name, " must be finite and not negative, got ", value);
  };
  if (!py::isinstance<py::array>(scale)) {
    all = py::cast<float>(scale);
    check_sign(all);
    tensor.scale = &all;
    return false;
  }
  const py::array array = py::reinterpret_borrow<py::array>(scale);
  const bool is_per_slot = array.ndim() == 3;
  const Shape need = is_per_slot ? cache : Shape{cache[2]};
  check_arg(shape_matches(array, need), place, name, " must be a float or have shape ", shape_text({cache[2]}), " or ",
            shape_text(cache), ", got ", shape_text(shape_of(array)));
  tensor.scale = reinterpret_cast<float*>(strided(array, Dtype::f32, place, name, need));
  const auto stride = [&](int axis) { return array.strides(axis) / array.itemsize(); };
  tensor.scale_head_stride = stride(is_per_slot ? 2 : 0);
  if (is_per_slot) {
    tensor.scale_page_stride = stride(0);
    tensor.scale_slot_stride = stride(1);
  } else {
    for (py::ssize_t head = 0; head < cache[2]; ++head) check_sign(tensor.scale[head * tensor.scale_head_stride]);
  }
  return is_per_slot;
}

// nhd pages and the scales that are one float.
struct PoolArrays {
  NhdPool pool;
  float k_scale = 1.0f, v_scale = 1.0f;

  PoolArrays(Array k_cache, Array v_cache, const std::string& kv_dtype, const py::object& k_scales,
             const py::object& v_scales, const char* place) {
    const Dtype dtype = dtype_named(kv_dtype, place, "kv_dtype", kPageDtypes);
    pool.pages.dtype = dtype;
    pool.pages.k = tensor_of(k_cache, dtype, place, "k_cache", {kAny, kAny, kAny, kAny});
    const Shape shape = shape_of(k_cache);
    pool.pages.v = tensor_of(v_cache, dtype, place, "v_cache", shape);
    check_arg(shape[1] > 0 && shape[1] % 16 == 0, place,
              "pages must have a multiple of 16 slots (axis 1 of k_cache), got ", shape[1]);
    check_arg(shape[2] > 0, place, "k_cache must have at least one head (axis 2), got 0");
    check_arg(shape[3] > 0 && shape[3] % 8 == 0 && shape[3] <= 256, place,
              "head_dim (axis 3 of k_cache) must be a multiple of 8 up to 256, got ", shape[3]);
    pool.n_pages = shape[0];
    pool.page_size = static_cast<std::int32_t>(shape[1]);
    pool.n_kv_heads = static_cast<std::int32_t>(shape[2]);
    pool.head_dim = static_cast<std::int32_t>(shape[3]);
    const Shape slots = {shape[0], shape[1], shape[2]};
    pool.makes_k_scale = add_scale(pool.pages.k, k_scales, k_scale, slots, place, "k_scale");
    pool.makes_v_scale = add_scale(pool.pages.v, v_scales, v_scale, slots, place, "v_scale");
  }
  PoolArrays(const PoolArrays&) = delete;  // the pool points here
};

void py_paged_attention(Array q, const std::string& q_dtype, Array k_cache, Array v_cache, const std::string& kv_dtype,
                        Array block_table, Array seq_lens, Array cu_seqlens_q, float scale, bool causal,
                        std::int32_t window_left, std::int32_t window_right, float softcap,
                        const py::object& alibi_slopes, const py::object& sinks, const py::object& k_scale,
                        const py::object& v_scale, py::array& out, const py::object& lse, int n_threads,
                        const std::string& isa) {
  const char* place = "ops.paged_attention";
  const PoolArrays arrays(k_cache, v_cache, kv_dtype, k_scale, v_scale, place);
  PagedAttentionCall call;
  call.pool = arrays.pool;
  const Dtype dtype = dtype_named(q_dtype, place, "q_dtype", kRowDtypes);
  call.q = heads_of(q, dtype, place, "q", {kAny, kAny, call.pool.head_dim});
  call.out = heads_of(out, dtype, place, "out", shape_of(q));
  check_writeable(out, place, "out");
  call.n_tokens = static_cast<std::int32_t>(q.shape(0));
  call.n_heads = static_cast<std::int32_t>(q.shape(1));
  check_arg(call.n_heads > 0 && call.n_heads % call.pool.n_kv_heads == 0, place,
            "the heads of q must be a multiple of the ", call.pool.n_kv_heads, " of k_cache, got ", call.n_heads);
  if (!lse.is_none()) {
    py::array lse_array = py::cast<py::array>(lse);
    call.lse = write_array<float>(lse_array, place, "lse", {q.shape(0), q.shape(1)}).data;
  }
  const Span<const std::int32_t> lengths = read_array<std::int32_t>(seq_lens, place, "seq_lens");
  const py::ssize_t n_sequences = static_cast<py::ssize_t>(lengths.size);
  call.n_sequences = static_cast<std::int32_t>(n_sequences);
  call.seq_lens = lengths.data;
  call.cu_seqlens_q = read_array<std::int32_t>(cu_seqlens_q, place, "cu_seqlens_q", {n_sequences + 1}).data;
  call.block_table = read_array<std::int32_t>(block_table, place, "block_table", {n_sequences, kAny}).data;
  call.table_width = static_cast<std::int32_t>(block_table.shape(1));
  check_arg(window_left >= kNoWindow && window_right >= kNoWindow, place,
            "windows must be positions, or -1 for no window; got ", window_left, ", ", window_right);
  check_arg(softcap >= 0.0f && std::isfinite(softcap), place, "softcap must be finite, 0 for none; got ", softcap);
  call.scale = scale;
  call.is_causal = causal;
  call.window_left = window_left;
  call.window_right = window_right;
  call.softcap = softcap;
  call.alibi_slopes = optional_array<float>(alibi_slopes, place, "alibi_slopes", {q.shape(1)});
  call.sinks = optional_array<float>(sinks, place, "sinks", {q.shape(1)});
  const CpuKernels& kernels = select_cpu_kernels(isa.c_str());
  run_op(place, n_threads, [&](ThreadPool& pool) { paged_attention_op(call, kernels, pool); });
}

void py_append_kv(Array key, Array value, const std::string& dtype, py::array& k_cache, py::array& v_cache,
                  const std::string& kv_dtype, Array slot_mapping, const py::object& k_scale, const py::object& v_scale,
                  int n_threads, const py::object& q, const py::object& q_norm, const py::object& k_norm,
                  float norm_eps, const py::object& cos, const py::object& sin, bool interleaved,
                  const std::string& isa) {
  const char* place = "ops.append_kv";
  const PoolArrays arrays(k_cache, v_cache, kv_dtype, k_scale, v_scale, place);
  AppendKvCall call;
  call.pool = arrays.pool;
  check_writeable(k_cache, place, "k_cache");
  check_writeable(v_cache, place, "v_cache");
  const bool makes_scales = call.pool.makes_k_scale || call.pool.makes_v_scale;
  check_arg(!makes_scales || call.pool.pages.dtype == Dtype::s8 || call.pool.pages.dtype == Dtype::fp8, place,
            "scales of every slot are made for int8 and fp8 pages, got ", kv_dtype, "; pass None");
  if (call.pool.makes_k_scale) check_writeable(py::cast<py::array>(k_scale), place, "k_scale");
  if (call.pool.makes_v_scale) check_writeable(py::cast<py::array>(v_scale), place, "v_scale");
  const Dtype row_dtype = dtype_named(dtype, place, "dtype", kRowDtypes);
  call.key = heads_of(key, row_dtype, place, "key", {kAny, call.pool.n_kv_heads, call.pool.head_dim});
  call.value = heads_of(value, row_dtype, place, "value", shape_of(key));
  call.slots = read_array<std::int64_t>(slot_mapping, place, "slot_mapping", {key.shape(0)}).data;
  call.n_tokens = key.shape(0);
  if (!q.is_none()) {
    const py::array queries = py::cast<py::array>(q);
    call.q = heads_of(queries, row_dtype, place, "q", {key.shape(0), kAny, call.pool.head_dim});
    check_writeable(queries, place, "q");
    call.n_heads = static_cast<std::int32_t>(queries.shape(1));
  }
  call.q_norm = optional_array<float>(q_norm, place, "q_norm", {call.pool.head_dim});
  call.k_norm = optional_array<float>(k_norm, place, "k_norm", {call.pool.head_dim});
  call.norm_eps = norm_eps;
  call.cos = optional_array<float>(cos, place, "cos", {key.shape(0), kAny});
  if (call.cos != nullptr) {
    const py::ssize_t half = py::cast<py::array>(cos).shape(1);
    check_arg(2 * half <= call.pool.head_dim, place, "cos must have at most head_dim / 2 = ", call.pool.head_dim / 2,
              " columns, got ", half);
    call.sin = optional_array<float>(sin, place, "sin", {key.shape(0), half});
    check_arg(call.sin != nullptr, place, "sin must be there beside cos, got None");
    call.half = static_cast<std::int32_t>(half);
  }
  call.is_interleaved = interleaved;
  const CpuKernels& kernels = select_cpu_kernels(isa.c_str());
  run_op(place, n_threads, [&](ThreadPool& pool) { append_kv_op(call, kernels, pool); });
}

void py_merge_states(const std::vector<py::array>& outs, const std::vector<py::array>& lses, const std::string& dtype,
                     py::array& out, const py::object& lse, int n_threads) {
  const char* place = "ops.merge_states";
  check_arg(!outs.empty() && outs.size() == lses.size(), place, "outs and lses must be as many, and one or more; got ",
            outs.size(), " and ", lses.size());
  const Dtype row_dtype = dtype_named(dtype, place, "dtype", kRowDtypes);
  const HeadRows rows = heads_of(out, row_dtype, place, "out", {kAny, kAny, kAny});
  check_writeable(out, place, "out");
  const Shape shape = shape_of(out);
  std::vector<PartialAttention> parts;
  for (std::size_t i = 0; i < outs.size(); ++i) {
    parts.push_back({heads_of(outs[i], row_dtype, place, "each of outs", shape),
                     read_array<float>(lses[i], place, "each of lses", {shape[0], shape[1]}).data});
  }
  float* merged_lse = nullptr;
  if (!lse.is_none()) {
    py::array lse_array = py::cast<py::array>(lse);
    merged_lse = write_array<float>(lse_array, place, "lse", {shape[0], shape[1]}).data;
  }
  run_op(place, n_threads, [&](ThreadPool& pool) {
    merge_states_op(parts.data(), static_cast<std::int32_t>(parts.size()), shape[0],
                    static_cast<std::int32_t>(shape[1]), static_cast<std::int32_t>(shape[2]), rows, merged_lse, pool);
  });
}

}  // namespace

void register_attention_ops(py::module_& m) {
  using py::arg;
  m.def("paged_attention_op", &py_paged_attention,
        "llm_decoder.ops.paged_attention on the CPU, into out [T, Hq, D] and lse (float32 [T, Hq] or None).\n\n"
        "q [T, Hq, D] and out are of q_dtype, k_cache and v_cache [P, S, Hkv, D] of kv_dtype: float32, bfloat16 and "
        "float16 (as uint16),\nfp8 (e4m3 as uint8), int8. block_table int32 [B, M], seq_lens int32 [B], cu_seqlens_q "
        "int32 [B + 1]. Windows: -1 for none.\nalibi_slopes, sinks: float32 [Hq] or None. k_scale, v_scale: None, a "
        "float, float32 [Hkv] or [P, S, Hkv]; never negative.\nint8 pages are multiplied with queries in int8 and "
        "with probabilities in 8 bits a page, as in INT8Decoder. ValueError for what\ndoes not fit.",
        arg("q"), arg("q_dtype"), arg("k_cache"), arg("v_cache"), arg("kv_dtype"), arg("block_table"), arg("seq_lens"),
        arg("cu_seqlens_q"), arg("scale"), arg("causal"), arg("window_left"), arg("window_right"), arg("softcap"),
        arg("alibi_slopes").none(true), arg("sinks").none(true), arg("k_scale").none(true), arg("v_scale").none(true),
        arg("out"), arg("lse").none(true), arg("n_threads"), arg("isa") = "auto");
  m.def("append_kv_op", &py_append_kv,
        "key and value [T, Hkv, D] of `dtype` into k_cache and v_cache [P, S, Hkv, D] of kv_dtype, token i into slot "
        "slot_mapping[i]\n(int64 [T]: page * S + slot, negative: nowhere; no slot twice).\n\n"
        "A stored element is x / scale. k_scale, v_scale: None, a float or float32 [Hkv], or float32 [P, S, Hkv], "
        "which receives\nmax|x| / 127 (int8) or / 448 (fp8) of each slot and head. q [T, Hq, D] of `dtype`, or None, "
        "is changed in place.\nQueries and keys are normed before (q_norm, k_norm: float32 [D] or None), then rotated "
        "(cos, sin: float32 [T, half] or None).\nValueError for what does not fit.",
        arg("key"), arg("value"), arg("dtype"), arg("k_cache"), arg("v_cache"), arg("kv_dtype"), arg("slot_mapping"),
        arg("k_scale").none(true), arg("v_scale").none(true), arg("n_threads"), arg("q") = py::none(),
        arg("q_norm") = py::none(), arg("k_norm") = py::none(), arg("norm_eps") = 0.0f, arg("cos") = py::none(),
        arg("sin") = py::none(), arg("interleaved") = false, arg("isa") = "auto");
  m.def("merge_states_op", &py_merge_states,
        "What attention over all keys gives, from what it gave over parts of them: outs, arrays [T, H, D] of `dtype`, "
        "and lses, float32\n[T, H] (base e), as many; into out and lse (or None). Where an lse is -inf its out may be "
        "anything.",
        arg("outs"), arg("lses"), arg("dtype"), arg("out"), arg("lse").none(true), arg("n_threads"));
}

}  // namespace llm_decoder
