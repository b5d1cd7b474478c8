// stream_graph.h on an NVIDIA device.
#include <algorithm>
#include <memory>

#include "stream_graph.h"

namespace llm_decoder {
namespace gpu {

struct StreamGraph::Recorded {
  ~Recorded() { (void)cudaGraphExecDestroy(graph); }
  cudaGraphExec_t graph = nullptr;
};

StreamGraph::~StreamGraph() { delete recorded_; }

void StreamGraph::launch(Stream stream) const { check_cuda(cudaGraphLaunch(recorded_->graph, stream), "StreamGraph"); }

namespace {

cudaGraph_t capture(Stream stream, const std::function<void()>& work) {
  check_cuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "record_graph");
  cudaGraph_t graph = nullptr;
  try {
    work();
  } catch (...) {
    (void)cudaStreamEndCapture(stream, &graph);
    if (graph != nullptr) (void)cudaGraphDestroy(graph);
    (void)cudaGetLastError();  // said by what was thrown, not by the next launch
    throw;
  }
  check_cuda(cudaStreamEndCapture(stream, &graph), "record_graph");
  return graph;
}

}  // namespace

StreamGraph record_graph(Stream stream, const std::function<void()>& work) {
  constexpr char kPlace[] = "record_graph";
  cudaGraph_t graph = capture(stream, work);
  const std::int64_t free_before = memory_info().free_bytes;
  cudaGraphExec_t executable = nullptr;
  const cudaError_t error = cudaGraphInstantiate(&executable, graph, 0);
  (void)cudaGraphDestroy(graph);
  check_cuda(error, kPlace);
  auto recorded = std::make_unique<StreamGraph::Recorded>();
  recorded->graph = executable;
  check_cuda(cudaGraphUpload(executable, stream), kPlace);  // takes its memory now
  synchronize(stream);
  return {recorded.release(), std::max<std::int64_t>(free_before - memory_info().free_bytes, 0)};
}

}  // namespace gpu
}  // namespace llm_decoder
