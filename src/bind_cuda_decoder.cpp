// _cuda and _cuda_host, CUDADecoder: weights in, steps, logits out; and the KvCache whose pages it writes.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <iterator>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "array_view.h"
#include "cuda_decoder.h"
#include "decoder_binding.h"
#include "device_guard.h"
#include "device_storage.h"
#include "gpu_tensor.h"
#include "kv_cache_binding.h"
#include "model_binding.h"
#include "pack_gpu_weights.h"

namespace py = pybind11;

namespace llm_decoder {
namespace gpu {
namespace {

constexpr char kName[] = "CUDADecoder";

// The layouts of matrices: rows of `dtype` are multiplied with half ones of the same.
struct MatrixLayout {
  const char* name;
  WeightView::Layout layout;
  GpuWeightFormat format;
  Dtype half = Dtype::f32;
};
constexpr MatrixLayout kMatrixLayouts[] = {{"gpu_bf16", WeightView::Layout::half, GpuWeightFormat::half, Dtype::bf16},
                                           {"gpu_f16", WeightView::Layout::half, GpuWeightFormat::half, Dtype::f16},
                                           {"gpu_w8", WeightView::Layout::w8, GpuWeightFormat::w8},
                                           {"gpu_w4", WeightView::Layout::w4, GpuWeightFormat::w4},
                                           {"gpu_f8", WeightView::Layout::f8, GpuWeightFormat::f8}};

void check_shape(const char* place, const std::string& name, const Shape& shape, std::size_t n_sizes) {
  constexpr py::ssize_t kLargestSize = 1 << 30;
  check_arg(shape.size() == n_sizes, place, "shape of ", name, " must have ", n_sizes, " sizes, got ",
            shape_text(shape));
  for (const py::ssize_t size : shape) {
    check_arg(size > 0 && size <= kLargestSize, place, "shape of ", name, " is impossible: ", shape_text(shape));
  }
}

// The arrays of a weight, borrowed for a call.
WeightView read_weight(const char* place, Dtype dtype, const std::string& name, const std::string& layout,
                       const Shape& shape, const py::array& data, const std::optional<py::array>& scales) {
  const std::string of = name + " data";
  WeightView view;
  if (layout == "vector") {
    check_shape(place, name, shape, 1);
    check_arg(!scales.has_value(), place, "vectors have no scales, got some for ", name);
    view.n = shape[0];
    view.data = read_array<float>(data, place, of.c_str(), {shape[0]}).data;
    return view;
  }
  const auto* const matrix = std::find_if(std::begin(kMatrixLayouts), std::end(kMatrixLayouts),
                                          [&layout](const MatrixLayout& known) { return layout == known.name; });
  check_arg(matrix != std::end(kMatrixLayouts), place, "layout of ", name,
            " must be 'vector', 'gpu_bf16', 'gpu_f16', 'gpu_w8', 'gpu_w4' or 'gpu_f8', got '", layout, "'");
  const bool is_half = matrix->layout == WeightView::Layout::half;
  check_arg(!is_half || matrix->half == dtype, place, name, " must be of the decoder's dtype, ", dtype_name(dtype),
            ", or quantised, got ", layout);
  check_shape(place, name, shape, 2);
  check_arg(scales.has_value() != is_half, place, layout,
            is_half ? " has no scales, got some" : " needs scales, got none", " for ", name);
  view.layout = matrix->layout;
  view.n = shape[0];
  view.k = shape[1];
  const auto n_bytes = static_cast<py::ssize_t>(packed_gpu_bytes(matrix->format, view.n, view.k));
  view.data = read_array<std::uint8_t>(data, place, of.c_str(), {n_bytes}).data;
  if (scales) view.scales = read_array<float>(*scales, place, (name + " scales").c_str(), {shape[0]}).data;
  return view;
}

class PyCudaDecoder : public PyDecoder<CUDADecoder> {
 public:
  PyCudaDecoder(const py::dict& config, const std::string& dtype, int device, bool deterministic,
                const std::vector<std::string>& gemm_libraries, bool graphs)
      : PyDecoder(kName, read_model_config(kName, config),
                  CudaOptions{device, dtype_of(dtype), deterministic, gemm_libraries, graphs}) {}

  void set_weight(const std::string& name, const std::string& layout, const Shape& shape, const py::array& data,
                  const std::optional<py::array>& scales) {
    const std::string here = place("set_weight");
    const OneCaller::Use use(caller_, here.c_str());
    const WeightView view = read_weight(here.c_str(), decoder_.options().dtype, name, layout, shape, data, scales);
    py::gil_scoped_release release;
    decoder_.set_weight(name, view);
  }

  // Pinning the memory of a large tier takes seconds.
  std::unique_ptr<KvCache> make_cache(const KvCacheConfig& config) const {
    const py::gil_scoped_release release;
    const DeviceGuard guard(decoder_.options().device);
    return std::make_unique<KvCache>(config, std::make_unique<DevicePages>(config, decoder_.stream()));
  }

  void capture(const KvCache& cache, std::int32_t max_batch, std::int64_t max_bytes) {
    const OneCaller::Use use(caller_, place("capture").c_str());
    py::gil_scoped_release release;
    decoder_.capture(cache, max_batch, max_bytes);
  }

  void begin_sample(const py::array& rows, const py::dict& params, std::int32_t n_top) {
    const OneCaller::Use use(caller_, place("begin_sample").c_str());
    const SamplingParams read = read_sampling_params(rows, params);
    py::gil_scoped_release release;
    decoder_.begin_sample(read, n_top);
  }

  py::tuple end_sample() {
    const OneCaller::Use use(caller_, place("end_sample").c_str());
    const DeviceSampler::DrawSize size = decoder_.next_draw();
    const SampleArrays arrays(size.n_draws, size.n_top);
    {
      py::gil_scoped_release release;
      decoder_.end_sample(arrays.result());
    }
    return arrays.with_tokens();
  }

