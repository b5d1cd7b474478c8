// NumPy arrays seen as plain spans, checked at the door: exact dtype, C-contiguous, aligned, shape. Nothing is cast or
// copied; a wrong array is a ValueError that says place, need and got.
//
// Bind such arguments as `const py::array&`: pybind11 then takes ndarrays (and np.memmap) only and converts nothing.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <vector>

#include "llm_decoder/errors.h"
#include "llm_decoder/types.h"

namespace llm_decoder {

using Shape = std::vector<pybind11::ssize_t>;
constexpr pybind11::ssize_t kAny = -1;  // in a needed shape: any size of this axis

inline std::string shape_text(const Shape& shape) {
  std::string text = "[";
  for (std::size_t axis = 0; axis < shape.size(); ++axis) {
    if (axis > 0) text += ", ";
    text += shape[axis] == kAny ? "any" : std::to_string(shape[axis]);
  }
  return text + "]";
}

template <class T>
std::string dtype_text() {
  return pybind11::str(pybind11::dtype::of<T>());
}

inline Shape shape_of(const pybind11::array& array) { return Shape(array.shape(), array.shape() + array.ndim()); }

inline bool shape_matches(const pybind11::array& array, const Shape& need) {
  if (array.ndim() != static_cast<pybind11::ssize_t>(need.size())) return false;
  return std::equal(need.begin(), need.end(), array.shape(),
                    [](pybind11::ssize_t want, pybind11::ssize_t got) { return want == kAny || want == got; });
}

// Throws std::invalid_argument unless `array` is a C-contiguous, aligned array of exactly T with shape `need`.
template <class T>
void check_array(const pybind11::array& array, const char* place, const char* name, const Shape& need) {
  if (!pybind11::isinstance<pybind11::array_t<T>>(array)) {
    check_arg(false, place, name, " must be ", dtype_text<T>(), ", got ", std::string(pybind11::str(array.dtype())));
  }
  if (!shape_matches(array, need)) {
    check_arg(false, place, name, " must have shape ", shape_text(need), ", got ", shape_text(shape_of(array)));
  }
  check_arg((array.flags() & pybind11::array::c_style) != 0, place, name,
            " must be C-contiguous, got strides; pass np.ascontiguousarray");
  check_arg(reinterpret_cast<std::uintptr_t>(array.data()) % alignof(T) == 0, place, name, " must be aligned to ",
            alignof(T), " bytes");
}

// The elements of `array`, to be read. Valid while the array lives.
template <class T>
Span<const T> read_array(const pybind11::array& array, const char* place, const char* name,
                         const Shape& need = {kAny}) {
  check_array<T>(array, place, name, need);
  return {static_cast<const T*>(array.data()), static_cast<std::size_t>(array.size())};
}

// The elements of `array`, to be written. Also throws when the array is read-only.
template <class T>
Span<T> write_array(pybind11::array& array, const char* place, const char* name, const Shape& need = {kAny}) {
  check_array<T>(array, place, name, need);
  check_arg(array.writeable(), place, name, " must be writeable, got a read-only array");
  return {static_cast<T*>(array.mutable_data()), static_cast<std::size_t>(array.size())};
}

// A new array that owns a copy of `data`, which has as many elements as `shape` says.
template <class T>
pybind11::array_t<T> copy_to_array(const T* data, const Shape& shape) {
  pybind11::array_t<T> array(shape);
  std::copy_n(data, array.size(), array.mutable_data());
  return array;
}

}  // namespace llm_decoder
