// device_memory.h on an NVIDIA device: a call of the runtime each.
#include "device_memory.h"

namespace llm_decoder {
namespace gpu {

// cmake/cuda.cmake's targets hold sm_90a, whose code runs on 9.0 alone.
#if defined(LLM_DECODER_WARPGROUPS)
constexpr bool kWarpgroupsAreCompiled = true;
#else
constexpr bool kWarpgroupsAreCompiled = false;
#endif

void* allocate_memory(MemoryKind kind, std::int64_t n_bytes) {
  void* memory = nullptr;
  const auto size = static_cast<std::size_t>(n_bytes);
  const cudaError_t error =
      kind == MemoryKind::device ? cudaMalloc(&memory, size) : cudaHostAlloc(&memory, size, cudaHostAllocDefault);
  if (error == cudaErrorMemoryAllocation) {
    (void)cudaGetLastError();  // said here, not by the next launch
    if (kind == MemoryKind::pinned) {
      throw OutOfMemory(concat("[allocate_memory] needs ", n_bytes,
                               " bytes of pinned host memory, more than the system gives; ask for fewer pages in host "
                               "memory or raise the limit of locked memory"));
    }
    const MemoryInfo info = memory_info();
    throw OutOfMemory(concat("[allocate_memory] needs ", n_bytes, " bytes of device memory, ", info.free_bytes, " of ",
                             info.total_bytes, " are free; ask for fewer pages or a smaller dtype"));
  }
  check_cuda(error, "allocate_memory");
  return memory;
}

// Where the driver is gone already, at the end of a process, so is the memory.
void free_memory(MemoryKind kind, void* memory) noexcept {
  (void)(kind == MemoryKind::device ? cudaFree(memory) : cudaFreeHost(memory));
}

OwnedStream::OwnedStream() { check_cuda(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "OwnedStream"); }
OwnedStream::~OwnedStream() { (void)cudaStreamDestroy(stream_); }

void synchronize(Stream stream) { check_cuda(cudaStreamSynchronize(stream), "synchronize"); }

// A call that does nothing, and like any other "may also return error codes from previous, asynchronous launches".
// Those of a library with a runtime of its own are no last error of this one.
void check_not_lost(const char* place) {
  std::size_t free_bytes = 0, total_bytes = 0;
  check_cuda(cudaMemGetInfo(&free_bytes, &total_bytes), place);
}

void copy_memory(void* to, const void* from, std::int64_t n_bytes, Stream stream) {
  check_cuda(cudaMemcpyAsync(to, from, static_cast<std::size_t>(n_bytes), cudaMemcpyDefault, stream), "copy_memory");
}

void copy_rows(void* to, std::int64_t to_stride, const void* from, std::int64_t from_stride, std::int64_t row_bytes,
               std::int64_t n_rows, Stream stream) {
  check_cuda(cudaMemcpy2DAsync(to, static_cast<std::size_t>(to_stride), from, static_cast<std::size_t>(from_stride),
                               static_cast<std::size_t>(row_bytes), static_cast<std::size_t>(n_rows), cudaMemcpyDefault,
                               stream),
             "copy_rows");
}

MemoryInfo memory_info() {
  std::size_t free_bytes = 0, total_bytes = 0;
  check_cuda(cudaMemGetInfo(&free_bytes, &total_bytes), "memory_info");
  return {static_cast<std::int64_t>(free_bytes), static_cast<std::int64_t>(total_bytes)};
}

CudaVersions cuda_versions() {
  CudaVersions versions;
  check_cuda(cudaDriverGetVersion(&versions.driver), "cuda_versions");
  check_cuda(cudaRuntimeGetVersion(&versions.runtime), "cuda_versions");
  return versions;
}

int n_devices() {
  int n = 0;
  check_cuda(cudaGetDeviceCount(&n), "n_devices");
  return n;
}

DeviceProperties device_properties(int device) {
  cudaDeviceProp properties;
  check_cuda(cudaGetDeviceProperties(&properties, device), "device_properties");
  return {properties.name, properties.major, properties.minor, properties.multiProcessorCount,
          kWarpgroupsAreCompiled && properties.major == 9 && properties.minor == 0};
}

void use_device(int device) { check_cuda(cudaSetDevice(device), "use_device"); }

int current_device() {
  int device = 0;
  check_cuda(cudaGetDevice(&device), "current_device");
  return device;
}

}  // namespace gpu
}  // namespace llm_decoder
