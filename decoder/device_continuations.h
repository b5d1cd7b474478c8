// Continuations of logits that are on a device, with parameters and results on the host: what a step of a beam search
// copies there and back.
#pragma once

#include <cstdint>

#include "continuations_launch.h"
#include "device_memory.h"
#include "sampler.h"
#include "staged_arrays.h"

namespace llm_decoder {
namespace gpu {

class DeviceContinuations {
 public:
  // As Sampler::continuations, which says what is in `result`; waits for it.
  void find(const LogitRowsTensor& logits, const SamplingParams& params, const ContinuationResult& result,
            Stream stream);

  std::int64_t n_bytes() const { return workspace_.n_bytes() + results_.n_bytes(); }

 private:
  StagedArrays params_;
  DeviceArray<std::byte> workspace_, results_;
  PinnedArray<std::byte> host_results_;
};

}  // namespace gpu
}  // namespace llm_decoder
