// machine_hopper.h on an NVIDIA device of compute capability 9.0, compiled for sm_90a: each word is an instruction or
// two. Compiled for anything else kHasWarpgroups is false, and none of the other words may be reached.
#pragma once

#include <cuda.h>

#include "machine_cuda.h"
#include "tensor_boxes.h"

// One block a multiprocessor: the compiler shares out all registers among so many threads.
#define GPU_KERNEL_OF(n_threads) __global__ void __launch_bounds__(n_threads, 1)
#define GPU_ARGUMENT const __grid_constant__
#define GPU_PRAGMA(text) _Pragma(#text)
#define GPU_UNROLL_BY(n) GPU_PRAGMA(unroll n)

namespace llm_decoder {
namespace gpu {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
constexpr bool kHasWarpgroups = true;
#else
constexpr bool kHasWarpgroups = false;
#endif

GPU_FUNCTION void trap() { asm volatile("trap;"); }

GPU_FUNCTION int warpgroup_index() { return __shfl_sync(kAllLanes, thread_index() / kWarpgroupSize, 0); }
// Barrier 0 is sync_block's.
GPU_FUNCTION void sync_warpgroup() {
  asm volatile("bar.sync %0, %1;\n" ::"r"(thread_index() / kWarpgroupSize + 1), "n"(kWarpgroupSize) : "memory");
}

GPU_FUNCTION float larger(float a, float b) { return ::fmaxf(a, b); }

template <int n>
GPU_FUNCTION void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;\n" ::"n"(n));
}
template <int n>
GPU_FUNCTION void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;\n" ::"n"(n));
}

class Barriers {
 public:
  GPU_FUNCTION explicit Barriers(const Shared<std::uint64_t>& memory) : memory_(memory) {}

  GPU_FUNCTION void init(int i, int n_arrivals) const {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;\n" ::"r"(address(i)), "r"(n_arrivals) : "memory");
  }
  GPU_FUNCTION void arrive(int i) const {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];\n" ::"r"(address(i)) : "memory");
  }
  GPU_FUNCTION void arrive_expecting(int i, int n_bytes) const {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;\n" ::"r"(address(i)), "r"(n_bytes) : "memory");
  }
  GPU_FUNCTION void wait(int i, int parity) const {
    asm volatile(
        "{\n"
        ".reg .pred done;\n"
        "again:\n"
        "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
        "@done bra over;\n"
        "bra again;\n"
        "over:\n"
        "}\n" ::"r"(address(i)),
        "r"(parity)
        : "memory");
  }
  GPU_FUNCTION std::uint32_t address(int i) const { return memory_.address(i); }

 private:
  Shared<std::uint64_t> memory_;
};

GPU_FUNCTION Barriers shared_barriers(int byte_offset, int n) {
  return Barriers(shared_array<std::uint64_t>(byte_offset, n));
}
GPU_FUNCTION void publish_barriers() {
  asm volatile("fence.mbarrier_init.release.cluster;\n" ::: "memory");
  asm volatile("fence.proxy.async;\n" ::: "memory");
}

GPU_FUNCTION void fence_async() { asm volatile("fence.proxy.async.shared::cta;\n" ::: "memory"); }

using TensorMap = CUtensorMap;

// The driver's own function, found through the runtime so that nothing links the driver.
inline TensorMap make_tensor_map(const TensorBoxes& boxes) {
  static constexpr char kPlace[] = "make_tensor_map";
  static const auto encode = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
    constexpr unsigned kSinceDriver = 12000;
    check_cuda(
        cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, kSinceDriver, cudaEnableDefault, &found),
        kPlace);
    if (found != cudaDriverEntryPointSuccess || function == nullptr) {
      throw std::runtime_error(
          concat("[", kPlace, "] the driver has no cuTensorMapEncodeTiled; install one of CUDA 12.0 or later"));
    }
    return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(function);
  }();
  cuuint64_t size[4], stride_bytes[3];
  cuuint32_t box[4], element_stride[4];
  for (int axis = 0; axis < 4; ++axis) {
    size[axis] = static_cast<cuuint64_t>(boxes.size[axis]);
    box[axis] = static_cast<cuuint32_t>(boxes.box[axis]);
    element_stride[axis] = 1;
    if (axis > 0) stride_bytes[axis - 1] = static_cast<cuuint64_t>(boxes.stride_bytes[axis]);
  }
  TensorMap map;
  const CUresult result =
      encode(&map, CU_TENSOR_MAP_DATA_TYPE_UINT16, 4, const_cast<void*>(boxes.data), size, stride_bytes, box,
             element_stride, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS) {
    throw std::runtime_error(
        concat("[", kPlace, "] the driver refuses a map of the pages: CUresult ", static_cast<int>(result)));
  }
  return map;
}

