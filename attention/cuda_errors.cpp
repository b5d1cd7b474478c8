#include "cuda_errors.h"

#include <algorithm>
#include <cstddef>
#include <iterator>
#include <string>

#include "llm_decoder/errors.h"

namespace llm_decoder {
namespace gpu {
namespace {

constexpr int kMemoryAllocation = 2;

// What a kernel has done: IllegalAddress, LaunchTimeout, Assert, HardwareStackError, IllegalInstruction,
// MisalignedAddress, InvalidAddressSpace, InvalidPc, LaunchFailure, TensorMemoryLeak.
constexpr int kKernelFaults[] = {700, 702, 710, 714, 715, 716, 717, 718, 719, 721};
// What the machine has done: ECCUncorrectable, NvlinkUncorrectable, Contained, MpsClientTerminated, ExternalDevice,
// Unknown, which is what is said of a device that was removed.
constexpr int kMachineFaults[] = {214, 220, 226, 810, 911, 999};

template <std::size_t n>
bool is_in(const int (&codes)[n], int code) {
  return std::find(std::begin(codes), std::end(codes), code) != std::end(codes);
}

}  // namespace

void throw_cuda_error(const char* place, int code, const char* name, const char* words) {
  const std::string said = concat("[", place, "] ", name, ": ", words);
  if (code == kMemoryAllocation) throw OutOfMemory(said);
  constexpr char kLost[] = "; the GPU is lost to this process, which must be started again. If it comes back, ";
  if (is_in(kKernelFaults, code)) {
    throw DeviceLost(concat(said, kLost, "run the process under compute-sanitizer and report what that says"));
  }
  if (is_in(kMachineFaults, code)) {
    throw DeviceLost(concat(said, kLost, "look at `nvidia-smi -q` and for Xid in the system's log: it is the machine"));
  }
  throw std::runtime_error(said);
}

}  // namespace gpu
}  // namespace llm_decoder
