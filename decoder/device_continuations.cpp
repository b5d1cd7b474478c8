#include "device_continuations.h"

#include <cstring>

#include "check_sampling.h"
#include "staged_draws.h"

namespace llm_decoder {
namespace gpu {
namespace {

// The arrays of a result, one behind the other in device memory and in the host's.
class ResultArrays {
 public:
  // Where the caller wants n elements of four bytes; null: nowhere, the device leaves none.
  template <class T>
  std::int64_t add(T* to, std::int64_t n) {
    static_assert(sizeof(T) == 4, "ids and floats");
    const std::int64_t begin = n_bytes_;
    if (to == nullptr || n == 0) return -1;
    n_bytes_ += n * 4;
    copies_[n_copies_++] = {to, begin, n_bytes_};
    return begin;
  }
  std::int64_t n_bytes() const { return n_bytes_; }

  void copy_from(const std::byte* host) const {
    for (int i = 0; i < n_copies_; ++i) {
      std::memcpy(copies_[i].to, host + copies_[i].begin, static_cast<std::size_t>(copies_[i].end - copies_[i].begin));
    }
  }

 private:
  struct Copy {
    void* to;
    std::int64_t begin, end;
  };
  Copy copies_[7] = {};
  int n_copies_ = 0;
  std::int64_t n_bytes_ = 0;
};

}  // namespace

void DeviceContinuations::find(const LogitRowsTensor& logits, const SamplingParams& params,
                               const ContinuationResult& result, Stream stream) {
  check_sampling(params, logits.n_rows, logits.vocab_size);
  check_continuations(result.n, result.n_top, logits.vocab_size);
  if (params.rows.empty()) return;
  params_.begin();
  const StagedDraws draws(params, logits.vocab_size, params_);
  params_.upload(stream);

  ContinuationLaunch launch;
  launch.logits = logits;
  launch.params = draws.on_device(params_);
  launch.n_draws = static_cast<int>(params.rows.size);
  launch.n = result.n;
  launch.best.n = result.n_top;
  ResultArrays arrays;
  const std::int64_t n = std::int64_t{launch.n_draws} * result.n, n_best = std::int64_t{launch.n_draws} * result.n_top;
  const std::int64_t tokens = arrays.add(result.tokens, n), scores = arrays.add(result.scores, n),
                     keys = arrays.add(result.keys, n), logprobs = arrays.add(result.logprobs, n),
                     ranks = arrays.add(result.ranks, n), top_ids = arrays.add(result.top_ids, n_best),
                     top_logprobs = arrays.add(result.top_logprobs, n_best);
  grow(workspace_, workspace_bytes(launch), stream);
  grow(results_, arrays.n_bytes(), stream);
  if (host_results_.size() < arrays.n_bytes()) host_results_ = PinnedArray<std::byte>(arrays.n_bytes());
  const auto at = [this](std::int64_t begin) -> void* { return begin < 0 ? nullptr : results_.data() + begin; };
  launch.tokens = static_cast<std::int32_t*>(at(tokens));
  launch.scores = static_cast<float*>(at(scores));
  launch.keys = static_cast<float*>(at(keys));
  launch.logprobs = static_cast<float*>(at(logprobs));
  launch.ranks = static_cast<std::int32_t*>(at(ranks));
  launch.best.tokens = static_cast<std::int32_t*>(at(top_ids));
  launch.best.logprobs = static_cast<float*>(at(top_logprobs));
  launch.workspace = workspace_.data();
  find_continuations(launch, stream);
  copy_memory(host_results_.data(), results_.data(), arrays.n_bytes(), stream);
  synchronize(stream);
  arrays.copy_from(host_results_.data());
}

}  // namespace gpu
}  // namespace llm_decoder
