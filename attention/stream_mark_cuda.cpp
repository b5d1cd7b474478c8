// stream_mark.h on an NVIDIA device: a call of the runtime each.
#include "stream_mark.h"

namespace llm_decoder {
namespace gpu {
namespace {

constexpr char kPlace[] = "StreamMark";

}  // namespace

StreamMark::~StreamMark() {
  if (event_ != nullptr) (void)cudaEventDestroy(event_);
}

void StreamMark::record(Stream stream) {
  if (event_ == nullptr) {
    check_cuda(cudaEventCreateWithFlags(&event_, is_timed_ ? cudaEventDefault : cudaEventDisableTiming), kPlace);
  }
  check_cuda(cudaEventRecord(event_, stream), kPlace);
}

void StreamMark::wait(const char* place) const {
  if (event_ != nullptr) check_cuda(cudaEventSynchronize(event_), place);
}

void StreamMark::hold_back(Stream stream) const {
  if (event_ != nullptr) check_cuda(cudaStreamWaitEvent(stream, event_, 0), kPlace);
}

bool StreamMark::is_passed() const {
  if (event_ == nullptr) return true;
  const cudaError_t state = cudaEventQuery(event_);
  if (state == cudaErrorNotReady) {
    (void)cudaGetLastError();  // no error, but kept like one: the next launch would take it for its own
    return false;
  }
  check_cuda(state, kPlace);
  return true;
}

double StreamMark::seconds_since(const StreamMark& start) const {
  float milliseconds = 0.0f;
  check_cuda(cudaEventElapsedTime(&milliseconds, start.event_, event_), kPlace);
  return static_cast<double>(milliseconds) / 1e3;
}

}  // namespace gpu
}  // namespace llm_decoder