template <class T>
GPU_FUNCTION void load_box(const Shared<T>& to, int i, const TensorMap& map, const BoxPlace& place,
                           const Barriers& barriers, int barrier) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6}], "
      "[%2];\n" ::"r"(to.address(i)),
      "l"(reinterpret_cast<std::uint64_t>(&map)), "r"(barriers.address(barrier)), "r"(place.at[0]), "r"(place.at[1]),
      "r"(place.at[2]), "r"(place.at[3])
      : "memory");
}

template <class T>
GPU_FUNCTION std::uint32_t matrix_address(const Shared<T>& shared, int i) {
  return shared.address(i);
}

GPU_FUNCTION void begin_products() { asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory"); }
GPU_FUNCTION void commit_products() { asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory"); }
template <int n>
GPU_FUNCTION void wait_products() {
  asm volatile("wgmma.wait_group.sync.aligned %0;\n" ::"n"(n) : "memory");
}
// The compiler does not see that a product is still writing: values must stay where they are until it has been waited
// for.
template <int n>
GPU_FUNCTION void hold(float (&d)[n]) {
  GPU_UNROLL
  for (int i = 0; i < n; ++i) asm volatile("" : "+f"(d[i])::"memory");
}
// ptxas moves a wait for products up over arithmetic that has nothing to do with it, but not over a barrier. This one's
// mask depends on x, for all that ptxas can tell.
GPU_FUNCTION void settle(float x) {
  asm volatile(
      "{\n"
      ".reg .pred is_negative;\n"
      ".reg .b32 lanes;\n"
      "setp.lt.f32 is_negative, %0, 0f00000000;\n"
      "selp.b32 lanes, 1, -1, is_negative;\n"
      "bar.warp.sync lanes;\n"
      "}\n" ::"f"(x)
      : "memory");
}

// The operand lists of a product whose d has 32, 64, 96 or 128 registers a thread.
#define WGMMA_8(f, i) f((i)), f((i) + 1), f((i) + 2), f((i) + 3), f((i) + 4), f((i) + 5), f((i) + 6), f((i) + 7)
#define WGMMA_32(f, i) WGMMA_8(f, i), WGMMA_8(f, (i) + 8), WGMMA_8(f, (i) + 16), WGMMA_8(f, (i) + 24)
#define WGMMA_D(i) "+f"(d[i])
#define WGMMA_NAMES_0                                                                                              \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, " \
  "%24, %25, %26, %27, %28, %29, %30, %31"
#define WGMMA_NAMES_32                                                                                             \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, " \
  "%54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define WGMMA_NAMES_64                                                                                             \
  "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, %82, %83, %84, %85, " \
  "%86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define WGMMA_NAMES_96                                                                                             \
  "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, %112, %113, %114, " \
  "%115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"

// Both operands from shared memory, A as it lies (rows of channels): d is operands 0 to R - 1, then a, b, adds.
#define WGMMA_SHARED(size, type, trans_b, names, a_name, b_name, adds_name, ...)                              \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " adds_name ", 0;\nwgmma.mma_async.sync.aligned.m64n" size   \
               "k16.f32." type "." type " {" names "}, " a_name ", " b_name ", p, 1, 1, 0, " trans_b ";\n}\n" \
               : __VA_ARGS__                                                                                  \
               : "l"(a_matrix), "l"(b_matrix), "r"(static_cast<int>(adds_to_d)))
// A from registers: a0 to a3, then b, adds.
#define WGMMA_REGISTERS(size, type, trans_b, names, a_names, b_name, adds_name, ...)                          \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " adds_name ", 0;\nwgmma.mma_async.sync.aligned.m64n" size   \
               "k16.f32." type "." type " {" names "}, {" a_names "}, " b_name ", p, 1, 1, " trans_b ";\n}\n" \
               : __VA_ARGS__                                                                                  \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b_matrix), "r"(static_cast<int>(adds_to_d)))

