// stream_mark.h where the host plays the device.
#include "stream_mark.h"

#include <chrono>
#include <memory>

namespace llm_decoder {
namespace gpu {

// What a stream has noted outlives the mark, which may be recorded again before the stream comes there.
struct HostEvent {
  struct Passing {
    bool is_over = false;
    std::chrono::steady_clock::time_point at;
  };

  HostStream* stream = nullptr;
  std::uint64_t n_queued = 0;
  std::shared_ptr<Passing> passing;
};

StreamMark::~StreamMark() { delete event_; }

void StreamMark::record(Stream stream) {
  if (event_ == nullptr) event_ = new HostEvent;
  const auto passing = std::make_shared<HostEvent::Passing>();
  queue(stream, [passing] {
    passing->is_over = true;
    passing->at = std::chrono::steady_clock::now();
  });
  *event_ = {stream, stream == nullptr ? 0 : stream->n_queued(), passing};
}

void StreamMark::wait(const char* place) const {
  if (event_ == nullptr) return;
  check_host_fault(place);
  if (!event_->passing->is_over) event_->stream->run_until(event_->n_queued);
}

void StreamMark::hold_back(Stream stream) const {
  if (event_ == nullptr || event_->passing->is_over) return;
  queue(stream, [other = event_->stream, n = event_->n_queued] { other->run_until(n); });
}

bool StreamMark::is_passed() const { return event_ == nullptr || event_->passing->is_over; }

double StreamMark::seconds_since(const StreamMark& start) const {
  check_state(is_timed_ && start.is_timed_, "StreamMark", "marks that are not timed have no time");
  return std::chrono::duration<double>(event_->passing->at - start.event_->passing->at).count();
}

}  // namespace gpu
}  // namespace llm_decoder
