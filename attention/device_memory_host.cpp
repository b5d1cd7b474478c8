// device_memory.h where the host plays the device.
#include <unistd.h>

#include <cstring>
#include <map>
#include <mutex>
#include <new>
#include <vector>

#include "device_memory.h"

namespace llm_decoder {
namespace gpu {
namespace {

constexpr std::align_val_t kAlign{256};

// A NaN in every type that has one.
constexpr int kPoison = 0xff;

// All memory that was allocated, by its address.
class Allocations {
 public:
  void add(void* memory, std::int64_t n_bytes) {
    const std::lock_guard<std::mutex> lock(mutex_);
    sizes_[static_cast<std::byte*>(memory)] = n_bytes;
  }
  // Its size; 0 for null.
  std::int64_t remove(void* memory) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = sizes_.find(static_cast<std::byte*>(memory));
    if (found == sizes_.end()) return 0;
    const std::int64_t n_bytes = found->second;
    sizes_.erase(found);
    return n_bytes;
  }
  bool has(const void* at) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto* const byte = static_cast<const std::byte*>(at);
    auto after = sizes_.upper_bound(byte);
    if (after == sizes_.begin()) return false;
    --after;
    return byte < after->first + after->second;
  }

 private:
  std::mutex mutex_;
  std::map<const std::byte*, std::int64_t> sizes_;
};

Allocations& allocations() {
  static auto* const all = new Allocations;  // some memory goes after all that is static
  return *all;
}

void check_device(int device, const char* place) {
  check_arg(device == 0, place, "device must be 0, the only one of the host machine, got ", device);
}

}  // namespace

void* allocate_memory(MemoryKind, std::int64_t n_bytes) {
  check_state(!thread_is_recording(), "allocate_memory", "memory cannot be taken while a graph is recorded");
  const auto size = static_cast<std::size_t>(n_bytes);
  const MemoryInfo info = memory_info();
  // Asked first: the system promises memory that it does not have, and takes it back when it is filled.
  void* memory = n_bytes <= info.total_bytes ? ::operator new(size, kAlign, std::nothrow) : nullptr;
  if (memory == nullptr) {
    throw OutOfMemory(concat("[allocate_memory] needs ", n_bytes, " bytes of host memory, ", info.free_bytes, " of ",
                             info.total_bytes, " are free; ask for fewer pages or a smaller dtype"));
  }
  std::memset(memory, kPoison, size);
  allocations().add(memory, n_bytes);
  return memory;
}

// Late work may still read it, and must not find what it held.
void free_memory(MemoryKind, void* memory) noexcept {
  const auto size = static_cast<std::size_t>(allocations().remove(memory));
  if (streams_are_late()) std::memset(memory, kPoison, size);
  ::operator delete(memory, kAlign);
}

OwnedStream::OwnedStream() : stream_(new HostStream) {}
OwnedStream::~OwnedStream() {
  try {
    synchronize(stream_);
  } catch (const std::exception&) {  // nobody waits for it
  }
  delete stream_;
}

void synchronize(Stream stream) {
  check_host_fault("synchronize");
  if (stream == nullptr) return;
  check_state(!stream->is_recording(), "synchronize",
              "a stream whose work is recorded for a graph cannot be waited for");
  stream->run_until(stream->n_queued());
}

void check_not_lost(const char* place) { check_host_fault(place); }

// As a device does it: memory that is not pinned is read before the call returns, and written when it returns.
void copy_memory(void* to, const void* from, std::int64_t n_bytes, Stream stream) {
  check_host_fault("copy_memory");
  const auto size = static_cast<std::size_t>(n_bytes);
  if (stream == nullptr || stream->runs_at_once()) {
    std::memcpy(to, from, size);
    return;
  }
  const bool is_read_now = !allocations().has(from), is_written_now = !allocations().has(to);
  check_state(!stream->is_recording() || !(is_read_now || is_written_now), "copy_memory",
              "a graph copies device and pinned memory alone");
  if (is_read_now) {
    const auto* const bytes = static_cast<const std::byte*>(from);
    stream->queue(
        [to, kept = std::vector<std::byte>(bytes, bytes + size)] { std::memcpy(to, kept.data(), kept.size()); });
  } else {
    stream->queue([to, from, size] { std::memcpy(to, from, size); });
  }
  if (is_written_now) synchronize(stream);
}

void copy_rows(void* to, std::int64_t to_stride, const void* from, std::int64_t from_stride, std::int64_t row_bytes,
               std::int64_t n_rows, Stream stream) {
  for (std::int64_t i = 0; i < n_rows; ++i) {
    copy_memory(static_cast<std::byte*>(to) + i * to_stride, static_cast<const std::byte*>(from) + i * from_stride,
                row_bytes, stream);
  }
}

MemoryInfo memory_info() {
  const std::int64_t page_bytes = sysconf(_SC_PAGESIZE);
  return {sysconf(_SC_AVPHYS_PAGES) * page_bytes, sysconf(_SC_PHYS_PAGES) * page_bytes};
}

CudaVersions cuda_versions() { return {}; }

int n_devices() { return 1; }

// Compute capability 8.0 is what the words of machine.h need; it speaks those of machine_hopper.h too.
DeviceProperties device_properties(int device) {
  check_device(device, "device_properties");
  return {"host machine", 8, 0, 4, true};
}

void use_device(int device) { check_device(device, "use_device"); }

int current_device() { return 0; }

}  // namespace gpu
}  // namespace llm_decoder