  std::vector<std::int32_t> graphs() const { return decoder_.graphs(); }
  std::string why_no_more_graphs() const { return decoder_.why_no_more_graphs(); }
  std::int64_t n_graph_steps() const { return decoder_.n_graph_steps(); }
  int device() const { return decoder_.options().device; }
  const char* dtype() const { return dtype_name(decoder_.options().dtype); }
  const char* gemm() const { return decoder_.gemm(); }
  std::int64_t weight_bytes() const { return decoder_.weight_bytes(); }
};

void register_cache(py::module_& m) {
  py::class_<KvCache> cache(
      m, "KvCache", py::module_local(),
      "As _core.KvCache, with pages on the device of a CUDADecoder, for its steps. dtype: 'bf16' or 'f16', that of the "
      "decoder, or 'fp8' or 's8'. n_tier_slots: in pinned\nmemory of the host. Raises ValueError for impossible sizes "
      "and MemoryError when the device refuses the "
      "memory.");
  cache.def(
      py::init([](const PyCudaDecoder& decoder, const py::object& n_pages, std::int32_t page_size,
                  const py::object& layers, std::int32_t n_kv_heads, std::int32_t head_dim, const std::string& dtype,
                  const py::object& window, const py::object& n_tier_slots, std::uint64_t hash_mask) {
        return decoder.make_cache(read_kv_cache_config(n_pages, page_size, layers, n_kv_heads, head_dim, dtype, window,
                                                       n_tier_slots, hash_mask));
      }),
      py::arg("decoder"), py::arg("n_pages"), py::arg("page_size"), py::arg("layers"), py::arg("n_kv_heads"),
      py::arg("head_dim"), py::arg("dtype") = "bf16", py::arg("window") = 0, py::arg("n_tier_slots") = 0,
      py::arg("hash_mask") = ~std::uint64_t{0});
  add_kv_cache_verbs(cache);
}

}  // namespace

void register_cuda_decoder(py::module_& m);

void register_cuda_decoder(py::module_& m) {
  py::class_<PyCudaDecoder> decoder(
      m, kName, py::module_local(),
      "A decoder on a GPU, with matrices of 16 bits or quantised ones. One thread uses it at a time; a second "
      "one gets RuntimeError.\n\nconfig: a dict with the fields of ModelConfig (model_config.h). dtype: 'bfloat16' or "
      "'float16', of rows between products and of 16-bit\nmatrices. deterministic: a sequence's results do not depend "
      "on "
      "the others of its steps. gemm_libraries: paths of libcublasLt to\ntry first. ValueError for a configuration "
      "that contradicts itself or that no kernel was compiled for.");
  decoder
      .def(py::init<const py::dict&, const std::string&, int, bool, const std::vector<std::string>&, bool>(),
           py::arg("config"), py::arg("dtype") = "bfloat16", py::arg("device") = 0, py::arg("deterministic") = false,
           py::arg("gemm_libraries") = std::vector<std::string>{}, py::arg("graphs") = true)
      .def_property_readonly("device", &PyCudaDecoder::device)
      .def_property_readonly("dtype", &PyCudaDecoder::dtype)
      .def_property_readonly("gemm", &PyCudaDecoder::gemm, "Who multiplies many rows: 'ours' or 'cublaslt'.")
      .def_property_readonly("weight_bytes", &PyCudaDecoder::weight_bytes, "Memory of the device that weights take.")
      .def("set_weight", &PyCudaDecoder::set_weight, py::arg("name"), py::arg("layout"), py::arg("shape"),
           py::arg("data"), py::arg("scales") = py::none(),
           "Copies a weight to the device. layout 'vector': float32 [n]; 'gpu_bf16' or 'gpu_f16', that of the "
           "decoder's dtype, 'gpu_w8', 'gpu_w4' and 'gpu_f8':\nuint8 as pack_gpu_half, pack_gpu_w8, pack_gpu_w4 and "
           "pack_gpu_f8 return, of a matrix with shape (n, k); the last three with scales float32 [n].");
  decoder
      .def("capture", &PyCudaDecoder::capture, py::arg("cache"), py::arg("max_batch"), py::arg("max_bytes"),
           "Records decode steps over this cache as graphs, for 1, 2, 4, 8, 16, 24, ... up to max_batch sequences, the "
           "fewest first, while all\nthat they need takes at most max_bytes of device memory. Steps of one token a "
           "sequence, each with logits, go by graph from then on,\nbut for those where more than 64 rows read a prefix "
           "together.")
      .def_property_readonly("graphs", &PyCudaDecoder::graphs, "Sequences of each graph that there is.")
      .def_property_readonly("why_no_more_graphs", &PyCudaDecoder::why_no_more_graphs,
                             "Why capture did not record all that was asked for; empty where it did.")
      .def_property_readonly("n_graph_steps", &PyCudaDecoder::n_graph_steps, "Steps so far that went by graph.")
      .def("begin_sample", &PyCudaDecoder::begin_sample, py::arg("rows"), py::arg("params"), py::arg("n_top"),
           "Queues a draw as sample makes it. In the next step a token t < 0 is the one of draw -1 - t, 0 where that "
           "gave none, whether\nthe results were read or not. At most two are begun and not ended; sample needs none.")
      .def(
          "end_sample", &PyCudaDecoder::end_sample,
          "Waits for the oldest draw that was begun and not ended; returns what sample returns. RuntimeError where the "
          "device failed at what\nwas queued until then.");
  add_decoder_verbs(m, decoder);
  register_cache(m);
}

}  // namespace gpu
}  // namespace llm_decoder
