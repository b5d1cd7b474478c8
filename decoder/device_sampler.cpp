#include "device_sampler.h"

#include <cstring>

#include "check_sampling.h"
#include "staged_draws.h"

namespace llm_decoder {
namespace gpu {

void DeviceSampler::begin_sample(const LogitRowsTensor& logits, const SamplingParams& params, std::int32_t n_top,
                                 Stream stream) {
  check_arg(n_outstanding_ < kMaxOutstanding, "begin_sample", "at most ", kMaxOutstanding,
            " draws can be begun and not ended; end the oldest first");
  check_sampling(params, logits.n_rows, logits.vocab_size);
  check_n_top("sample", n_top, logits.vocab_size);
  const DrawSize size = {static_cast<std::int32_t>(params.rows.size), n_top};
  Reply& reply = replies_[(next_ + n_outstanding_) % kMaxOutstanding];
  n_drawn_ = 0;
  if (size.n_draws > 0) {
    params_.begin();
    const StagedDraws draws(params, logits.vocab_size, params_);
    params_.upload(stream);
    SampleLaunch launch;
    launch.logits = logits;
    launch.params = draws.on_device(params_);
    launch.n_draws = size.n_draws;
    launch.best.n = n_top;
    const Places places = places_for(size.n_draws, n_top);
    grow(workspace_, workspace_bytes(launch), stream);
    grow(draws_, places.end, stream);
    point_at(draws_, places, n_top, launch);
    launch.workspace = workspace_.data();
    launch.tokens = static_cast<std::int32_t*>(static_cast<void*>(draws_.data() + places.tokens));
    gpu::sample(launch, stream);
  }
  queue_reply(draws_, size, stream, reply);
  n_drawn_ = size.n_draws;
  ++n_outstanding_;
}

void DeviceSampler::end_sample(const SampleResult& result) {
  check_arg(n_outstanding_ > 0, "end_sample", "needs begin_sample first");
  const Reply& reply = replies_[next_];
  next_ = (next_ + 1) % kMaxOutstanding;
  --n_outstanding_;
  read("CUDADecoder.end_sample", reply, result);
}

DeviceSampler::DrawSize DeviceSampler::next_size() const {
  check_arg(n_outstanding_ > 0, "end_sample", "needs begin_sample first");
  return replies_[next_].size;
}

const std::int32_t* DeviceSampler::drawn() const {
  return static_cast<const std::int32_t*>(static_cast<const void*>(draws_.data()));
}

void DeviceSampler::log_probs(const LogitRowsTensor& logits, Span<const std::int32_t> targets, std::int32_t n_top,
                              const SampleResult& result, Stream stream) {
  check_targets(targets, logits.n_rows, logits.vocab_size);
  check_n_top("log_probs", n_top, logits.vocab_size);
  if (targets.empty()) return;
  params_.begin();
  const StagedArray<std::int32_t> staged = params_.add(targets);
  params_.upload(stream);
  LogProbsLaunch launch;
  launch.logits = logits;
  launch.targets = params_.device(staged);
  launch.best.n = n_top;
  const Places places = places_for(logits.n_rows, n_top);
  grow(workspace_, workspace_bytes(launch), stream);
  grow(log_probs_, places.end, stream);
  point_at(log_probs_, places, n_top, launch);
  launch.workspace = workspace_.data();
  gpu::log_probs(launch, stream);
  queue_reply(log_probs_, {logits.n_rows, n_top}, stream, log_probs_reply_);
  SampleResult without_tokens = result;
  without_tokens.tokens = nullptr;
  read("CUDADecoder.log_probs", log_probs_reply_, without_tokens);
}

DeviceSampler::Places DeviceSampler::places_for(std::int64_t n_draws, std::int32_t n_top) {
  constexpr std::int64_t kBytes = 4;  // of an id or a float
  Places places;
  places.logprobs = places.tokens + n_draws * kBytes;
  places.ranks = places.logprobs + n_draws * kBytes;
  places.top_ids = places.ranks + n_draws * kBytes;
  places.top_logprobs = places.top_ids + n_draws * n_top * kBytes;
  places.end = places.top_logprobs + n_draws * n_top * kBytes;
  return places;
}

template <class Launch>
void DeviceSampler::point_at(const DeviceArray<std::byte>& results, const Places& places, std::int32_t n_top,
                             Launch& launch) {
  const auto at = [&results](std::int64_t place) { return static_cast<void*>(results.data() + place); };
  launch.logprobs = static_cast<float*>(at(places.logprobs));
  launch.ranks = static_cast<std::int32_t*>(at(places.ranks));
  launch.best = {n_top, static_cast<std::int32_t*>(at(places.top_ids)), static_cast<float*>(at(places.top_logprobs))};
}

// The reply before it has been read.
void DeviceSampler::queue_reply(const DeviceArray<std::byte>& results, DrawSize size, Stream stream, Reply& reply) {
  const std::int64_t n_bytes = places_for(size.n_draws, size.n_top).end;
  if (reply.host.size() < n_bytes) reply.host = PinnedArray<std::byte>(n_bytes);
  if (n_bytes > 0) copy_memory(reply.host.data(), results.data(), n_bytes, stream);
  reply.arrived.record(stream);
  reply.size = size;
}

void DeviceSampler::read(const char* place, const Reply& reply, const SampleResult& result) {
  reply.arrived.wait(place);
  const Places places = places_for(reply.size.n_draws, reply.size.n_top);
  const auto copy = [&reply](void* to, std::int64_t begin, std::int64_t end) {
    if (end > begin) std::memcpy(to, reply.host.data() + begin, static_cast<std::size_t>(end - begin));
  };
  if (result.tokens != nullptr) copy(result.tokens, places.tokens, places.logprobs);
  copy(result.logprobs, places.logprobs, places.ranks);
  copy(result.ranks, places.ranks, places.top_ids);
  copy(result.top_ids, places.top_ids, places.top_logprobs);
  copy(result.top_logprobs, places.top_logprobs, places.end);
}

}  // namespace gpu
}  // namespace llm_decoder
