// stream_mark.h on an NVIDIA device: a call of the runtime each.
#include "stream_mark.h"

namespace llm_decoder {
namespace gpu {

struct StreamMark::Recorded {
  cudaEvent_t event = nullptr;
};

StreamMark::~StreamMark() {
  if (recorded_ == nullptr) return;
  (void)cudaEventDestroy(recorded_->event);
  delete recorded_;
}

void StreamMark::record(Stream stream) {
  if (recorded_ == nullptr) {
    cudaEvent_t event = nullptr;
    check_cuda(cudaEventCreate(&event), "StreamMark");
    recorded_ = new Recorded{event};
  }
  check_cuda(cudaEventRecord(recorded_->event, stream), "StreamMark");
}

void StreamMark::hold_back(Stream stream) const {
  if (recorded_ != nullptr) check_cuda(cudaStreamWaitEvent(stream, recorded_->event, 0), "StreamMark");
}

bool StreamMark::is_passed() const {
  const cudaError_t state = recorded_ == nullptr ? cudaSuccess : cudaEventQuery(recorded_->event);
  if (state != cudaErrorNotReady) check_cuda(state, "StreamMark");
  return state == cudaSuccess;
}

double StreamMark::seconds_since(const StreamMark& start) const {
  float milliseconds = 0.0f;
  check_cuda(cudaEventElapsedTime(&milliseconds, start.recorded_->event, recorded_->event), "StreamMark");
  return static_cast<double>(milliseconds) / 1e3;
}

void copy_rows(void* to, std::int64_t to_stride, const void* from, std::int64_t from_stride, std::int64_t row_bytes,
               std::int64_t n_rows, Stream stream) {
  check_cuda(cudaMemcpy2DAsync(to, static_cast<std::size_t>(to_stride), from, static_cast<std::size_t>(from_stride),
                               static_cast<std::size_t>(row_bytes), static_cast<std::size_t>(n_rows), cudaMemcpyDefault,
                               stream),
             "copy_rows");
}

}  // namespace gpu
}  // namespace llm_decoder
