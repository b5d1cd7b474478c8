// _cuda and _cuda_host, attention: a plan with its arrays on the device, attention over pages, the merge of states.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <map>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "array_view.h"
#include "device_guard.h"
#include "device_memory.h"
#include "device_plan.h"
#include "gpu_tensor.h"
#include "merge_states_launch.h"
#include "paged_attention_launch.h"

namespace py = pybind11;

namespace llm_decoder {
namespace gpu {
namespace {

PagedTensor pages_of(const Tensor& tensor) {
  return {tensor.data, tensor.strides.at(0), tensor.strides.at(1), tensor.strides.at(2), tensor.size(0)};
}

KvScale scale_of(const ScaleTuple& tuple) {
  return {std::get<0>(tuple), pointer<const float>(std::get<1>(tuple)), pointer<const float>(std::get<2>(tuple))};
}

// Asked for once: the runtime takes its time.
const DeviceProperties& properties_of(int device) {
  static std::map<int, DeviceProperties> known;
  const auto found = known.find(device);
  return found != known.end() ? found->second : known[device] = device_properties(device);
}

// What a plan is for, fixed; and the arrays of the lengths it was made for last.
class AttentionPlan {
 public:
  AttentionPlan(int n_heads, int n_kv_heads, int head_dim, bool is_causal, int window_left, int window_right,
                int fixed_split, int device)
      : head_dim_(head_dim), device_(device), n_blocks_(kBlocksPerSm * properties_of(device).n_sms) {
    request_.n_heads = n_heads;
    request_.n_kv_heads = n_kv_heads;
    request_.is_causal = is_causal;
    request_.window_left = window_left;
    request_.window_right = window_right;
    request_.fixed_split = fixed_split;
    request_.n_blocks = n_blocks_;
    request_.wide_rows = wide_rows_for(properties_of(device));
  }

  // seq_lens int32 [B], cu_seqlens_q int32 [B + 1], n_tokens with those of no sequence, prefixes (first sequence,
  // sequences, keys).
  void update(const py::array& seq_lens, const py::array& cu_seqlens_q, int n_tokens,
              const std::vector<std::tuple<int, int, int>>& prefixes, std::uintptr_t stream) {
    PlanRequest request = request_;
    request.seq_lens = read_array<int>(seq_lens, "plan_attention", "seq_lens");
    request.cu_seqlens_q = read_array<int>(cu_seqlens_q, "plan_attention", "cu_seqlens_q");
    request.n_tokens = n_tokens;
    std::vector<SharedPrefix> shared;
    for (const auto& [first, n, n_keys] : prefixes) shared.push_back({first, n, n_keys});
    request.prefixes = shared;
    const DeviceGuard guard(device_);
    plan_.update(request, head_dim_, stream_of(stream));
  }

  const DevicePlan& plan() const { return plan_; }
  int device() const { return device_; }
  int head_dim() const { return head_dim_; }
  int n_tokens() const { return plan_.n_tokens(); }
  int n_blocks() const { return n_blocks_; }

