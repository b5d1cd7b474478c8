// Work of a stream that is recorded once and queued as one from then on, so that the host spends one call on all its
// launches. It does again what was recorded, with the same arguments, on what lies at the same addresses then.
//
// Two implementations of the same declarations: stream_graph_cuda.cpp, and stream_graph_host.cpp, where a graph is the
// list of what was recorded.
#pragma once

#include <cstdint>
#include <functional>
#include <utility>

#include "device_memory.h"

namespace llm_decoder {
namespace gpu {

class StreamGraph {
 public:
  struct Recorded;  // the machine's own

  StreamGraph() = default;
  StreamGraph(Recorded* recorded, std::int64_t n_bytes) : recorded_(recorded), n_bytes_(n_bytes) {}
  ~StreamGraph();  // what is queued of it must be over
  StreamGraph(StreamGraph&& other) noexcept
      : recorded_(std::exchange(other.recorded_, nullptr)), n_bytes_(other.n_bytes_) {}
  StreamGraph& operator=(StreamGraph&& other) noexcept {
    std::swap(recorded_, other.recorded_);
    std::swap(n_bytes_, other.n_bytes_);
    return *this;
  }

  void launch(Stream stream) const;
  std::int64_t n_bytes() const { return n_bytes_; }  // of device memory

 private:
  Recorded* recorded_ = nullptr;
  std::int64_t n_bytes_ = 0;
};

// What `work` queues on the stream, which is not done meanwhile. It may queue launches and copies of device and pinned
// memory, on this stream; to wait and to take or give back memory is an error. Throws what `work` throws, and
// std::runtime_error with the runtime's words for what cannot be recorded; the stream is as it was then.
StreamGraph record_graph(Stream stream, const std::function<void()>& work);

}  // namespace gpu
}  // namespace llm_decoder
