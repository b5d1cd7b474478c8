// Comes before a test of kernels that is compiled for a device, so that it runs there as it is. What such a test has on
// its stack, in its vectors and in DeviceArrays is pinned host memory, which host and device reach at one address; a
// launch or copy has happened when the call returns, as on the host machine. What kernels do to each other's memory
// within a launch is the device's own.
#pragma once

#include "machine.h"

#define LLM_DECODER_ON_DEVICE
#pragma nv_diag_suppress 177  // kernels of a HOST_TEST alone

namespace on_device {

// body(argc, argv) on a stack that the device reaches. Where there is no device: what the runtime says about it, and
// 77, which ctest takes for skipped.
int run(int (*body)(int, char**), int argc, char** argv);

}  // namespace on_device

namespace llm_decoder {
namespace gpu {

// A device has an order of its own.
struct Order {
  enum class Kind { ascending, descending, shuffled };
  Kind kind = Kind::ascending;
  std::uint64_t seed = 0;
};
inline void set_host_order(const Order&) {}

}  // namespace gpu
}  // namespace llm_decoder
