// The memory of tests on a device: one piece of pinned host memory for stack, vectors and DeviceArrays.
#include "on_device.h"

#include <pthread.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <new>

#include "device_memory.h"

namespace on_device {
namespace {

constexpr std::size_t kArenaBytes = std::size_t{1} << 30;
constexpr std::size_t kStackBytes = std::size_t{64} << 20;
constexpr std::size_t kHeaderBytes = 256;  // what DeviceArray is aligned to
constexpr int kNotRun = 77;

// Pieces of powers of two, each with its power before it; what is given back is given again.
class Arena {
 public:
  void open(void* memory) { begin_ = next_ = static_cast<char*>(memory); }

  void* allocate(std::size_t n_bytes) {
    int power = 4;
    while ((std::size_t{1} << power) < n_bytes) ++power;
    const std::lock_guard<std::mutex> lock(mutex_);
    if (free_[power] != nullptr) {
      Piece* const piece = free_[power];
      free_[power] = piece->next;
      return piece;
    }
    const std::size_t size =
        kHeaderBytes + ((std::size_t{1} << power) + kHeaderBytes - 1) / kHeaderBytes * kHeaderBytes;
    if (static_cast<std::size_t>(begin_ + kArenaBytes - next_) < size) return nullptr;
    *reinterpret_cast<int*>(next_) = power;
    void* const memory = next_ + kHeaderBytes;
    next_ += size;
    return memory;
  }

  void release(void* memory) {
    const int power = *reinterpret_cast<int*>(static_cast<char*>(memory) - kHeaderBytes);
    const std::lock_guard<std::mutex> lock(mutex_);
    free_[power] = new (memory) Piece{free_[power]};
  }

  bool holds(const void* memory) const {
    return begin_ != nullptr && memory >= begin_ && memory < begin_ + kArenaBytes;
  }

 private:
  struct Piece {
    Piece* next;
  };
  char *begin_ = nullptr, *next_ = nullptr;
  Piece* free_[64] = {};
  std::mutex mutex_;
};

Arena arena;
thread_local bool is_test_thread = false;

struct Body {
  int (*call)(int, char**);
  int argc;
  char** argv;
  int result;
};

void* run_body(void* argument) {
  Body& body = *static_cast<Body*>(argument);
  is_test_thread = true;
  body.result = body.call(body.argc, body.argv);
  is_test_thread = false;
  return nullptr;
}

void* allocate(std::size_t n_bytes) {
  void* const memory = is_test_thread ? arena.allocate(n_bytes) : std::malloc(n_bytes > 0 ? n_bytes : 1);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}

void release(void* memory) noexcept {
  if (memory == nullptr) return;
  if (arena.holds(memory)) {
    arena.release(memory);
  } else {
    std::free(memory);
  }
}

}  // namespace

int run(int (*call)(int, char**), int argc, char** argv) {
  setenv("CUDA_LAUNCH_BLOCKING", "1", 1);
  void* memory = nullptr;
  const cudaError_t error = cudaHostAlloc(&memory, kArenaBytes, cudaHostAllocDefault);
  if (error != cudaSuccess) {
    std::printf("no test has run: %s: %s\n", cudaGetErrorName(error), cudaGetErrorString(error));
    return kNotRun;
  }
  arena.open(memory);
  Body body{call, argc, argv, 1};
  pthread_attr_t attributes;
  pthread_t thread;
  pthread_attr_init(&attributes);
  void* const stack = arena.allocate(kStackBytes);
  if (pthread_attr_setstack(&attributes, stack, kStackBytes) != 0 ||
      pthread_create(&thread, &attributes, run_body, &body) != 0) {
    std::printf("no thread on a stack of pinned memory\n");
    return 1;
  }
  pthread_join(thread, nullptr);
  std::fflush(stdout);
  std::_Exit(body.result);  // statics of tests have memory of the arena, the driver may go before them
}

}  // namespace on_device

#pragma nv_diag_suppress 20011  // these are the host's, whatever nvcc takes them for
void* operator new(std::size_t n_bytes) { return on_device::allocate(n_bytes); }
void* operator new[](std::size_t n_bytes) { return on_device::allocate(n_bytes); }
void operator delete(void* memory) noexcept { on_device::release(memory); }
void operator delete[](void* memory) noexcept { on_device::release(memory); }
void operator delete(void* memory, std::size_t) noexcept { on_device::release(memory); }
void operator delete[](void* memory, std::size_t) noexcept { on_device::release(memory); }

// In the place of those of device_memory_cuda.cpp (the linker takes the first).
namespace llm_decoder {
namespace gpu {

void* allocate_memory(MemoryKind, std::int64_t n_bytes) {
  void* const memory = ::operator new(static_cast<std::size_t>(n_bytes));
  std::memset(memory, 0xff, static_cast<std::size_t>(n_bytes));  // NaN, as on the host machine
  return memory;
}

void free_memory(MemoryKind, void* memory) noexcept { ::operator delete(memory); }

void copy_memory(void* to, const void* from, std::int64_t n_bytes, Stream stream) {
  check_cuda(cudaMemcpyAsync(to, from, static_cast<std::size_t>(n_bytes), cudaMemcpyDefault, stream), "copy_memory");
  check_cuda(cudaStreamSynchronize(stream), "copy_memory");
}

}  // namespace gpu
}  // namespace llm_decoder
