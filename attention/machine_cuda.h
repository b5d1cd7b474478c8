// machine.h on an NVIDIA device of compute capability 8.0 or above: each word is an instruction or two.
#pragma once

#include <cuda_runtime.h>

#include <type_traits>

#include "cuda_errors.h"
#include "elements.h"
#include "llm_decoder/errors.h"
#include "machine_types.h"

#define GPU_KERNEL __global__ void
#define GPU_FUNCTION __device__ __forceinline__
#define GPU_UNROLL _Pragma("unroll")

namespace llm_decoder {
namespace gpu {

using Stream = cudaStream_t;
using Event = cudaEvent_t;

// Throws as throw_cuda_error does, with the runtime's own words.
inline void check_cuda(cudaError_t error, const char* place) {
  if (error == cudaSuccess) return;
  (void)cudaGetLastError();  // said here, not by the next launch
  throw_cuda_error(place, error, cudaGetErrorName(error), cudaGetErrorString(error));
}

// Shared memory that a kernel may have without asking for more.
constexpr int kDefaultSharedBytes = 48 << 10;

template <auto kernel, class Args>
void launch(Stream stream, const LaunchShape& shape, const Args& args) {
  static_assert(std::is_trivially_copyable_v<Args>, "a kernel's arguments are copied to the device as bytes");
  if (shape.shared_bytes > kDefaultSharedBytes) {
    check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shape.shared_bytes), "launch");
  }
  const dim3 grid(static_cast<unsigned>(shape.grid.x), static_cast<unsigned>(shape.grid.y),
                  static_cast<unsigned>(shape.grid.z));
  kernel<<<grid, static_cast<unsigned>(shape.n_threads), static_cast<std::size_t>(shape.shared_bytes), stream>>>(args);
  check_cuda(cudaGetLastError(), "launch");
}

constexpr unsigned kAllLanes = 0xffffffffu;

// Plainly not negative: what / and % make of it is a shift, a mask and constants that go into addresses.
GPU_FUNCTION int thread_index() { return static_cast<int>(threadIdx.x % kMaxBlockThreads); }
GPU_FUNCTION int n_threads() { return static_cast<int>(blockDim.x); }
GPU_FUNCTION int lane() { return static_cast<int>(threadIdx.x % kWarpSize); }
GPU_FUNCTION int warp_index() { return static_cast<int>(threadIdx.x / kWarpSize); }
GPU_FUNCTION Dim3 block_index() {
  return {static_cast<int>(blockIdx.x), static_cast<int>(blockIdx.y), static_cast<int>(blockIdx.z)};
}
GPU_FUNCTION Dim3 grid_size() {
  return {static_cast<int>(gridDim.x), static_cast<int>(gridDim.y), static_cast<int>(gridDim.z)};
}

GPU_FUNCTION void sync_block() { __syncthreads(); }
GPU_FUNCTION bool sync_block_or(bool value) { return __syncthreads_or(value) != 0; }
GPU_FUNCTION void sync_warp() { __syncwarp(); }

template <class T>
GPU_FUNCTION T shuffle(T value, int from) {
  return __shfl_sync(kAllLanes, value, from);
}
template <class T>
GPU_FUNCTION T shuffle_xor(T value, int mask) {
  return __shfl_xor_sync(kAllLanes, value, mask);
}
GPU_FUNCTION std::uint32_t ballot(bool value) { return __ballot_sync(kAllLanes, value); }
GPU_FUNCTION bool any(bool value) { return __any_sync(kAllLanes, value) != 0; }
GPU_FUNCTION std::uint32_t reduce_max(std::uint32_t value) { return __reduce_max_sync(kAllLanes, value); }
GPU_FUNCTION std::uint32_t reduce_add(std::uint32_t value) { return __reduce_add_sync(kAllLanes, value); }

template <class T>
class Shared {
 public:
  Shared() = default;
  GPU_FUNCTION explicit Shared(T* memory) : memory_(memory) {}

