// What crosses from Python to the GPU extensions: tensors as addresses of a device's memory, checked in Python.
#pragma once

#include <pybind11/stl.h>

#include <cstdint>
#include <string>
#include <tuple>
#include <vector>

#include "llm_decoder/errors.h"
#include "machine.h"

namespace llm_decoder {
namespace gpu {

inline Stream stream_of(std::uintptr_t stream) { return reinterpret_cast<Stream>(stream); }

struct Tensor {
  void* data = nullptr;
  Dtype dtype = Dtype::f32;
  std::vector<std::int64_t> shape, strides;

  int size(std::size_t axis) const { return static_cast<int>(shape.at(axis)); }
};

inline Dtype dtype_of(const std::string& name) {
  for (const Dtype dtype : {Dtype::f32, Dtype::bf16, Dtype::f16, Dtype::fp8, Dtype::s8}) {
    if (name == dtype_name(dtype)) return dtype;
  }
  throw std::invalid_argument(concat("[gpu tensor] dtype must be one that kernels know, got ", name));
}

// (address, dtype, shape, strides in elements)
using TensorTuple = std::tuple<std::uintptr_t, std::string, std::vector<std::int64_t>, std::vector<std::int64_t>>;

inline Tensor tensor_of(const TensorTuple& tuple) {
  const auto& [address, dtype, shape, strides] = tuple;
  return {reinterpret_cast<void*>(address), dtype_of(dtype), shape, strides};
}

template <class T>
T* pointer(std::uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

// (factor of all, address of one a head, address of one a slot and head); addresses may be 0.
using ScaleTuple = std::tuple<float, std::uintptr_t, std::uintptr_t>;

}  // namespace gpu
}  // namespace llm_decoder
