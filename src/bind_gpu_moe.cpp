// _cuda and _cuda_host: mixtures of experts.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "device_guard.h"
#include "fused_moe_launch.h"
#include "gpu_tensor.h"
#include "moe_routing_launch.h"
#include "moe_sort_launch.h"

namespace py = pybind11;

namespace llm_decoder {
namespace gpu {
namespace {

// hidden [T, K], w1 [E, 2 N, K], w2 [E, K, N]; scales: addresses of float32 [E, 2 N], [E, K] or 0; addresses of float32
// and int32 [T, top_k]; expert_map: address of int32 [n_ids] or 0.
FusedMoeLaunch launch_of(const TensorTuple& hidden_tuple, const TensorTuple& w1_tuple, const TensorTuple& w2_tuple,
                         std::uintptr_t w1_scale, std::uintptr_t w2_scale, std::uintptr_t topk_weights,
                         std::uintptr_t topk_ids, int top_k, std::uintptr_t expert_map, int n_ids, int tile_rows) {
  const Tensor hidden = tensor_of(hidden_tuple), w1 = tensor_of(w1_tuple), w2 = tensor_of(w2_tuple);
  FusedMoeLaunch launch;
  launch.dtype = hidden.dtype;
  launch.weight_dtype = w1.dtype;
  launch.hidden = hidden.data;
  launch.hidden_stride = hidden.strides.at(0);
  launch.w1 = w1.data;
  launch.w2 = w2.data;
  launch.w1_scale = pointer<const float>(w1_scale);
  launch.w2_scale = pointer<const float>(w2_scale);
  launch.topk_weights = pointer<const float>(topk_weights);
  launch.topk_ids = pointer<const int>(topk_ids);
  launch.expert_map = pointer<const int>(expert_map);
  launch.n_ids = n_ids;
  launch.n_tokens = hidden.size(0);
  launch.top_k = top_k;
  launch.n_experts = w1.size(0);
  launch.n = w2.size(2);
  launch.k = hidden.size(1);
  launch.tile_rows = tile_rows;
  return launch;
}

// What every launch is made of, packed as one argument.
using MoeTuple = std::tuple<TensorTuple, TensorTuple, TensorTuple, std::uintptr_t, std::uintptr_t, std::uintptr_t,
                            std::uintptr_t, int, std::uintptr_t, int, int>;

void run_fused_moe(const MoeTuple& call, const TensorTuple& out_tuple, std::uintptr_t workspace, int device,
                   std::uintptr_t stream) {
  const Tensor out = tensor_of(out_tuple);
  FusedMoeLaunch launch = std::apply(launch_of, call);
  launch.out = out.data;
  launch.out_stride = out.strides.at(0);
  launch.workspace = pointer<void>(workspace);
  const DeviceGuard guard(device);
  fused_moe(launch, stream_of(stream));
}

// logits [T, E]; addresses of bias float32 [E] or 0, weights float32 and ids int32 [T, top_k].
void run_moe_routing(const TensorTuple& logits_tuple, std::uintptr_t bias, std::uintptr_t weights, std::uintptr_t ids,
                     int top_k, bool is_sigmoid, bool is_normalized, float scale, int n_groups, int top_k_groups,
                     int group_best, int device, std::uintptr_t stream) {
  const Tensor logits = tensor_of(logits_tuple);
  MoeRoutingArgs args;
  args.logits = logits.data;
  args.logits_stride = logits.strides.at(0);
  args.bias = pointer<const float>(bias);
  args.weights = pointer<float>(weights);
  args.ids = pointer<int>(ids);
  args.n_tokens = logits.size(0);
  args.n_experts = logits.size(1);
  args.top_k = top_k;
  args.is_sigmoid = is_sigmoid;
  args.is_normalized = is_normalized;
  args.scale = scale;
  args.n_groups = n_groups;
  args.top_k_groups = top_k_groups;
  args.group_best = group_best;
  const DeviceGuard guard(device);
  moe_routing(logits.dtype, args, stream_of(stream));
}

// Addresses of int32: ids [n_pairs], expert_map [n_ids] or 0, sorted_pairs [n_pairs], tiles [max_moe_tiles, 4], n_tiles
// [1], workspace [moe_sort_workspace(n_pairs, n_experts)].
void run_moe_sort(std::uintptr_t ids, int n_pairs, std::uintptr_t expert_map, int n_ids, int n_experts, int tile_rows,
                  std::uintptr_t sorted_pairs, std::uintptr_t tiles, std::uintptr_t n_tiles, std::uintptr_t workspace,
                  int device, std::uintptr_t stream) {
  static_assert(sizeof(MoeTile) == 4 * sizeof(int), "Python sees tiles as rows of four");
  MoeSortArgs args;
  args.pairs.ids = pointer<const int>(ids);
  args.pairs.expert_map = pointer<const int>(expert_map);
  args.pairs.n_pairs = n_pairs;
  args.pairs.n_ids = n_ids;
  args.pairs.n_experts = n_experts;
  args.tile_rows = tile_rows;
  args.sorted_pairs = pointer<int>(sorted_pairs);
  args.tiles = pointer<MoeTile>(tiles);
  args.n_tiles = pointer<int>(n_tiles);
  args.expert_begin = pointer<int>(workspace);
  args.chunk_begin = args.expert_begin + n_experts;
  const DeviceGuard guard(device);
  moe_sort(args, stream_of(stream));
}

}  // namespace

void register_gpu_moe(py::module_& m);

void register_gpu_moe(py::module_& m) {
  using py::arg;
  m.def(
      "fused_moe_workspace_bytes",
      [](const MoeTuple& call) { return fused_moe_workspace_bytes(std::apply(launch_of, call)); }, arg("call"));
  m.def("fused_moe", &run_fused_moe, arg("call"), arg("out"), arg("workspace"), arg("device"), arg("stream"));
  m.def("moe_routing", &run_moe_routing, arg("logits"), arg("bias"), arg("weights"), arg("ids"), arg("top_k"),
        arg("is_sigmoid"), arg("is_normalized"), arg("scale"), arg("n_groups"), arg("top_k_groups"), arg("group_best"),
        arg("device"), arg("stream"));
  m.def("moe_sort", &run_moe_sort, arg("ids"), arg("n_pairs"), arg("expert_map"), arg("n_ids"), arg("n_experts"),
        arg("tile_rows"), arg("sorted_pairs"), arg("tiles"), arg("n_tiles"), arg("workspace"), arg("device"),
        arg("stream"));
  m.def(
      "moe_sort_workspace",
      [](int n_pairs, int n_experts) { return (std::int64_t{n_sort_chunks(n_pairs)} + 1) * n_experts; }, arg("n_pairs"),
      arg("n_experts"));
  m.attr("MAX_EXPERTS") = kMaxLocalExperts;
  m.attr("MAX_TOP_K") = kMaxTopK;
  m.attr("MAX_EXPERT_GROUPS") = kMaxExpertGroups;
}

}  // namespace gpu
}  // namespace llm_decoder