 private:
  PlanRequest request_;
  const int head_dim_, device_, n_blocks_;
  DevicePlan plan_;
};

// lse: address of float32 [T, Hq] or 0. block_table: address of int32, its rows block_table_stride apart. Slopes and
// sinks: addresses of float32 [Hq] or 0.
void run_paged_attention(const AttentionPlan& plan, const TensorTuple& q_tuple, const TensorTuple& k_tuple,
                         const TensorTuple& v_tuple, const TensorTuple& out_tuple, std::uintptr_t lse,
                         std::uintptr_t block_table, std::int64_t block_table_stride, float scale, float softcap,
                         std::uintptr_t alibi_slopes, std::uintptr_t sinks, const ScaleTuple& k_scale,
                         const ScaleTuple& v_scale, std::uintptr_t stream) {
  const Tensor q = tensor_of(q_tuple), k = tensor_of(k_tuple), v = tensor_of(v_tuple), out = tensor_of(out_tuple);
  check_arg(q.shape.size() == 3 && q.size(0) >= plan.n_tokens(), "paged_attention", "q must have the ", plan.n_tokens(),
            " tokens of the plan");
  PagedAttentionLaunch launch;
  plan.plan().fill(launch);
  launch.q_dtype = q.dtype;
  launch.kv_dtype = k.dtype;
  PagedAttentionArgs& args = launch.args;
  args.q = q.data;
  args.q_token_stride = q.strides.at(0);
  args.q_head_stride = q.strides.at(1);
  args.out = out.data;
  args.out_token_stride = out.strides.at(0);
  args.out_head_stride = out.strides.at(1);
  args.lse = pointer<float>(lse);
  args.k = pages_of(k);
  args.v = pages_of(v);
  args.k_scale = scale_of(k_scale);
  args.v_scale = scale_of(v_scale);
  args.block_table = pointer<const int>(block_table);
  args.block_table_stride = block_table_stride;
  args.page_size = k.size(1);
  args.scale = scale;
  args.softcap = softcap;
  args.alibi_slopes = pointer<const float>(alibi_slopes);
  args.sinks = pointer<const float>(sinks);
  const DeviceGuard guard(plan.device());
  paged_attention(launch, stream_of(stream));
}

// parts: [T, H, D] each, with its address of lse, float32 [T, H], base e. lse: float32 [T, H] or 0.
void run_merge_states(const std::vector<std::pair<TensorTuple, std::uintptr_t>>& parts, const TensorTuple& out_tuple,
                      std::uintptr_t lse, int device, std::uintptr_t stream) {
  check_arg(parts.size() <= kMaxParts, "merge_states", "there must be 1 to ", kMaxParts, " parts, got ", parts.size());
  const Tensor out = tensor_of(out_tuple);
  MergeStatesLaunch launch;
  launch.dtype = out.dtype;
  MergePartsArgs& args = launch.args;
  for (const auto& [tuple, part_lse] : parts) {
    const Tensor part = tensor_of(tuple);
    args.parts[args.n_parts++] = {part.data, part.strides.at(0), part.strides.at(1), pointer<const float>(part_lse)};
  }
  args.n_tokens = out.size(0);
  args.n_heads = out.size(1);
  args.head_dim = out.size(2);
  args.out = out.data;
  args.out_token_stride = out.strides.at(0);
  args.out_head_stride = out.strides.at(1);
  args.lse = pointer<float>(lse);
  const DeviceGuard guard(device);
  merge_states(launch, stream_of(stream));
}

// A host array's copy on a device, until it goes.
class DeviceCopy {
 public:
  DeviceCopy(const py::array& array, int device, std::uintptr_t stream) {
    check_arg((array.flags() & py::array::c_style) != 0, "gpu copy", "the array must be C-contiguous");
    const DeviceGuard guard(device);
    bytes_ = DeviceArray<std::byte>(array.nbytes());
    if (array.nbytes() > 0) copy_memory(bytes_.data(), array.data(), array.nbytes(), stream_of(stream));
  }
  std::uintptr_t address() const { return reinterpret_cast<std::uintptr_t>(bytes_.data()); }

 private:
  DeviceArray<std::byte> bytes_;
};

// The bytes of a device's array without gaps, into a NumPy array, once the stream gets there.
void copy_to_host(py::array& to, std::uintptr_t from, int device, std::uintptr_t stream) {
  check_arg((to.flags() & py::array::c_style) != 0 && to.writeable(), "gpu copy",
            "the array must be C-contiguous and writeable");
  const auto n_bytes = static_cast<std::int64_t>(to.nbytes());
  void* const data = to.mutable_data();
  const DeviceGuard guard(device);
  const py::gil_scoped_release release;
  copy_memory(data, pointer<const void>(from), n_bytes, stream_of(stream));
  synchronize(stream_of(stream));
}

}  // namespace

void register_gpu_attention(py::module_& m) {
  using py::arg;
  py::class_<AttentionPlan>(m, "AttentionPlan")
      .def(py::init<int, int, int, bool, int, int, int, int>(), arg("n_heads"), arg("n_kv_heads"), arg("head_dim"),
           arg("causal"), arg("window_left"), arg("window_right"), arg("fixed_split"), arg("device"))
      .def("update", &AttentionPlan::update, arg("seq_lens"), arg("cu_seqlens_q"), arg("n_tokens"), arg("prefixes"),
           arg("stream"))
      .def_property_readonly("n_tokens", &AttentionPlan::n_tokens)
      .def_property_readonly("n_blocks", &AttentionPlan::n_blocks);
  m.def("paged_attention", &run_paged_attention, arg("plan"), arg("q"), arg("k_cache"), arg("v_cache"), arg("out"),
        arg("lse"), arg("block_table"), arg("block_table_stride"), arg("scale"), arg("softcap"), arg("alibi_slopes"),
        arg("sinks"), arg("k_scale"), arg("v_scale"), arg("stream"));
  m.def("merge_states", &run_merge_states, arg("parts"), arg("out"), arg("lse"), arg("device"), arg("stream"));
  py::class_<DeviceCopy>(m, "DeviceCopy")
      .def(py::init<const py::array&, int, std::uintptr_t>(), arg("array"), arg("device"), arg("stream"))
      .def_property_readonly("address", &DeviceCopy::address);
  m.def("copy_to_host", &copy_to_host, arg("to"), arg("address"), arg("device"), arg("stream"));
  m.attr("UNBOUNDED") = kUnbounded;
  m.attr("MAX_PARTS") = kMaxParts;
}

}  // namespace gpu
}  // namespace llm_decoder
