// _core.read_dlpack: what a DLPack capsule says of a tensor. The capsule is not consumed: as long as it lives it keeps
// the tensor alive, and its own destructor lets go.
//
// The structures are DLPack's ABI (https://dmlc.github.io/dlpack), versions 0.x ("dltensor") and 1.x
// ("dltensor_versioned").
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <string>
#include <vector>

#include "llm_decoder/errors.h"

namespace py = pybind11;

namespace llm_decoder {
namespace {

struct DlDevice {
  std::int32_t type;
  std::int32_t index;
};

struct DlType {
  std::uint8_t code, bits;
  std::uint16_t lanes;
};

struct DlTensor {
  void* data;
  DlDevice device;
  std::int32_t n_axes;
  DlType type;
  std::int64_t* shape;
  std::int64_t* strides;  // elements; null: without gaps
  std::uint64_t byte_offset;
};

struct DlManagedTensor {
  DlTensor tensor;
  void* context;
  void (*deleter)(DlManagedTensor*);
};

struct DlVersionedTensor {
  std::uint32_t major, minor;
  void* context;
  void (*deleter)(DlVersionedTensor*);
  std::uint64_t flags;
  DlTensor tensor;
};

constexpr std::uint64_t kReadOnly = 1;
constexpr std::int32_t kDeviceCpu = 1, kDeviceCudaHost = 3;

struct Exported {
  const DlTensor* tensor;
  bool is_writeable;
};

Exported open_capsule(const py::capsule& capsule) {
  const std::string name = capsule.name() != nullptr ? capsule.name() : "";
  if (name == "dltensor") return {&capsule.get_pointer<DlManagedTensor>()->tensor, true};
  check_arg(name == "dltensor_versioned", "read_dlpack", "the capsule must be a DLPack tensor that nobody took, got '",
            name, "'");
  const auto* versioned = capsule.get_pointer<DlVersionedTensor>();
  check_arg(versioned->major == 1, "read_dlpack", "DLPack must be of version 1 or before, got ", versioned->major);
  return {&versioned->tensor, (versioned->flags & kReadOnly) == 0};
}

// "bfloat16", "fp8" (e4m3), or as NumPy calls it.
std::string type_name(const DlType& type) {
  const std::string bits = std::to_string(type.bits);
  if (type.lanes == 1) {
    switch (type.code) {
      case 0:
        return "int" + bits;
      case 1:
        return "uint" + bits;
      case 2:
        return "float" + bits;
      case 4:
        return "bfloat" + bits;
      case 6:
        return "bool";
      case 10:
        return "fp8";
      default:
        break;
    }
  }
  return concat("DLPack type ", int{type.code}, " of ", bits, " bits x ", type.lanes);
}

py::tuple shape_of_tensor(const DlTensor& t) {
  py::tuple shape(t.n_axes);
  for (std::int32_t i = 0; i < t.n_axes; ++i) shape[static_cast<std::size_t>(i)] = t.shape[i];
  return shape;
}

py::tuple strides_of_tensor(const DlTensor& t) {
  py::tuple strides(t.n_axes);
  std::int64_t next = 1;
  for (std::int32_t i = t.n_axes - 1; i >= 0; --i) {
    strides[static_cast<std::size_t>(i)] = t.strides != nullptr ? t.strides[i] : next;
    next *= t.shape[i];
  }
  return strides;
}

char* address_of(const DlTensor& t) { return static_cast<char*>(t.data) + t.byte_offset; }

// (address, dtype, shape, strides in elements, is_writeable)
py::tuple read_dlpack(const py::capsule& capsule) {
  const auto [tensor, is_writeable] = open_capsule(capsule);
  return py::make_tuple(reinterpret_cast<std::uintptr_t>(address_of(*tensor)), type_name(tensor->type),
                        shape_of_tensor(*tensor), strides_of_tensor(*tensor), is_writeable);
}

// The tensor of a capsule in host memory as a NumPy array over the same memory, with elements of unsigned integers of
// their size: bit patterns.
py::array dlpack_array(const py::capsule& capsule) {
  const auto [tensor, is_writeable] = open_capsule(capsule);
  const std::int32_t device = tensor->device.type;
  check_arg(device == kDeviceCpu || device == kDeviceCudaHost, "dlpack_array",
            "the tensor must be in host memory, got ", "DLPack device ", device);
  const py::ssize_t n_bytes = tensor->type.bits / 8;
  py::list strides;
  for (const auto& stride : strides_of_tensor(*tensor)) strides.append(py::cast<py::ssize_t>(stride) * n_bytes);
  py::array array(py::dtype("u" + std::to_string(n_bytes)),
                  py::cast<std::vector<py::ssize_t>>(shape_of_tensor(*tensor)),
                  py::cast<std::vector<py::ssize_t>>(strides), address_of(*tensor), capsule);
  if (!is_writeable) array.attr("setflags")(py::arg("write") = false);
  return array;
}

}  // namespace

void register_dlpack(py::module_& m);

void register_dlpack(py::module_& m) {
  m.def("read_dlpack", &read_dlpack, py::arg("capsule"));
  m.def("dlpack_array", &dlpack_array, py::arg("capsule"));
}

}  // namespace llm_decoder
