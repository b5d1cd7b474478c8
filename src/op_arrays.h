// What ops on the CPU are bound with: their threads, arrays of any dtype and any strides but the last.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "array_view.h"
#include "llm_decoder/parallel.h"
#include "op_rows.h"

namespace llm_decoder {

namespace py = pybind11;

// The threads of all ops: one call at a time, kept for the next one.
class OpThreads {
 public:
  template <class Fn>
  void run(int n_threads, const Fn& fn) {
    const std::lock_guard lock(mutex_);
    if (pool_ == nullptr || pool_->n_threads() != n_threads) pool_ = std::make_unique<ThreadPool>(n_threads);
    fn(*pool_);
  }

 private:
  std::mutex mutex_;
  std::unique_ptr<ThreadPool> pool_;
};

inline OpThreads& op_threads() {
  static OpThreads threads;
  return threads;
}

// Fn without the GIL, on the threads of ops.
template <class Fn>
void run_op(const char* place, int n_threads, const Fn& fn) {
  check_arg(n_threads >= 1, place, "n_threads must be at least 1, got ", n_threads);
  const py::gil_scoped_release release;
  op_threads().run(n_threads, fn);
}

inline Dtype dtype_named(const std::string& name, const char* place, const char* of,
                         const std::vector<Dtype>& choices) {
  std::string names;
  for (const Dtype dtype : choices) {
    if (name == dtype_name(dtype)) return dtype;
    names += (names.empty() ? "" : ", ") + std::string(dtype_name(dtype));
  }
  check_arg(false, place, of, " must be one of ", names, "; got ", name);
  return Dtype::f32;
}

inline const std::vector<Dtype> kRowDtypes = {Dtype::f32, Dtype::bf16, Dtype::f16};
inline const std::vector<Dtype> kPageDtypes = {Dtype::f32, Dtype::bf16, Dtype::f16, Dtype::fp8, Dtype::s8};

inline bool holds(const py::array& array, Dtype dtype) {
  switch (dtype) {
    case Dtype::f32:
      return py::isinstance<py::array_t<float>>(array);
    case Dtype::bf16:
    case Dtype::f16:
      return py::isinstance<py::array_t<std::uint16_t>>(array);
    case Dtype::fp8:
      return py::isinstance<py::array_t<std::uint8_t>>(array);
    case Dtype::s8:
      return py::isinstance<py::array_t<std::int8_t>>(array);
  }
  return false;
}

inline const char* carrier_of(Dtype dtype) {
  return dtype == Dtype::f32 ? "float32" : dtype == Dtype::fp8 ? "uint8" : dtype == Dtype::s8 ? "int8" : "uint16";
}

// The first element of an array of `dtype` with shape `need` and any strides but on its last axis.
inline std::byte* strided(const py::array& array, Dtype dtype, const char* place, const char* name, const Shape& need) {
  check_arg(holds(array, dtype), place, name, " must be ", carrier_of(dtype), " (of ", dtype_name(dtype), "), got ",
            std::string(py::str(array.dtype())));
  check_arg(shape_matches(array, need), place, name, " must have shape ", shape_text(need), ", got ",
            shape_text(shape_of(array)));
  check_arg((array.flags() & py::detail::npy_api::NPY_ARRAY_ALIGNED_) != 0, place, name,
            " must be aligned to its elements; pass a copy");
  const py::ssize_t last = array.ndim() - 1;
  check_arg(array.size() == 0 || array.shape(last) == 1 || array.strides(last) == array.itemsize(), place, name,
            " must have the elements of its last axis beside each other, got a stride of ", array.strides(last),
            " bytes; pass np.ascontiguousarray");
  return static_cast<std::byte*>(const_cast<void*>(array.data()));
}

inline void check_writeable(const py::array& array, const char* place, const char* name) {
  check_arg(array.writeable(), place, name, " must be writeable, got a read-only array");
}

// None, or an array without gaps.
template <class T>
const T* optional_array(const py::object& array, const char* place, const char* name, const Shape& need) {
  if (array.is_none()) return nullptr;
  check_arg(py::isinstance<py::array>(array), place, name, " must be an array or None, got ",
            std::string(py::str(py::type::of(array))));
  return read_array<T>(py::reinterpret_borrow<py::array>(array), place, name, need).data;
}

// An array with the name of its dtype, or None.
using NamedArray = std::optional<std::pair<py::array, std::string>>;

// Rows [n_rows, n_cols]; none of None.
inline OpRows rows_of(const NamedArray& named, const char* place, const char* name, const Shape& need,
                      const std::vector<Dtype>& dtypes = kRowDtypes) {
  if (!named) return {};
  const auto& [array, dtype_of] = *named;
  const Dtype dtype = dtype_named(dtype_of, place, name, dtypes);
  std::byte* const data = strided(array, dtype, place, name, need);
  return {dtype, data, array.strides(0), array.shape(0), static_cast<std::int32_t>(array.shape(1))};
}

// The same, to be written.
inline OpRows out_rows_of(const NamedArray& named, const char* place, const char* name, const Shape& need,
                          const std::vector<Dtype>& dtypes = kRowDtypes) {
  if (named) check_writeable(named->first, place, name);
  return rows_of(named, place, name, need, dtypes);
}

}  // namespace llm_decoder
