// A place in a stream's queue that other streams wait for, and that tells when the stream came there.
//
// Two implementations of the same declarations: stream_mark_cuda.cpp, an event each, and stream_mark_host.cpp.
#pragma once

#include <cstdint>
#include <utility>

#include "machine.h"

namespace llm_decoder {
namespace gpu {

class StreamMark {
 public:
  struct Recorded;  // the machine's own

  StreamMark() = default;
  ~StreamMark();
  StreamMark(StreamMark&& other) noexcept : recorded_(std::exchange(other.recorded_, nullptr)) {}
  StreamMark& operator=(StreamMark&& other) noexcept {
    std::swap(recorded_, other.recorded_);
    return *this;
  }

  // Behind all that the stream has queued, in place of where it was before.
  void record(Stream stream);
  // What is queued on `stream` from here on begins when this place has been passed, at once where nothing was recorded.
  // The host goes on.
  void hold_back(Stream stream) const;
  bool is_passed() const;  // true also where nothing was recorded
  // From that mark to this one; both are recorded and passed.
  double seconds_since(const StreamMark& start) const;

 private:
  Recorded* recorded_ = nullptr;
};

// Queues a copy of rows that do not follow each other, between device and pinned memory, as copy_memory does. Strides
// are in bytes.
void copy_rows(void* to, std::int64_t to_stride, const void* from, std::int64_t from_stride, std::int64_t row_bytes,
               std::int64_t n_rows, Stream stream);

}  // namespace gpu
}  // namespace llm_decoder
