// Draws and log probabilities of logits that are on a device, with parameters and results on the host: what a step's
// sampling copies there and back.
#pragma once

#include <cstdint>

#include "device_memory.h"
#include "sampler.h"
#include "sampling_launch.h"
#include "staged_arrays.h"

namespace llm_decoder {
namespace gpu {

class DeviceSampler {
 public:
  // As Sampler::sample and log_probs, which say what is in `result`; both wait for it. Throw std::invalid_argument also
  // for n_top above kMaxBest and for a token that has two biases in a draw.
  void sample(const LogitRowsTensor& logits, const SamplingParams& params, std::int32_t n_top,
              const SampleResult& result, Stream stream);
  void log_probs(const LogitRowsTensor& logits, Span<const std::int32_t> targets, std::int32_t n_top,
                 const SampleResult& result, Stream stream);

  std::int64_t n_bytes() const { return workspace_.n_bytes() + results_.n_bytes(); }

 private:
  // Where each array of a result begins in results_, in bytes.
  struct Places {
    std::int64_t tokens = 0, logprobs = 0, ranks = 0, top_ids = 0, top_logprobs = 0, end = 0;
  };

  static Places places_for(std::int64_t n_draws, std::int32_t n_top);
  void make_room(const Places& places, std::int64_t workspace_bytes);
  template <class Launch>
  void point_at(const Places& places, std::int32_t n_top, Launch& launch) const;
  void read_back(const Places& places, const SampleResult& result, Stream stream);

  StagedArrays params_;
  DeviceArray<std::byte> workspace_, results_;
  PinnedArray<std::byte> host_results_;
};

}  // namespace gpu
}  // namespace llm_decoder
