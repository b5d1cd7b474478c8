// Weights for tests of kernels that read them packed: random ones of any format, and what they are as numbers.
#pragma once

#include <random>
#include <type_traits>
#include <vector>

#include "pack_gpu_weights.h"

namespace rig {

using namespace llm_decoder;
using namespace llm_decoder::gpu;

constexpr GpuWeightFormat kFormats[] = {GpuWeightFormat::half, GpuWeightFormat::w8, GpuWeightFormat::w4,
                                        GpuWeightFormat::f8};

inline const char* name_of(GpuWeightFormat format) {
  constexpr const char* kNames[] = {"half", "w8", "w4", "f8"};
  return kNames[static_cast<int>(format)];
}

template <class T>
constexpr Dtype kDtypeOf = std::is_same_v<T, Bf16>   ? Dtype::bf16
                           : std::is_same_v<T, Fp16> ? Dtype::f16
                                                     : Dtype::f32;

inline std::size_t at(int i) { return static_cast<std::size_t>(i); }

// Weights as they were before they were packed, and as the kernel has them. Rows of the sources lie some elements
// apart that nothing may look at.
template <class T>
struct PackedWeights {
  PackedWeights(GpuWeightFormat format, int n_, int k_, std::uint64_t seed) : n(n_), k(k_), values(at(n_ * k_)) {
    std::mt19937_64 random(seed);
    packed.assign(static_cast<std::size_t>(packed_gpu_bytes(format, n, k)), 0x55);
    if (format == GpuWeightFormat::half) make_half(random);
    if (format == GpuWeightFormat::w8) make_w8(random);
    if (format == GpuWeightFormat::w4) make_w4(random);
    if (format == GpuWeightFormat::f8) make_f8(random);
  }

  int n, k;
  std::vector<double> values;  // [n, k], before the scale of the row
  std::vector<std::uint8_t> packed;

  void make_half(std::mt19937_64& random) {
    std::normal_distribution<float> normal;
    const int stride = k + 3;
    std::vector<std::uint16_t> w(at(n * stride), 0x7fff);
    for (int row = 0; row < n; ++row) {
      for (int i = 0; i < k; ++i) {
        const T x = from_float<T>(normal(random));
        w[at(row * stride + i)] = x.bits;
        values[at(row * k + i)] = to_float(x);
      }
    }
    pack_gpu_half(w.data(), stride, n, k, packed.data());
  }

  void make_w8(std::mt19937_64& random) {
    const int stride = k + 5;
    std::vector<std::int8_t> q(at(n * stride), -128);
    for (int row = 0; row < n; ++row) {
      for (int i = 0; i < k; ++i) {
        const int value = static_cast<int>(random() % 255) - 127;
        q[at(row * stride + i)] = static_cast<std::int8_t>(value);
        values[at(row * k + i)] = value;
      }
    }
    pack_gpu_w8(q.data(), stride, n, k, packed.data());
  }

  void make_f8(std::mt19937_64& random) {
    const int stride = k + 1;
    std::vector<std::uint8_t> q(at(n * stride), 0x7f);
    for (int row = 0; row < n; ++row) {
      for (int i = 0; i < k; ++i) {
        const auto bits = static_cast<std::uint8_t>(random() % 127 | (random() & 0x80));
        q[at(row * stride + i)] = bits;
        values[at(row * k + i)] = to_float(Fp8{bits});
      }
    }
    pack_gpu_f8(q.data(), stride, n, k, packed.data());
  }

  void make_w4(std::mt19937_64& random) {
    const int stride = k + 7, n_groups = (k + 31) / 32;
    std::vector<std::uint8_t> q(at(n * stride), 15), group_scale(at(n * n_groups));
    std::vector<std::int8_t> group_min(at(n * n_groups));
    for (std::size_t g = 0; g < group_scale.size(); ++g) {
      const int scale = static_cast<int>(random() % 16) + 1;
      const int least = -127, most = 127 - 15 * scale;
      group_scale[g] = static_cast<std::uint8_t>(scale);
      group_min[g] = static_cast<std::int8_t>(least + static_cast<int>(random() % at(most - least + 1)));
    }
    for (int row = 0; row < n; ++row) {
      for (int i = 0; i < k; ++i) {
        const auto g = at(row * n_groups + i / 32);
        const int value = static_cast<int>(random() % 16);
        q[at(row * stride + i)] = static_cast<std::uint8_t>(value);
        values[at(row * k + i)] = group_scale[g] * value + group_min[g];
      }
    }
    pack_gpu_w4(q.data(), stride, group_scale.data(), group_min.data(), n, k, packed.data());
  }
};

}  // namespace rig
