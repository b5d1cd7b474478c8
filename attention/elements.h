// Element types of kernels and pages, and what they are in float32. Rounds to the nearest, ties to even; what is too
// large for fp16 becomes infinity, for fp8 (e4m3, which has none) the largest finite value, for int8 127 or -127; NaN,
// which int8 has not, becomes 127.
#pragma once

#include <cstdint>
#include <cstring>

#include "llm_decoder/types.h"

#if defined(__CUDACC__)
#define ELEMENT_FUNCTION __host__ __device__ inline
#else
#define ELEMENT_FUNCTION inline
#endif

namespace llm_decoder {
namespace gpu {

// 5 bits of exponent, 10 of mantissa.
struct Fp16 {
  std::uint16_t bits;
};

// e4m3: 4 bits of exponent, 3 of mantissa, largest 448, no infinity.
struct Fp8 {
  std::uint8_t bits;
};

struct Int8 {
  std::int8_t value;
};

ELEMENT_FUNCTION std::uint32_t float_bits(float x) {
  std::uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  return bits;
}

ELEMENT_FUNCTION float bits_float(std::uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof(x));
  return x;
}

ELEMENT_FUNCTION float to_float(float x) { return x; }
ELEMENT_FUNCTION float to_float(Bf16 x) { return bits_float(std::uint32_t{x.bits} << 16); }
ELEMENT_FUNCTION float to_float(Int8 x) { return static_cast<float>(x.value); }

// A float of n_exponent and n_mantissa bits that has subnormals. Its exponent moves to where float32 has it, by one
// multiplication that also makes subnormals normal.
template <int n_exponent, int n_mantissa>
ELEMENT_FUNCTION float small_to_float(std::uint32_t magnitude) {
  constexpr int kBias = (1 << (n_exponent - 1)) - 1;
  return bits_float(magnitude << (23 - n_mantissa)) * bits_float(static_cast<std::uint32_t>(127 + 127 - kBias) << 23);
}

ELEMENT_FUNCTION float to_float(Fp16 x) {
  const std::uint32_t magnitude = x.bits & 0x7fffu, sign = std::uint32_t{x.bits & 0x8000u} << 16;
  const float value =
      magnitude >= 0x7c00u ? bits_float(0x7f800000u | (magnitude & 0x3ffu) << 13) : small_to_float<5, 10>(magnitude);
  return bits_float(float_bits(value) | sign);
}

ELEMENT_FUNCTION float to_float(Fp8 x) {
  const std::uint32_t magnitude = x.bits & 0x7fu, sign = std::uint32_t{x.bits & 0x80u} << 24;
  const float value = magnitude == 0x7fu ? bits_float(0x7fc00000u) : small_to_float<4, 3>(magnitude);
  return bits_float(float_bits(value) | sign);
}

// The inverse, for a finite magnitude that is not too large: rounded to n_mantissa bits.
template <int n_exponent, int n_mantissa>
ELEMENT_FUNCTION std::uint32_t small_from_float(float magnitude) {
  constexpr int kBias = (1 << (n_exponent - 1)) - 1;
  constexpr int kDropped = 23 - n_mantissa;
  const std::uint32_t bits = float_bits(magnitude);
  const int exponent = static_cast<int>(bits >> 23) - 127 + kBias;
  if (exponent <= 0) {
    // Subnormal here: one addition leaves its multiple of the smallest value in the low bits, rounded as additions are.
    constexpr std::uint32_t kOneUlpIsSmallest = static_cast<std::uint32_t>(127 + 1 - kBias - n_mantissa + 23) << 23;
    return float_bits(magnitude + bits_float(kOneUlpIsSmallest)) - kOneUlpIsSmallest;
  }
  const std::uint32_t rebiased = bits - (static_cast<std::uint32_t>(127 - kBias) << 23);
  const std::uint32_t half_less_one = (1u << (kDropped - 1)) - 1 + (rebiased >> kDropped & 1u);
  return (rebiased + half_less_one) >> kDropped;
}

template <class T>
ELEMENT_FUNCTION T from_float(float x);

template <>
ELEMENT_FUNCTION float from_float<float>(float x) {
  return x;
}

template <>
ELEMENT_FUNCTION Bf16 from_float<Bf16>(float x) {
  const std::uint32_t bits = float_bits(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return {static_cast<std::uint16_t>(bits >> 16 | 0x40u)};
  return {static_cast<std::uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16)};
}

template <>
ELEMENT_FUNCTION Fp16 from_float<Fp16>(float x) {
  const std::uint32_t bits = float_bits(x), magnitude = bits & 0x7fffffffu;
  const std::uint32_t sign = bits >> 16 & 0x8000u;
  constexpr std::uint32_t kFirstTooLarge = 0x477ff000u;  // 65520, halfway to 2^16
  std::uint32_t out = 0x7c00u;
  if (magnitude > 0x7f800000u) {
    out = 0x7e00u;
  } else if (magnitude < kFirstTooLarge) {
    out = small_from_float<5, 10>(bits_float(magnitude));
  }
  return {static_cast<std::uint16_t>(out | sign)};
}

template <>
ELEMENT_FUNCTION Fp8 from_float<Fp8>(float x) {
  const std::uint32_t bits = float_bits(x), magnitude = bits & 0x7fffffffu;
  const std::uint32_t sign = bits >> 24 & 0x80u;
  constexpr std::uint32_t kFirstTooLarge = 0x43e80000u;  // 464, halfway from 448 to what would be next
  std::uint32_t out = 0x7eu;
  if (magnitude > 0x7f800000u) {
    out = 0x7fu;
  } else if (magnitude < kFirstTooLarge) {
    out = small_from_float<4, 3>(bits_float(magnitude));
  }
  return {static_cast<std::uint8_t>(out | sign)};
}

template <>
ELEMENT_FUNCTION Int8 from_float<Int8>(float x) {
  // So large that its last bit is worth 1: the sum is rounded to whole numbers, which its low bits hold.
  constexpr float kOneUlpIsOne = 12582912.0f;  // 1.5 * 2^23
  const float kept = !(x <= 127.0f) ? 127.0f : x < -127.0f ? -127.0f : x;
  return {static_cast<std::int8_t>(float_bits(kept + kOneUlpIsOne) & 0xffu)};
}

ELEMENT_FUNCTION std::uint32_t byte_of(Fp8 x) { return x.bits; }
ELEMENT_FUNCTION std::uint32_t byte_of(Int8 x) { return static_cast<std::uint8_t>(x.value); }

}  // namespace gpu
}  // namespace llm_decoder
