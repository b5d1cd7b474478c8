// _core.MachineLimits: what this machine reads and computes at most right now.
#include <pybind11/pybind11.h>

#include <memory>
#include <string>

#include "llm_decoder/errors.h"
#include "machine_limits.h"

namespace py = pybind11;

namespace llm_decoder {
namespace {

template <double (MachineLimits::*kMeasure)(int)>
double measure(MachineLimits& limits, int n_rounds) {
  check_arg(n_rounds > 0, "MachineLimits", "n_rounds must be positive, got ", n_rounds);
  const py::gil_scoped_release release;
  return (limits.*kMeasure)(n_rounds);
}

std::unique_ptr<MachineLimits> make_limits(int threads, std::int64_t n_bytes, const std::string& isa) {
  check_arg(n_bytes > 0, "MachineLimits", "n_bytes must be positive, got ", n_bytes);
  const py::gil_scoped_release release;
  return std::make_unique<MachineLimits>(isa.c_str(), threads, static_cast<std::size_t>(n_bytes));
}

}  // namespace

void register_machine_limits(py::module_& m);

void register_machine_limits(py::module_& m) {
  py::class_<MachineLimits>(
      m, "MachineLimits",
      "What this machine can do at most, measured when asked: the best of n_rounds short rounds with `threads` "
      "threads.\nn_bytes: memory that is taken, and read over and over; several times the last cache. isa: as for "
      "INT8Decoder.\nValueError for impossible numbers, MemoryError when the system refuses the memory.")
      .def(py::init(&make_limits), py::arg("threads"), py::arg("n_bytes"), py::arg("isa") = "auto")
      .def_property_readonly("isa", &MachineLimits::isa)
      .def_property_readonly("threads", &MachineLimits::n_threads)
      .def_property_readonly("n_bytes", &MachineLimits::n_bytes, "Memory held and read: n_bytes, rounded up.")
      .def("read_bytes_per_s", &measure<&MachineLimits::read_bytes_per_s>, py::arg("n_rounds") = 3)
      .def("int8_ops_per_s", &measure<&MachineLimits::int8_ops_per_s>, py::arg("n_rounds") = 3,
           "Multiplications and additions of int8 on registers alone.")
      .def("f32_ops_per_s", &measure<&MachineLimits::f32_ops_per_s>, py::arg("n_rounds") = 3, "The same of float32.");
}

}  // namespace llm_decoder
