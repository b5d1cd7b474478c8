// stream_mark.h where the host plays the device.
#include <chrono>
#include <memory>

#include "device_memory.h"
#include "stream_mark.h"

namespace llm_decoder {
namespace gpu {

// What a stream has noted outlives the mark, which may be recorded again before the stream comes there.
struct StreamMark::Recorded {
  struct Passing {
    bool is_over = false;
    std::chrono::steady_clock::time_point at;
  };

  HostStream* stream = nullptr;
  std::uint64_t n_queued = 0;
  std::shared_ptr<Passing> passing;
};

StreamMark::~StreamMark() { delete recorded_; }

void StreamMark::record(Stream stream) {
  if (recorded_ == nullptr) recorded_ = new Recorded;
  const auto passing = std::make_shared<Recorded::Passing>();
  queue(stream, [passing] {
    passing->is_over = true;
    passing->at = std::chrono::steady_clock::now();
  });
  *recorded_ = {stream, stream == nullptr ? 0 : stream->n_queued(), passing};
}

void StreamMark::hold_back(Stream stream) const {
  if (recorded_ == nullptr || recorded_->passing->is_over) return;
  queue(stream, [other = recorded_->stream, n = recorded_->n_queued] { other->run_until(n); });
}

bool StreamMark::is_passed() const { return recorded_ == nullptr || recorded_->passing->is_over; }

double StreamMark::seconds_since(const StreamMark& start) const {
  return std::chrono::duration<double>(recorded_->passing->at - start.recorded_->passing->at).count();
}

void copy_rows(void* to, std::int64_t to_stride, const void* from, std::int64_t from_stride, std::int64_t row_bytes,
               std::int64_t n_rows, Stream stream) {
  for (std::int64_t i = 0; i < n_rows; ++i) {
    copy_memory(static_cast<std::byte*>(to) + i * to_stride, static_cast<const std::byte*>(from) + i * from_stride,
                row_bytes, stream);
  }
}

}  // namespace gpu
}  // namespace llm_decoder
