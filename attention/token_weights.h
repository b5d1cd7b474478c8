// What tokens weigh in one draw, and the bins that they fall in by weight.
#pragma once

#include "sampling_args.h"

namespace llm_decoder {
namespace gpu {

constexpr float kOctaves = 44.0f;  // weights from 1 down to 2^-44
constexpr float kBinsPerOctave = 46.0f;
static_assert(kOctaves * kBinsPerOctave < kBins, "every weight has a bin");
constexpr int kMaxVocabSize = 1 << 19;  // of so many weights the sum stays below 2^63

struct TokenWeights {
  float max, octaves_per_unit;

  // Octaves below the likeliest token.
  GPU_FUNCTION float octaves(float logit) const {
    const float below = max - logit;
    return below > 0.0f ? below * octaves_per_unit : 0.0f;
  }
  static GPU_FUNCTION bool has_weight(float octaves) { return octaves < kOctaves; }
  static GPU_FUNCTION int bin(float octaves) { return static_cast<int>(octaves * kBinsPerOctave); }
  static GPU_FUNCTION float weight(float octaves) { return exp2(-octaves); }
  // In units of 2^-44. The exponent says where the mantissa goes.
  static GPU_FUNCTION std::uint64_t whole(float weight) {
    const std::uint32_t bits = float_bits(weight);
    const std::uint64_t mantissa = (bits & 0x7fffffu) | 0x800000u;
    const int shift = static_cast<int>(bits >> 23) - (127 + 23 - 44);
    return shift >= 0 ? mantissa << shift : shift > -24 ? mantissa >> -shift : 0;
  }
};

}  // namespace gpu
}  // namespace llm_decoder
