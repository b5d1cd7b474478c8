// Arrays that go to a device together: laid out one behind the other in pinned memory, queued as one copy.
#pragma once

#include <cstdint>
#include <cstring>

#include "device_memory.h"

namespace llm_decoder {
namespace gpu {

// Where an array begins among the others.
template <class T>
struct StagedArray {
  std::int64_t begin = -1;  // in bytes; -1: there is none
};

class StagedArrays {
 public:
  // Forgets all arrays, once what was queued on the stream is over.
  void begin(Stream stream) {
    synchronize(stream);
    n_bytes_ = 0;
  }

  // Room for n elements, which hold anything.
  template <class T>
  StagedArray<T> make(std::int64_t n) {
    const std::int64_t at = round_up(n_bytes_, kAlign);
    n_bytes_ = at + n * static_cast<std::int64_t>(sizeof(T));
    if (n_bytes_ > host_.size()) grow();
    return {at};
  }

  template <class T>
  StagedArray<T> add(Span<const T> values) {
    const StagedArray<T> array = make<T>(static_cast<std::int64_t>(values.size));
    if (!values.empty()) std::memcpy(host(array), values.data, values.size * sizeof(T));
    return array;
  }

  // Valid until the next array is made.
  template <class T>
  T* host(StagedArray<T> array) {
    return static_cast<T*>(static_cast<void*>(host_.data() + array.begin));
  }

  // Queues the copy of all.
  void upload(Stream stream) {
    if (device_.size() < host_.size()) device_ = DeviceArray<std::byte>(host_.size());
    copy_memory(device_.data(), host_.data(), n_bytes_, stream);
  }

  // Valid from upload until the next; null for an array that was never made.
  template <class T>
  T* device(StagedArray<T> array) const {
    return array.begin < 0 ? nullptr : static_cast<T*>(static_cast<void*>(device_.data() + array.begin));
  }

 private:
  static constexpr std::int64_t kAlign = 16;

  void grow() {
    PinnedArray<std::byte> larger(round_up(2 * n_bytes_, 4096));
    if (host_.size() > 0) std::memcpy(larger.data(), host_.data(), static_cast<std::size_t>(host_.size()));
    host_ = std::move(larger);
  }

  PinnedArray<std::byte> host_;
  DeviceArray<std::byte> device_;
  std::int64_t n_bytes_ = 0;
};

}  // namespace gpu
}  // namespace llm_decoder