#define WGMMA_D_32 WGMMA_32(WGMMA_D, 0)
#define WGMMA_D_64 WGMMA_D_32, WGMMA_32(WGMMA_D, 32)
#define WGMMA_D_96 WGMMA_D_64, WGMMA_32(WGMMA_D, 64)
#define WGMMA_D_128 WGMMA_D_96, WGMMA_32(WGMMA_D, 96)

// For each size: what `form` is called with.
#define WGMMA_OF_SIZE(form, type, trans_b)                                \
  if constexpr (n == 64) {                                                \
    form##_64(type, trans_b);                                             \
  } else if constexpr (n == 128) {                                        \
    form##_128(type, trans_b);                                            \
  } else if constexpr (n == 192) {                                        \
    form##_192(type, trans_b);                                            \
  } else {                                                                \
    static_assert(n == 256, "columns of the products that are compiled"); \
    form##_256(type, trans_b);                                            \
  }
#define WGMMA_SHARED_64(type, t) WGMMA_SHARED("64", type, t, WGMMA_NAMES_0, "%32", "%33", "%34", WGMMA_D_32)
#define WGMMA_SHARED_128(type, t) \
  WGMMA_SHARED("128", type, t, WGMMA_NAMES_0 ", " WGMMA_NAMES_32, "%64", "%65", "%66", WGMMA_D_64)
#define WGMMA_SHARED_192(type, t) \
  WGMMA_SHARED("192", type, t, WGMMA_NAMES_0 ", " WGMMA_NAMES_32 ", " WGMMA_NAMES_64, "%96", "%97", "%98", WGMMA_D_96)
#define WGMMA_SHARED_256(type, t)                                                                                 \
  WGMMA_SHARED("256", type, t, WGMMA_NAMES_0 ", " WGMMA_NAMES_32 ", " WGMMA_NAMES_64 ", " WGMMA_NAMES_96, "%128", \
               "%129", "%130", WGMMA_D_128)
#define WGMMA_REGISTERS_64(type, t) \
  WGMMA_REGISTERS("64", type, t, WGMMA_NAMES_0, "%32, %33, %34, %35", "%36", "%37", WGMMA_D_32)
#define WGMMA_REGISTERS_128(type, t) \
  WGMMA_REGISTERS("128", type, t, WGMMA_NAMES_0 ", " WGMMA_NAMES_32, "%64, %65, %66, %67", "%68", "%69", WGMMA_D_64)
#define WGMMA_REGISTERS_192(type, t)                                                                                   \
  WGMMA_REGISTERS("192", type, t, WGMMA_NAMES_0 ", " WGMMA_NAMES_32 ", " WGMMA_NAMES_64, "%96, %97, %98, %99", "%100", \
                  "%101", WGMMA_D_96)
#define WGMMA_REGISTERS_256(type, t)                                                                         \
  WGMMA_REGISTERS("256", type, t, WGMMA_NAMES_0 ", " WGMMA_NAMES_32 ", " WGMMA_NAMES_64 ", " WGMMA_NAMES_96, \
                  "%128, %129, %130, %131", "%132", "%133", WGMMA_D_128)

template <class T, int n>
GPU_FUNCTION void multiply_shared(float (&d)[n / 2], std::uint64_t a_matrix, std::uint64_t b_matrix, bool adds_to_d) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  if constexpr (std::is_same_v<T, Bf16>) {
    WGMMA_OF_SIZE(WGMMA_SHARED, "bf16", "0")
  } else {
    static_assert(std::is_same_v<T, Fp16>, "Bf16 or Fp16");
    WGMMA_OF_SIZE(WGMMA_SHARED, "f16", "0")
  }
#endif
}

template <class T, int n>
GPU_FUNCTION void multiply_registers(float (&d)[n / 2], const std::uint32_t (&a)[4], std::uint64_t b_matrix,
                                     bool adds_to_d) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  if constexpr (std::is_same_v<T, Bf16>) {
    WGMMA_OF_SIZE(WGMMA_REGISTERS, "bf16", "1")
  } else {
    static_assert(std::is_same_v<T, Fp16>, "Bf16 or Fp16");
    WGMMA_OF_SIZE(WGMMA_REGISTERS, "f16", "1")
  }
#endif
}

}  // namespace gpu
}  // namespace llm_decoder
