// Draws and log probabilities of logits that are on a device, with parameters and results on the host: what a step's
// sampling copies there and back.
#pragma once

#include <cstdint>

#include "device_memory.h"
#include "sampler.h"
#include "sampling_launch.h"
#include "staged_arrays.h"
#include "stream_mark.h"

namespace llm_decoder {
namespace gpu {

class DeviceSampler {
 public:
  // Queues a draw as Sampler::sample makes it. At most kMaxOutstanding are begun and not ended.
  void begin_sample(const LogitRowsTensor& logits, const SamplingParams& params, std::int32_t n_top, Stream stream);
  // Waits for the oldest draw that was not ended and gives what Sampler::sample says is in `result`. Throws
  // std::runtime_error where the device failed at what was queued until then.
  void end_sample(const SampleResult& result);
  static constexpr int kMaxOutstanding = 2;
  int n_outstanding() const { return n_outstanding_; }

  struct DrawSize {
    std::int32_t n_draws = 0, n_top = 0;
  };
  DrawSize next_size() const;  // of what end_sample gives

  // Of the draw that was begun last, on the device: int32 [n_drawn()], negative where there is no token.
  const std::int32_t* drawn() const;
  std::int32_t n_drawn() const { return n_drawn_; }

  // As Sampler::log_probs; waits for it.
  void log_probs(const LogitRowsTensor& logits, Span<const std::int32_t> targets, std::int32_t n_top,
                 const SampleResult& result, Stream stream);

  std::int64_t n_bytes() const {
    return params_.n_device_bytes() + workspace_.n_bytes() + draws_.n_bytes() + log_probs_.n_bytes();
  }

 private:
  // Where each array of a result begins, in bytes.
  struct Places {
    std::int64_t tokens = 0, logprobs = 0, ranks = 0, top_ids = 0, top_logprobs = 0, end = 0;
  };
  // Results on their way to the host.
  struct Reply {
    PinnedArray<std::byte> host;
    StreamMark arrived;
    DrawSize size;
  };

  static Places places_for(std::int64_t n_draws, std::int32_t n_top);
  template <class Launch>
  static void point_at(const DeviceArray<std::byte>& results, const Places& places, std::int32_t n_top, Launch& launch);
  static void queue_reply(const DeviceArray<std::byte>& results, DrawSize size, Stream stream, Reply& reply);
  static void read(const char* place, const Reply& reply, const SampleResult& result);

  StagedArrays params_;
  DeviceArray<std::byte> workspace_, draws_, log_probs_;
  Reply replies_[kMaxOutstanding], log_probs_reply_;
  int n_outstanding_ = 0, next_ = 0;  // of replies_
  std::int32_t n_drawn_ = 0;
};

}  // namespace gpu
}  // namespace llm_decoder
