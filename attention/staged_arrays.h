// Arrays that go to a device together: laid out one behind the other in pinned memory, queued as one copy. There are
// two such memories, so that the next arrays are laid out while the copy of these is on its way.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "device_memory.h"
#include "stream_mark.h"

namespace llm_decoder {
namespace gpu {

// Where an array begins among the others.
template <class T>
struct StagedArray {
  std::int64_t begin = -1;  // in bytes; -1: there is none
};

class StagedArrays {
 public:
  // Forgets all arrays. Waits for the copy before the last one.
  void begin() {
    turn_ = 1 - turn_;
    staging().copied.wait("StagedArrays");
    n_bytes_ = 0;
  }

  // Room for n elements, which hold anything.
  template <class T>
  StagedArray<T> make(std::int64_t n) {
    const std::int64_t at = round_up(n_bytes_, kAlign);
    n_bytes_ = at + n * static_cast<std::int64_t>(sizeof(T));
    if (n_bytes_ > staging().host.size()) enlarge();
    return {at};
  }

  template <class T>
  StagedArray<T> add(Span<const T> values) {
    const StagedArray<T> array = make<T>(static_cast<std::int64_t>(values.size));
    if (!values.empty()) std::memcpy(host(array), values.data, values.size * sizeof(T));
    return array;
  }

  // Room for n elements, of which those past the values are `rest`.
  template <class T>
  StagedArray<T> add_padded(Span<const T> values, std::int64_t n, const T& rest) {
    const StagedArray<T> array = make<T>(n);
    T* const end = std::copy(values.begin(), values.end(), host(array));
    std::fill(end, host(array) + n, rest);
    return array;
  }

  // Valid until the next array is made.
  template <class T>
  T* host(StagedArray<T> array) {
    return static_cast<T*>(static_cast<void*>(staging().host.data() + array.begin));
  }

  std::int64_t n_bytes() const { return n_bytes_; }
  std::int64_t n_device_bytes() const { return device_.n_bytes(); }
  // What upload will make of that.
  std::int64_t n_upload_bytes() const {
    return device_.size() < n_bytes_ ? staging_[turn_].host.size() : device_.n_bytes();
  }

  // Queues the copy of all. The device's memory stays where it is while they fit.
  void upload(Stream stream) {
    grow(device_, n_upload_bytes(), stream);
    if (n_bytes_ > 0) copy_memory(device_.data(), staging().host.data(), n_bytes_, stream);
    staging().copied.record(stream);
  }

  // Valid from upload until the next; null for an array that was never made.
  template <class T>
  T* device(StagedArray<T> array) const {
    return array.begin < 0 ? nullptr : static_cast<T*>(static_cast<void*>(device_.data() + array.begin));
  }

 private:
  static constexpr std::int64_t kAlign = 16;

  struct Staging {
    PinnedArray<std::byte> host;
    StreamMark copied;
  };

  Staging& staging() { return staging_[turn_]; }

  void enlarge() {
    PinnedArray<std::byte>& host = staging().host;
    PinnedArray<std::byte> larger(round_up(2 * n_bytes_, 4096));
    if (host.size() > 0) std::memcpy(larger.data(), host.data(), static_cast<std::size_t>(host.size()));
    host = std::move(larger);
  }

  Staging staging_[2];
  int turn_ = 0;
  DeviceArray<std::byte> device_;
  std::int64_t n_bytes_ = 0;
};

}  // namespace gpu
}  // namespace llm_decoder