  GPU_FUNCTION T load(int i) const { return memory_[i]; }
  GPU_FUNCTION void store(int i, T value) const { memory_[i] = value; }
  template <int n>
  GPU_FUNCTION Vec<T, n> load_vec(int i) const {
    return *reinterpret_cast<const Vec<T, n>*>(memory_ + i);
  }
  template <int n>
  GPU_FUNCTION void store_vec(int i, const Vec<T, n>& value) const {
    *reinterpret_cast<Vec<T, n>*>(memory_ + i) = value;
  }
  GPU_FUNCTION T atomic_add(int i, T value) const { return atomicAdd(memory_ + i, value); }
  GPU_FUNCTION T atomic_or(int i, T value) const { return atomicOr(memory_ + i, value); }
  GPU_FUNCTION Shared part(int begin, int) const { return Shared(memory_ + begin); }
  GPU_FUNCTION std::uint32_t address(int i) const {
    return static_cast<std::uint32_t>(__cvta_generic_to_shared(memory_ + i));
  }

 private:
  T* memory_;
};

template <class T>
GPU_FUNCTION Shared<T> shared_array(int byte_offset, int) {
  extern __shared__ __align__(1024) unsigned char shared_memory[];
  return Shared<T>(reinterpret_cast<T*>(shared_memory + byte_offset));
}

template <int n_bytes, class T>
GPU_FUNCTION void copy_async(const Shared<T>& to, int i, const T* from, bool is_valid) {
  static_assert(n_bytes == 4 || n_bytes == 8 || n_bytes == 16, "what the device copies");
  const int n_read = is_valid ? n_bytes : 0;
  if constexpr (n_bytes == 16) {  // past the first cache
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(to.address(i)), "l"(from), "r"(n_read)
                 : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;\n" ::"r"(to.address(i)), "l"(from), "n"(n_bytes),
                 "r"(n_read)
                 : "memory");
  }
}
GPU_FUNCTION void commit_copies() { asm volatile("cp.async.commit_group;\n" ::: "memory"); }
template <int n>
GPU_FUNCTION void wait_copies() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(n) : "memory");
}

template <class T>
GPU_FUNCTION void load_matrices(std::uint32_t (&r)[4], const Shared<T>& from, int i) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(from.address(i))
               : "memory");
}
template <class T>
GPU_FUNCTION void load_matrices_transposed(std::uint32_t (&r)[4], const Shared<T>& from, int i) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(from.address(i))
               : "memory");
}

template <class T>
GPU_FUNCTION void mma_16x8x16(float (&d)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2]) {
  if constexpr (std::is_same_v<T, Bf16>) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};\n"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  } else {
    static_assert(std::is_same_v<T, Fp16>, "Bf16 or Fp16");
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};\n"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }
}

GPU_FUNCTION void mma_16x8x32(std::int32_t (&d)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};\n"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

template <class T>
GPU_FUNCTION std::uint32_t pack(float low, float high) {
  std::uint32_t word;
  if constexpr (std::is_same_v<T, Bf16>) {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  } else {
    static_assert(std::is_same_v<T, Fp16>, "Bf16 or Fp16");
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  }
  return word;
}

template <class T>
GPU_FUNCTION std::uint32_t fma_pairs(std::uint32_t a, std::uint32_t b, std::uint32_t c) {
  std::uint32_t word;
  if constexpr (std::is_same_v<T, Bf16>) {
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(word) : "r"(a), "r"(b), "r"(c));
  } else {
    static_assert(std::is_same_v<T, Fp16>, "Bf16 or Fp16");
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(word) : "r"(a), "r"(b), "r"(c));
  }
  return word;
}

