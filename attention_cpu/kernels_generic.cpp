// The table of generic kernels. Everything is in an anonymous namespace: a function that two ISA files share by name
// must never be merged by the linker. The order of the headers matters: each is written over the ones before it.
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "kernel_tables.h"
#include "llm_decoder/cpu_kernels.h"

namespace llm_decoder {
namespace {
// clang-format off
#include "vec_generic.h"
#include "floats-inl.h"
#include "softmax_lut-inl.h"
#include "rows-inl.h"
#include "activate-inl.h"
#include "append_kv-inl.h"
#include "attention_rows-inl.h"
#include "attention_span-inl.h"
#include "nhd_tiles-inl.h"
#include "paged_attention-inl.h"
#include "gemm_generic-inl.h"
#include "gemm_w4-inl.h"
#include "gemm_w4_generic-inl.h"
#include "embed-inl.h"
#include "peak_generic-inl.h"
#include "read_memory-inl.h"
#include "quantize_groups-inl.h"
// clang-format on

constexpr const char* kName = "generic";

constexpr CpuKernels kTable = {
#include "kernel_table-inl.h"
};

}  // namespace

const CpuKernels* kernels_generic() { return &kTable; }

}  // namespace llm_decoder
