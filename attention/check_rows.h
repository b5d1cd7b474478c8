// What launchers ask of rows that kernels move in vectors.
#pragma once

#include <initializer_list>

#include "llm_decoder/errors.h"
#include "llm_decoder/types.h"

namespace llm_decoder {
namespace gpu {

// Throws std::invalid_argument unless a vector of n_bytes may begin at every row of the named array.
inline void check_rows(const char* place, const char* name, const void* data, std::int64_t n_bytes,
                       std::initializer_list<std::int64_t> strides, Dtype dtype) {
  check_arg(data != nullptr, place, name, " must be there, got null");
  check_arg(reinterpret_cast<std::uintptr_t>(data) % static_cast<std::uintptr_t>(n_bytes) == 0, place, name,
            " must be aligned to ", n_bytes, " bytes; copy it to an array of its own");
  for (const std::int64_t stride : strides) {
    check_arg(stride * element_bytes(dtype) % n_bytes == 0, place, "strides of ", name, " must be multiples of ",
              n_bytes / element_bytes(dtype), " elements, got ", stride, "; copy it to an array of its own");
  }
}

}  // namespace gpu
}  // namespace llm_decoder
