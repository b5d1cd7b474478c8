#include "host_stream.h"

#include <atomic>
#include <utility>

#include "cuda_errors.h"
#include "llm_decoder/errors.h"

namespace llm_decoder {
namespace gpu {
namespace {

std::atomic<bool> are_late_now{false};
std::atomic<int> host_fault{0};
thread_local bool is_recording_now = false;

}  // namespace

void set_late_streams(bool are_late) { are_late_now = are_late; }
bool streams_are_late() { return are_late_now; }

void set_host_fault(int code) { host_fault = code; }

void check_host_fault(const char* place) {
  if (const int code = host_fault) throw_cuda_error(place, code, "cudaError", "as a test asked for");
}

bool thread_is_recording() { return is_recording_now; }

bool HostStream::runs_at_once() const { return !is_recording_ && waiting_.empty() && !streams_are_late(); }

void HostStream::queue(Work work) {
  if (is_recording_) {
    recorded_.push_back(std::move(work));
    return;
  }
  waiting_.push_back(std::move(work));
  ++n_queued_;
  if (!streams_are_late()) run_until(n_queued_);
}

void HostStream::run_until(std::uint64_t n) {
  while (!waiting_.empty() && n_queued_ - waiting_.size() < n) {
    const Work work = std::move(waiting_.front());
    waiting_.pop_front();
    work();
  }
}

void HostStream::begin_recording() {
  check_state(!is_recording_, "record_graph", "a graph of this stream is being recorded already");
  is_recording_ = is_recording_now = true;
}

std::vector<HostStream::Work> HostStream::end_recording() {
  is_recording_ = is_recording_now = false;
  return std::exchange(recorded_, {});
}

}  // namespace gpu
}  // namespace llm_decoder
