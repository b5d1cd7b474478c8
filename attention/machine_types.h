// Plain types of machine.h, the same on both machines.
#pragma once

#include <cstdint>

#include "llm_decoder/types.h"

namespace llm_decoder {
namespace gpu {

constexpr int kWarpSize = 32;
constexpr int kMaxBlockThreads = 1024;
constexpr int kMaxSharedBytes = 227 << 10;      // of a block, on the device that gives most
constexpr int kPortableSharedBytes = 99 << 10;  // on every device of compute capability 8.0 and above
constexpr int kSharedAlign = 16;

// Elements that move as one.
template <class T, int n>
struct alignas(sizeof(T) * n) Vec {
  T values[n];
};

struct Dim3 {
  int x = 1, y = 1, z = 1;
};

struct LaunchShape {
  Dim3 grid;
  int n_threads = 0;  // a multiple of kWarpSize, at most kMaxBlockThreads
  int shared_bytes = 0;
};

}  // namespace gpu
}  // namespace llm_decoder
