// _cuda and _cuda_host: mixtures of experts.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "device_guard.h"
#include "fused_moe_launch.h"
#include "gpu_tensor.h"

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

}  // namespace

void register_gpu_moe(py::module_& m);

void register_gpu_moe(py::module_& m) {
  using py::arg;
  m.def(
      "fused_moe_workspace_bytes",
      [](const MoeTuple& call) { return fused_moe_workspace_bytes(std::apply(launch_of, call)); }, arg("call"));
  m.def("fused_moe", &run_fused_moe, arg("call"), arg("out"), arg("workspace"), arg("device"), arg("stream"));
}

}  // namespace gpu
}  // namespace llm_decoder
