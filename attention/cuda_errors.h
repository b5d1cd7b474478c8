// What an error of the CUDA runtime means to who called it: an exception of a type for each answer that there is.
// Numbers and words are passed in, so that it is tested where there is no runtime.
#pragma once

#include <stdexcept>

namespace llm_decoder {
namespace gpu {

// This process can use the device no more, nor what lies in its memory: the runtime answers every further call with the
// same error (CUDA Runtime API, "Error Handling", the errors after which a process must be relaunched).
class DeviceLost : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

// code: a cudaError_t that is not cudaSuccess; name, words: what the runtime says of it. Throws OutOfMemory where
// memory was refused, DeviceLost where the device is gone, else std::runtime_error. Work is queued: what failed may be
// anything that was queued before `place`.
[[noreturn]] void throw_cuda_error(const char* place, int code, const char* name, const char* words);

}  // namespace gpu
}  // namespace llm_decoder
