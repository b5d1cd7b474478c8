// device_memory.h where the host plays the device.
#include <unistd.h>

#include <cstring>
#include <new>

#include "device_memory.h"

namespace llm_decoder {
namespace gpu {
namespace {

constexpr std::align_val_t kAlign{256};

// A NaN in every type that has one.
constexpr int kPoison = 0xff;

void check_device(int device, const char* place) {
  check_arg(device == 0, place, "device must be 0, the only one of the host machine, got ", device);
}

}  // namespace

void* allocate_memory(MemoryKind, std::int64_t n_bytes) {
  const auto size = static_cast<std::size_t>(n_bytes);
  const MemoryInfo info = memory_info();
  // Asked first: the system promises memory that it does not have, and takes it back when it is filled.
  void* memory = n_bytes <= info.total_bytes ? ::operator new(size, kAlign, std::nothrow) : nullptr;
  if (memory == nullptr) {
    throw OutOfMemory(concat("[allocate_memory] needs ", n_bytes, " bytes of host memory, ", info.free_bytes, " of ",
                             info.total_bytes, " are free; ask for fewer pages or a smaller dtype"));
  }
  std::memset(memory, kPoison, size);
  return memory;
}

void free_memory(MemoryKind, void* memory) noexcept { ::operator delete(memory, kAlign); }

OwnedStream::OwnedStream() : stream_(new HostStream) {}
OwnedStream::~OwnedStream() { delete stream_; }

void synchronize(Stream) {}

void copy_memory(void* to, const void* from, std::int64_t n_bytes, Stream) {
  std::memcpy(to, from, static_cast<std::size_t>(n_bytes));
}

MemoryInfo memory_info() {
  const std::int64_t page_bytes = sysconf(_SC_PAGESIZE);
  return {sysconf(_SC_AVPHYS_PAGES) * page_bytes, sysconf(_SC_PHYS_PAGES) * page_bytes};
}

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
