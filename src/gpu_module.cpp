// llm_decoder._cuda, and llm_decoder._cuda_host: the GPU kernels as Python sees them, on NVIDIA devices and on the host
// machine that stands for one in tests. Compiled once for each; GPU_MODULE is the name.
//
// Importing it touches no driver. Tensors cross as addresses of the device's memory; the Python door has checked them.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <exception>
#include <iterator>
#include <string>
#include <utility>

#include "cuda_errors.h"
#include "device_guard.h"
#include "device_memory.h"
#if defined(LLM_DECODER_HOST_MACHINE)
#include "machine.h"
#endif

namespace py = pybind11;

namespace llm_decoder {
namespace gpu {

void register_gpu_attention(py::module_& m);
void register_gpu_pages(py::module_& m);
void register_gpu_moe(py::module_& m);
void register_gpu_rows(py::module_& m);
void register_gpu_products(py::module_& m);
void register_gpu_sampling(py::module_& m);
void register_cuda_decoder(py::module_& m);

namespace {

py::dict describe_device(int device) {
  const DeviceProperties properties = device_properties(device);
  const DeviceGuard guard(device);
  const MemoryInfo memory = memory_info();
  py::dict out;
  out["name"] = properties.name;
  out["compute_capability"] = py::make_tuple(properties.compute_major, properties.compute_minor);
  out["n_sms"] = properties.n_sms;
  out["free_bytes"] = memory.free_bytes;
  out["total_bytes"] = memory.total_bytes;
  return out;
}

// What DeviceLost becomes; never let go, for exceptions outlive modules.
PyObject* device_lost_type = PyExc_RuntimeError;

void translate_device_lost(std::exception_ptr raised) {
  try {
    if (raised) std::rethrow_exception(raised);
  } catch (const DeviceLost& error) {
    PyErr_SetString(device_lost_type, error.what());
  }
}

#if defined(LLM_DECODER_HOST_MACHINE)
constexpr std::pair<const char*, Order::Kind> kOrders[] = {{"ascending", Order::Kind::ascending},
                                                           {"descending", Order::Kind::descending},
                                                           {"shuffled", Order::Kind::shuffled}};

void set_order_of_threads(const std::string& kind, std::uint64_t seed) {
  const auto* const found =
      std::find_if(std::begin(kOrders), std::end(kOrders), [&](const auto& order) { return order.first == kind; });
  check_arg(found != std::end(kOrders), "order of threads", "must be ascending, descending or shuffled, got ", kind);
  set_host_order({found->second, seed});
}

std::pair<std::string, std::uint64_t> order_of_threads() {
  const auto* const found = std::find_if(std::begin(kOrders), std::end(kOrders),
                                         [](const auto& order) { return order.second == host_order().kind; });
  return {found->first, host_order().seed};
}
#endif

}  // namespace
}  // namespace gpu
}  // namespace llm_decoder

PYBIND11_MODULE(GPU_MODULE, m) {
  using namespace llm_decoder::gpu;
  m.doc() = "The GPU kernels of llm_decoder, on pointers to a device's memory.";
  m.attr("TARGETS") = LLM_DECODER_GPU_TARGETS;
  m.def("n_devices", &n_devices, "RuntimeError with the runtime's words where there is no driver, or one too old.");
  m.def("describe_device", &describe_device, py::arg("device"));
  m.def(
      "cuda_versions",
      [] {
        const CudaVersions versions = cuda_versions();
        return py::make_tuple(versions.driver, versions.runtime);
      },
      "(the newest CUDA that the driver runs, 0 where none is loaded; that of this build's runtime), 1000 * major + 10 "
      "* "
      "minor.");
  py::register_local_exception_translator(translate_device_lost);
  m.def(
      "raise_device_lost_as", [](const py::type& type) { device_lost_type = type.inc_ref().ptr(); },
      "What a device that is lost to the process raises from now on, RuntimeError before.", py::arg("type"));
  m.def(
      "synchronize",
      [](int device, std::uintptr_t stream) {
        const DeviceGuard guard(device);
        const py::gil_scoped_release release;
        synchronize(reinterpret_cast<Stream>(stream));
      },
      "Returns when all that was queued on the stream is done.", py::arg("device"), py::arg("stream"));
#if defined(LLM_DECODER_HOST_MACHINE)
  m.def("set_order_of_threads", &set_order_of_threads,
        "In which the launches of this thread run theirs from now on: ascending, descending or shuffled.",
        py::arg("kind"), py::arg("seed") = 0);
  m.def("order_of_threads", &order_of_threads, "(kind, seed)");
  m.def("set_late_streams", &set_late_streams,
        "Whether what is queued on a stream from now on happens only when somebody waits for it.", py::arg("are_late"));
  m.def("set_host_fault", &set_host_fault,
        "From now on steps fail as they would on a device whose runtime answers with this cudaError_t; 0 = no longer.",
        py::arg("code"));
#endif
  register_gpu_attention(m);
  register_gpu_pages(m);
  register_gpu_moe(m);
  register_gpu_rows(m);
  register_gpu_products(m);
  register_gpu_sampling(m);
  register_cuda_decoder(m);
}
