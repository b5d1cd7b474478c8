// Activations of feed-forward layers, one number at a time.
#pragma once

#include "machine.h"

namespace llm_decoder {
namespace gpu {

enum class Activation : std::uint8_t {
  silu,       // x / (1 + exp(-x))
  gelu,       // x (1 + erf(x / sqrt(2))) / 2
  gelu_tanh,  // x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2
  relu,
  identity,  // for rows that are only to be quantised or converted
};

GPU_FUNCTION float activate(float x, Activation activation) {
  switch (activation) {
    case Activation::silu:
      return x * reciprocal(1.0f + exp2(x * -1.4426950408889634f));
    case Activation::gelu:
      return 0.5f * x * (1.0f + erf(x * 0.70710678118654752f));
    case Activation::gelu_tanh:
      return 0.5f * x * (1.0f + tanh(0.79788456080286536f * fma(0.044715f * x * x, x, x)));
    case Activation::relu:
      return x < 0.0f ? 0.0f : x;
    case Activation::identity:
      break;
  }
  return x;
}

}  // namespace gpu
}  // namespace llm_decoder
