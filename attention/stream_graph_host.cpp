// stream_graph.h where the host plays the device.
#include "stream_graph.h"

#include <vector>

namespace llm_decoder {
namespace gpu {

struct StreamGraph::Recorded {
  std::vector<HostStream::Work> works;
};

StreamGraph::~StreamGraph() { delete recorded_; }

void StreamGraph::launch(Stream stream) const {
  for (const HostStream::Work& work : recorded_->works) queue(stream, work);
}

StreamGraph record_graph(Stream stream, const std::function<void()>& work) {
  check_state(stream != nullptr, "record_graph", "the null stream cannot be recorded");
  stream->begin_recording();
  try {
    work();
  } catch (...) {
    stream->end_recording();
    throw;
  }
  auto* const recorded = new StreamGraph::Recorded{stream->end_recording()};
  return {recorded, static_cast<std::int64_t>(recorded->works.size() * sizeof(HostStream::Work))};
}

}  // namespace gpu
}  // namespace llm_decoder
