// Bytes in registers to what tensor cores multiply, two at a time and exactly, in two or three instructions a pair.
//
// A byte u in the low bits of a 16-bit float is u times the smallest number that the type has: eight bits still count
// up evenly in bf16, whose first two exponents have the same unit in the last place, as eleven do in fp16. One fma
// takes it from there to where it may be multiplied: (u - 128) * 2^-13, a normal number of both types whatever u is.
#pragma once

#include "machine.h"

namespace llm_decoder {
namespace gpu {

// What 1 becomes where integers are widened. Who sums products of them divides by it.
constexpr int kWidenedExponent = -13;
constexpr float kWidenedUnit = 1.0f / 8192;

// The bits of 2^exponent in T, a normal number, in both halves of a word.
template <class T>
constexpr std::uint32_t power_pair(int exponent) {
  const int bits = std::is_same_v<T, Bf16> ? (exponent + 127) << 7 : (exponent + 15) << 10;
  return static_cast<std::uint32_t>(bits) * 0x10001u;
}
constexpr std::uint32_t kNegativePair = 0x80008000u;

// The smallest number of T, a subnormal one, is 2^this.
template <class T>
constexpr int kSmallestExponent = std::is_same_v<T, Bf16> ? -133 : -24;

// Bytes i and j of a word, each in the low byte of a half.
GPU_FUNCTION std::uint32_t spread_bytes(std::uint32_t word, int i, int j) {
  return permute_bytes(word, 0, static_cast<std::uint32_t>(0x4040 | i | j << 8));
}

// Bytes i and j of a word of u = q + 128: q * kWidenedUnit.
template <class T>
GPU_FUNCTION std::uint32_t widen_biased(std::uint32_t word, int i, int j) {
  return fma_pairs<T>(spread_bytes(word, i, j), power_pair<T>(kWidenedExponent - kSmallestExponent<T>),
                      power_pair<T>(kWidenedExponent + 7) | kNegativePair);
}

// Where there is no instruction for it, the bits of an Fp8 move to where T has them: the exponent is off by the
// difference of the biases then, which one product mends, of subnormals too.
template <class T>
GPU_FUNCTION std::uint32_t mend_moved_fp8(std::uint32_t bits) {
  return fma_pairs<T>(bits, power_pair<T>(std::is_same_v<T, Bf16> ? 127 - 7 : 15 - 7), kNegativePair);
}
// Without their signs, those in the upper bytes of the halves of a word.
template <class T>
GPU_FUNCTION std::uint32_t move_fp8_magnitudes(std::uint32_t upper) {
  return (upper & 0x7f007f00u) >> (std::is_same_v<T, Bf16> ? 4 : 1);
}

// The two Fp8 in the low half of a word. A NaN, which T would take for 480, gets the whole exponent of T first.
template <class T>
GPU_FUNCTION std::uint32_t move_fp8(std::uint32_t word) {
  constexpr bool kIsBf16 = std::is_same_v<T, Bf16>;
  constexpr std::uint32_t kUnit = (kIsBf16 ? 0x0010u : 0x0080u) * 0x10001u;  // what moves to the mantissa's last place
  const std::uint32_t upper = permute_bytes(word, 0, 0x1404u);
  const std::uint32_t magnitude = move_fp8_magnitudes<T>(upper);
  const std::uint32_t is_nan = (magnitude + kUnit) & (kUnit << 7);  // carried past the exponent
  return mend_moved_fp8<T>(magnitude | (kIsBf16 ? is_nan * 15u : is_nan) | (upper & kNegativePair));
}

// Bytes i and j of a word of Fp8 that is not NaN: five instructions on every device. The one that newer devices have
// gives fp16, from which bf16 is far.
template <class T>
GPU_FUNCTION std::uint32_t widen_finite_fp8(std::uint32_t word, int i, int j) {
  const std::uint32_t upper = permute_bytes(word, 0, static_cast<std::uint32_t>(0x0404 | i << 4 | j << 12));
  return mend_moved_fp8<T>(move_fp8_magnitudes<T>(upper) | (upper & kNegativePair));
}

template <class T>
GPU_FUNCTION std::uint32_t widen_fp8(std::uint32_t word) {
  if constexpr (kConvertsFp8) {
    return convert_fp8<T>(word);
  } else {
    return move_fp8<T>(word);
  }
}

// What 1 becomes in widen().
template <class Kv>
constexpr float kUnitOf = std::is_same_v<Kv, Int8> ? kWidenedUnit : 1.0f;

// Bytes i and j of a word of Fp8 or Int8 as two of T, in units of kUnitOf<Kv>.
template <class T, class Kv>
GPU_FUNCTION std::uint32_t widen(std::uint32_t word, int i, int j) {
  if constexpr (std::is_same_v<Kv, Int8>) {
    return widen_biased<T>(word ^ 0x80808080u, i, j);
  } else {
    static_assert(std::is_same_v<Kv, Fp8>, "Int8 or Fp8");
    return widen_fp8<T>(j == i + 1 ? word >> (8 * i) : permute_bytes(word, 0, static_cast<std::uint32_t>(i | j << 4)));
  }
}

}  // namespace gpu
}  // namespace llm_decoder
