// Plain types that cross rooms. Nothing here owns memory.
//
// Axis order, written once: activations are [n_tokens, n_heads, head_dim] (token outermost), weights are
// [n_out, n_in] row-major before packing, pages are tiles as drawn in paged_kv.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

namespace llm_decoder {

// fp8 is e4m3. f16 and fp8 live on GPUs alone.
enum class Dtype : std::uint8_t { f32, bf16, s8, f16, fp8 };

// The upper half of a float32: 8 bits of exponent, 7 of mantissa.
struct Bf16 {
  std::uint16_t bits;
};

constexpr std::int64_t element_bytes(Dtype dtype) {
  return dtype == Dtype::f32 ? 4 : dtype == Dtype::bf16 || dtype == Dtype::f16 ? 2 : 1;
}

constexpr const char* dtype_name(Dtype dtype) {
  switch (dtype) {
    case Dtype::f32:
      return "float32";
    case Dtype::bf16:
      return "bfloat16";
    case Dtype::s8:
      return "int8";
    case Dtype::f16:
      return "float16";
    case Dtype::fp8:
      return "fp8";
  }
  return "?";
}

// A borrowed run of `size` elements.
template <class T>
struct Span {
  T* data = nullptr;
  std::size_t size = 0;

  Span() = default;
  Span(T* data_, std::size_t size_) : data(data_), size(size_) {}
  template <class Container, class = decltype(std::declval<Container&>().data())>
  Span(Container& container) : data(container.data()), size(container.size()) {}

  T& operator[](std::size_t i) const { return data[i]; }
  T* begin() const { return data; }
  T* end() const { return data + size; }
  bool empty() const { return size == 0; }
};

constexpr std::int64_t ceil_div(std::int64_t n, std::int64_t d) { return (n + d - 1) / d; }
constexpr std::int64_t round_up(std::int64_t n, std::int64_t multiple) { return ceil_div(n, multiple) * multiple; }

}  // namespace llm_decoder
