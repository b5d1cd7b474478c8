// The one order of tokens, larger values first, then lower ids, as the order of one number: keys are unique, and the
// larger key comes first. 0 is no key.
#pragma once

#include "machine.h"

namespace llm_decoder {
namespace gpu {

// Ascends with the value. NaN has no place here.
GPU_FUNCTION std::uint32_t value_key(float value) {
  const std::uint32_t bits = float_bits(value + 0.0f);  // -0 equals 0
  return bits >> 31 != 0 ? ~bits : bits | 0x80000000u;
}

GPU_FUNCTION std::uint64_t token_key(float value, int id) {
  return std::uint64_t{value_key(value)} << 32 | static_cast<std::uint32_t>(~id);
}

GPU_FUNCTION int id_of_key(std::uint64_t key) { return static_cast<int>(~static_cast<std::uint32_t>(key)); }

GPU_FUNCTION float value_of_key(std::uint64_t key) {
  const auto bits = static_cast<std::uint32_t>(key >> 32);
  return bits_float(bits >> 31 != 0 ? bits & 0x7fffffffu : ~bits);
}

}  // namespace gpu
}  // namespace llm_decoder
