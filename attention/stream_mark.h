// A place in a stream's queue: the host and other streams wait for it, and it tells when the stream came there.
//
// Two implementations of the same declarations: stream_mark_cuda.cpp, an event each, and stream_mark_host.cpp.
#pragma once

#include <utility>

#include "machine.h"

namespace llm_decoder {
namespace gpu {

class StreamMark {
 public:
  StreamMark() = default;
  // One that seconds_since can be asked of.
  static StreamMark timed() {
    StreamMark mark;
    mark.is_timed_ = true;
    return mark;
  }
  ~StreamMark();
  StreamMark(StreamMark&& other) noexcept : event_(std::exchange(other.event_, nullptr)), is_timed_(other.is_timed_) {}
  StreamMark& operator=(StreamMark&& other) noexcept {
    std::swap(event_, other.event_);
    std::swap(is_timed_, other.is_timed_);
    return *this;
  }

  // Behind all that the stream has queued, in place of where it was before. The first time says which device it is of:
  // the one that the thread uses then.
  void record(Stream stream);
  // Returns when this place has been passed, at once where nothing was recorded. Throws what went wrong on the device
  // until then, with `place`.
  void wait(const char* place) const;
  // What is queued on `stream` from here on begins when this place has been passed, at once where nothing was recorded.
  // The host goes on.
  void hold_back(Stream stream) const;
  bool is_passed() const;  // true also where nothing was recorded
  // From that mark to this one; both are timed, recorded and passed.
  double seconds_since(const StreamMark& start) const;

 private:
  Event event_ = nullptr;
  bool is_timed_ = false;
};

}  // namespace gpu
}  // namespace llm_decoder
