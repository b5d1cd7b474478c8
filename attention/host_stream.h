// Streams of the host machine. What is queued happens at once; where streams are late, only when somebody waits for it,
// so that a wait that is missing and memory that changes too early show.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <vector>

namespace llm_decoder {
namespace gpu {

class HostStream {
 public:
  using Work = std::function<void()>;

  bool runs_at_once() const;
  void queue(Work work);
  std::uint64_t n_queued() const { return n_queued_; }
  // Does all but what was queued after the first n. Throws what the work throws; what follows stays queued.
  void run_until(std::uint64_t n);

  // From here on work is noted and not done.
  void begin_recording();
  std::vector<Work> end_recording();
  bool is_recording() const { return is_recording_; }

 private:
  std::deque<Work> waiting_;
  std::vector<Work> recorded_;
  std::uint64_t n_queued_ = 0;
  bool is_recording_ = false;
};

// Whether this thread records a stream, and may take no memory.
bool thread_is_recording();

// Of all streams, from now on; for tests.
void set_late_streams(bool are_late);
bool streams_are_late();

// From now on copies, and waiting for a stream, fail as those of a device whose runtime answers with this cudaError_t;
// 0 = no longer. For tests.
void set_host_fault(int code);
void check_host_fault(const char* place);

// The null stream is never late.
template <class Work>
void queue(HostStream* stream, const Work& work) {
  if (stream == nullptr || stream->runs_at_once()) return work();
  stream->queue(work);
}

}  // namespace gpu
}  // namespace llm_decoder
