// The tables that this build holds. Calling one's kernels on a CPU without its instructions is the caller's death:
// dispatch.cpp asks cpu_features.h first.
#pragma once

#include "llm_decoder/cpu_kernels.h"

namespace llm_decoder {

const CpuKernels* kernels_generic();
#ifdef LLM_DECODER_X86
const CpuKernels* kernels_avx2();
const CpuKernels* kernels_avx512vnni();
#endif

}  // namespace llm_decoder
