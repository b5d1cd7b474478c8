// _cuda and _cuda_host, pages: keys and values into their slots, pages copied and swapped.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "append_kv_launch.h"
#include "array_view.h"
#include "copy_blocks_launch.h"
#include "device_guard.h"
#include "device_memory.h"
#include "gpu_tensor.h"
#include "swap_blocks.h"

namespace py = pybind11;

namespace llm_decoder {
namespace gpu {
namespace {

AppendTarget target_of(const Tensor& pages, const ScaleTuple& scale) {
  AppendTarget target;
  target.data = pages.data;
  target.page_stride = pages.strides.at(0);
  target.slot_stride = pages.strides.at(1);
  target.head_stride = pages.strides.at(2);
  target.scale = std::get<0>(scale);
  target.per_head = pointer<const float>(std::get<1>(scale));
  target.per_slot = pointer<float>(std::get<2>(scale));
  return target;
}

// key, value [T, Hkv, D], pages [P, S, Hkv, D], q [T, Hq, D] or None; addresses of slot_mapping int64 [T], and, or 0,
// of q_norm, k_norm float32 [D] and cos, sin float32 [T, half].
void run_append_kv(const TensorTuple& key_tuple, const TensorTuple& value_tuple, const TensorTuple& k_tuple,
                   const TensorTuple& v_tuple, std::uintptr_t slot_mapping, const ScaleTuple& k_scale,
                   const ScaleTuple& v_scale, const std::optional<TensorTuple>& q_tuple, std::uintptr_t q_norm,
                   std::uintptr_t k_norm, float norm_eps, std::uintptr_t cos, std::uintptr_t sin, int half,
                   bool interleaved, int device, std::uintptr_t stream) {
  const Tensor key = tensor_of(key_tuple), value = tensor_of(value_tuple);
  const Tensor k = tensor_of(k_tuple), v = tensor_of(v_tuple);
  AppendKvLaunch launch;
  launch.dtype = key.dtype;
  launch.page_dtype = k.dtype;
  AppendKvArgs& args = launch.args;
  args.key = key.data;
  args.key_token_stride = key.strides.at(0);
  args.key_head_stride = key.strides.at(1);
  args.value = value.data;
  args.value_token_stride = value.strides.at(0);
  args.value_head_stride = value.strides.at(1);
  args.slot_mapping = pointer<const std::int64_t>(slot_mapping);
  args.k_pages = target_of(k, k_scale);
  args.v_pages = target_of(v, v_scale);
  args.n_tokens = key.size(0);
  args.n_kv_heads = key.size(1);
  args.head_dim = key.size(2);
  args.page_size = k.size(1);
  if (q_tuple) {
    const Tensor q = tensor_of(*q_tuple);
    args.q = q.data;
    args.q_token_stride = q.strides.at(0);
    args.q_head_stride = q.strides.at(1);
    args.n_heads = q.size(1);
  }
  args.q_norm = pointer<const float>(q_norm);
  args.k_norm = pointer<const float>(k_norm);
  args.norm_eps = norm_eps;
  args.cos = pointer<const float>(cos);
  args.sin = pointer<const float>(sin);
  args.half = half;
  args.is_interleaved = interleaved;
  const DeviceGuard guard(device);
  append_kv(launch, stream_of(stream));
}

// pools: (address, bytes of a page) of pages that follow each other; pairs: int64 [n, 2]. Waits until all is done.
void run_copy_blocks(const std::vector<std::tuple<std::uintptr_t, std::int64_t>>& pools, const py::array& pairs,
                     int device, std::uintptr_t stream) {
  const Span<const std::int64_t> host_pairs = read_array<std::int64_t>(pairs, "copy_blocks", "pairs", {kAny, 2});
  std::vector<PagePool> host_pools;
  std::int64_t largest = 0;
  for (const auto& [address, page_bytes] : pools) {
    host_pools.push_back({pointer<std::byte>(address), page_bytes});
    largest = std::max(largest, page_bytes);
  }
  if (host_pools.empty() || host_pairs.empty()) return;
  const DeviceGuard guard(device);
  const DeviceArray<PagePool> device_pools(static_cast<std::int64_t>(host_pools.size()));
  const DeviceArray<std::int64_t> device_pairs(static_cast<std::int64_t>(host_pairs.size));
  copy_memory(device_pools.data(), host_pools.data(), device_pools.n_bytes(), stream_of(stream));
  copy_memory(device_pairs.data(), host_pairs.data, device_pairs.n_bytes(), stream_of(stream));
  CopyBlocksLaunch launch;
  launch.pools = device_pools.data();
  launch.pairs = device_pairs.data();
  launch.n_pools = static_cast<int>(host_pools.size());
  launch.n_pairs = static_cast<int>(host_pairs.size / 2);
  launch.largest_page_bytes = largest;
  copy_blocks(launch, stream_of(stream));
  const py::gil_scoped_release release;
  synchronize(stream_of(stream));
}

// from, to: (address, pages) on either side; pairs: int64 [n, 2].
void run_swap_blocks(const std::tuple<std::uintptr_t, std::int64_t>& from,
                     const std::tuple<std::uintptr_t, std::int64_t>& to, std::int64_t page_bytes,
                     const py::array& pairs, int device, std::uintptr_t stream) {
  SwapBlocksArgs args;
  args.from = pointer<const void>(std::get<0>(from));
  args.n_from_pages = std::get<1>(from);
  args.to = pointer<void>(std::get<0>(to));
  args.n_to_pages = std::get<1>(to);
  args.page_bytes = page_bytes;
  args.pairs = read_array<std::int64_t>(pairs, "swap_blocks", "pairs", {kAny, 2});
  const DeviceGuard guard(device);
  const py::gil_scoped_release release;  // a copy waits where memory of the host is not pinned
  swap_blocks(args, stream_of(stream));
}

}  // namespace

void register_gpu_pages(py::module_& m);

void register_gpu_pages(py::module_& m) {
  using py::arg;
  m.def("append_kv", &run_append_kv, arg("key"), arg("value"), arg("k_cache"), arg("v_cache"), arg("slot_mapping"),
        arg("k_scale"), arg("v_scale"), arg("q").none(true), arg("q_norm"), arg("k_norm"), arg("norm_eps"), arg("cos"),
        arg("sin"), arg("half"), arg("interleaved"), arg("device"), arg("stream"));
  m.def("copy_blocks", &run_copy_blocks, arg("pools"), arg("pairs"), arg("device"), arg("stream"));
  m.def("swap_blocks", &run_swap_blocks, arg("src"), arg("dst"), arg("page_bytes"), arg("pairs"), arg("device"),
        arg("stream"));
}

}  // namespace gpu
}  // namespace llm_decoder
