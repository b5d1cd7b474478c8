// Elements of pages and activations as floats, and back. Baseline flags.
#include "llm_decoder/cpu_kernels.h"

namespace llm_decoder {
namespace {

#include "floats-inl.h"

inline float get(const std::int8_t* from) { return *from; }

constexpr float kLargestS8 = 127.0f;
constexpr float kRoundToInteger = 12582912.0f;  // 1.5 * 2^23: a sum with it is rounded to an integer, ties to even

inline void put(std::int8_t* to, float x) {
  const float above = x > -kLargestS8 ? x : -kLargestS8;
  const float within = above < kLargestS8 ? above : kLargestS8;
  *to = static_cast<std::int8_t>(x == x ? (within + kRoundToInteger) - kRoundToInteger : 0.0f);
}

template <class Element>
void widen(const std::byte* from, std::int64_t n, float* to) {
  const Element* elements = reinterpret_cast<const Element*>(from);
  for (std::int64_t i = 0; i < n; ++i) to[i] = get(elements + i);
}

template <class Element>
void narrow(const float* from, std::int64_t n, float scale, std::byte* to) {
  Element* elements = reinterpret_cast<Element*>(to);
  for (std::int64_t i = 0; i < n; ++i) put(elements + i, from[i] / scale);
}

}  // namespace

void widen_row(Dtype dtype, const std::byte* from, std::int64_t n, float* to) {
  switch (dtype) {
    case Dtype::f32:
      return widen<float>(from, n, to);
    case Dtype::bf16:
      return widen<Bf16>(from, n, to);
    case Dtype::f16:
      return widen<Fp16>(from, n, to);
    case Dtype::fp8:
      return widen<Fp8>(from, n, to);
    case Dtype::s8:
      return widen<std::int8_t>(from, n, to);
  }
}

void narrow_row(Dtype dtype, const float* from, std::int64_t n, float scale, std::byte* to) {
  switch (dtype) {
    case Dtype::f32:
      return narrow<float>(from, n, scale, to);
    case Dtype::bf16:
      return narrow<Bf16>(from, n, scale, to);
    case Dtype::f16:
      return narrow<Fp16>(from, n, scale, to);
    case Dtype::fp8:
      return narrow<Fp8>(from, n, scale, to);
    case Dtype::s8:
      return narrow<std::int8_t>(from, n, scale, to);
  }
}

}  // namespace llm_decoder
