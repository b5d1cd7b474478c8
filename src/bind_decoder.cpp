// _core.INT8Decoder: weights in, steps, logits out.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <string>

#include "array_view.h"
#include "decoder_binding.h"
#include "int8_decoder.h"
#include "model_binding.h"

namespace py = pybind11;

namespace llm_decoder {
namespace {

constexpr char kName[] = "INT8Decoder";

// With the arrays that the decoder borrows.
class PyInt8Decoder : public PyDecoder<INT8Decoder> {
 public:
  PyInt8Decoder(const py::dict& config, int threads, const std::string& isa)
      : PyDecoder(kName, read_model_config(kName, config), threads, isa.c_str()) {}

  void set_weight(const std::string& name, const std::string& layout, const Shape& shape, const py::array& data,
                  const std::optional<py::array>& scales) {
    const std::string here = place("set_weight");
    const OneCaller::Use use(caller_, here.c_str());
    decoder_.set_weight(name, borrowed_.read(here.c_str(), name, layout, shape, data, scales));
  }

  const char* isa() const { return decoder_.isa(); }
  int threads() const { return decoder_.n_threads(); }

 private:
  BorrowedWeights borrowed_;
};

}  // namespace

void register_decoder(py::module_& m) {
  py::class_<PyInt8Decoder> decoder(
      m, kName,
      "A decoder on the CPU, with quantised (w8, w4) or float (f32, bf16) matrices. One thread uses it at a time; a "
      "second "
      "one gets RuntimeError.\n\nconfig: a dict with the fields of ModelConfig (model_config.h). threads: "
      "how many compute, the caller included.\nisa: 'generic', 'avx2', 'avx512vnni' or 'auto'. ValueError "
      "for a configuration that contradicts itself or an isa that this machine lacks.");
  decoder
      .def(py::init<const py::dict&, int, const std::string&>(), py::arg("config"), py::arg("threads"),
           py::arg("isa") = "auto")
      .def_property_readonly("isa", &PyInt8Decoder::isa, "The kernels in use.")
      .def_property_readonly("threads", &PyInt8Decoder::threads)
      .def("set_weight", &PyInt8Decoder::set_weight, py::arg("name"), py::arg("layout"), py::arg("shape"),
           py::arg("data"), py::arg("scales") = py::none(),
           "Gives the decoder a weight; it keeps a reference, never a copy. layout 'vector': float32 [n]; 'f32', "
           "'bf16', 'w8' and 'w4': as\npack_f32, pack_bf16, pack_w8 and pack_w4 return, aligned to 64 bytes, of a "
           "matrix with shape "
           "(n, k); w8 and w4 with scales float32 [n].");
  add_decoder_verbs(m, decoder);
}

}  // namespace llm_decoder
