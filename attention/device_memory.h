// What a machine has besides kernels: memory, copies, streams and what is known of a device. Two implementations of the
// same declarations: device_memory_cuda.cpp, and device_memory_host.cpp, where the host plays the device: its memory is
// host memory, filled with NaN when new, and its streams are those of host_stream.h.
//
// Throws as throw_cuda_error does where a device or its driver refuses.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <type_traits>
#include <utility>

#include "llm_decoder/errors.h"
#include "machine.h"

namespace llm_decoder {
namespace gpu {

// Pinned memory is the host's, and stays where it is, so that the device copies to and from it by itself.
enum class MemoryKind { device, pinned };

// Aligned to 256 bytes. Throws OutOfMemory with the bytes asked for and those that are free.
void* allocate_memory(MemoryKind kind, std::int64_t n_bytes);
void free_memory(MemoryKind kind, void* memory) noexcept;

// n elements with one owner. New ones hold anything. What is queued on a stream must be over before they go.
template <class T, MemoryKind kind>
class OwnedArray {
  static_assert(std::is_trivially_copyable_v<T>, "elements are copied as bytes");

 public:
  OwnedArray() = default;
  explicit OwnedArray(std::int64_t n) : n_(n) {
    constexpr std::int64_t kMost = std::numeric_limits<std::int64_t>::max() / static_cast<std::int64_t>(sizeof(T));
    check_arg(n >= 0 && n <= kMost, "OwnedArray", "the number of elements must be 0 to ", kMost, ", got ", n);
    if (n > 0) data_ = static_cast<T*>(allocate_memory(kind, n_bytes()));
  }
  ~OwnedArray() {
    if (data_ != nullptr) free_memory(kind, data_);
  }
  OwnedArray(OwnedArray&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), n_(std::exchange(other.n_, 0)) {}
  OwnedArray& operator=(OwnedArray&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(n_, other.n_);
    return *this;
  }

  T* data() const { return data_; }
  std::int64_t size() const { return n_; }
  std::int64_t n_bytes() const { return n_ * static_cast<std::int64_t>(sizeof(T)); }

 private:
  T* data_ = nullptr;
  std::int64_t n_ = 0;
};

template <class T>
using DeviceArray = OwnedArray<T, MemoryKind::device>;
template <class T>
using PinnedArray = OwnedArray<T, MemoryKind::pinned>;

// A queue of work, done one after the other. The null Stream is the device's own.
class OwnedStream {
 public:
  OwnedStream();
  ~OwnedStream();
  OwnedStream(const OwnedStream&) = delete;
  OwnedStream& operator=(const OwnedStream&) = delete;

  Stream get() const { return stream_; }

 private:
  Stream stream_ = nullptr;
};

// Returns when all that was queued on the stream is done.
void synchronize(Stream stream);

// Throws what is known to have gone wrong on the device, with `place`. Waits for nothing.
void check_not_lost(const char* place);

// Queues a copy between any two of device, pinned and other host memory. The host goes on at once where both ends are
// device or pinned memory; these must not change until the copy is done.
void copy_memory(void* to, const void* from, std::int64_t n_bytes, Stream stream);
// The same of rows that do not follow each other. Strides are in bytes.
void copy_rows(void* to, std::int64_t to_stride, const void* from, std::int64_t from_stride, std::int64_t row_bytes,
               std::int64_t n_rows, Stream stream);

// An array of at least n elements, which hold anything if it had to grow; what the stream has queued is over then.
template <class T>
void grow(DeviceArray<T>& array, std::int64_t n, Stream stream) {
  if (array.size() >= n) return;
  synchronize(stream);
  array = {};  // before there are two
  array = DeviceArray<T>(n);
}

struct MemoryInfo {
  std::int64_t free_bytes = 0, total_bytes = 0;
};
// Of the device that this thread uses.
MemoryInfo memory_info();

struct DeviceProperties {
  std::string name;
  int compute_major = 0, compute_minor = 0;  // compute capability, 9.0 of an H200
  int n_sms = 0;                             // streaming multiprocessors
  bool has_warpgroups = false;               // and the kernels that want them were compiled for it
};

// Versions of CUDA, 1000 * major + 10 * minor: the newest that the driver runs, 0 where none is loaded; that of the
// runtime in this build. The host machine has neither.
struct CudaVersions {
  int driver = 0, runtime = 0;
};
CudaVersions cuda_versions();

int n_devices();
DeviceProperties device_properties(int device);
// Memory, streams and launches of this thread are that device's from now on.
void use_device(int device);
int current_device();

}  // namespace gpu
}  // namespace llm_decoder