GPU_FUNCTION std::uint32_t permute_bytes(std::uint32_t low, std::uint32_t high, std::uint32_t selector) {
  return __byte_perm(low, high, selector);
}

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890
constexpr bool kConvertsFp8 = true;
template <class T>
GPU_FUNCTION std::uint32_t convert_fp8(std::uint32_t word) {
  std::uint32_t halves;
  asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(halves) : "h"(static_cast<std::uint16_t>(word)));
  if constexpr (std::is_same_v<T, Fp16>) {
    return halves;
  } else {
    float low, high;
    asm("{.reg .b16 low, high;\n mov.b32 {low, high}, %2;\n cvt.f32.f16 %0, low;\n cvt.f32.f16 %1, high;\n}"
        : "=f"(low), "=f"(high)
        : "r"(halves));
    return pack<T>(low, high);
  }
}
#else
constexpr bool kConvertsFp8 = false;
template <class T>
GPU_FUNCTION std::uint32_t convert_fp8(std::uint32_t);
#endif

template <class T>
GPU_FUNCTION Vec<float, 2> unpack(std::uint32_t word) {
  Vec<float, 2> values;
  if constexpr (std::is_same_v<T, Bf16>) {
    values.values[0] = __uint_as_float(word << 16);
    values.values[1] = __uint_as_float(word & 0xffff0000u);
  } else {
    static_assert(std::is_same_v<T, Fp16>, "Bf16 or Fp16");
    asm("{.reg .b16 low, high; mov.b32 {low, high}, %2; cvt.f32.f16 %0, low; cvt.f32.f16 %1, high;}"
        : "=f"(values.values[0]), "=f"(values.values[1])
        : "r"(word));
  }
  return values;
}

template <int n, class T>
GPU_FUNCTION Vec<T, n> load_vec(const T* from) {
  return *reinterpret_cast<const Vec<T, n>*>(from);
}
// Stays where it is written among the asm volatile statements, so that loads fly as far ahead as the kernel says.
template <int n, class T>
GPU_FUNCTION Vec<T, n> load_once(const T* from) {
  static_assert(sizeof(Vec<T, n>) == 16, "16 bytes");
  union {
    std::uint32_t words[4];
    Vec<T, n> value;
  } out;
  asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(out.words[0]), "=r"(out.words[1]), "=r"(out.words[2]), "=r"(out.words[3])
               : "l"(from));
  return out.value;
}
template <class T, int n>
GPU_FUNCTION void store_vec(T* to, const Vec<T, n>& value) {
  *reinterpret_cast<Vec<T, n>*>(to) = value;
}
// Past the first cache, which does not see what others write.
template <class T>
GPU_FUNCTION T load_coherent(const T* from) {
  return __ldcg(from);
}
template <class T>
GPU_FUNCTION T atomic_add(T* to, T value) {
  if constexpr (std::is_same_v<T, std::uint64_t>) {  // the runtime knows it by its other name
    return atomicAdd(reinterpret_cast<unsigned long long*>(to), static_cast<unsigned long long>(value));
  } else {
    return atomicAdd(to, value);
  }
}
GPU_FUNCTION void fence() { __threadfence(); }

GPU_FUNCTION float exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
GPU_FUNCTION float log2(float x) { return __log2f(x); }
// A template, so that it is no match for the runtime's own calls of log where a test makes these names everybody's.
template <class T>
GPU_FUNCTION T log(T x) {
  static_assert(std::is_same_v<T, double>, "of a double");
  return ::log(x);
}
GPU_FUNCTION float reciprocal(float x) { return __frcp_rn(x); }
GPU_FUNCTION float rsqrt(float x) { return ::rsqrtf(x); }
GPU_FUNCTION float tanh(float x) { return ::tanhf(x); }
GPU_FUNCTION float erf(float x) { return ::erff(x); }
GPU_FUNCTION int round_to_int(float x) { return __float2int_rn(x); }
GPU_FUNCTION float fma(float a, float b, float c) { return ::fmaf(a, b, c); }

}  // namespace gpu
}  // namespace llm_decoder
