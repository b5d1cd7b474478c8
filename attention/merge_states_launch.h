// Runs merge_states.h.
#pragma once

#include "llm_decoder/types.h"
#include "machine.h"
#include "merge_states.h"

namespace llm_decoder {
namespace gpu {

// out in bf16 or f16. Throws std::invalid_argument for other dtypes.
void merge_states(Dtype out_dtype, const MergeStatesArgs& args, Stream stream);

// Parts and out in bf16, f16 or f32. Throws std::invalid_argument for other dtypes and for no or too many parts.
void merge_parts(Dtype dtype, const MergePartsArgs& args, Stream stream);

}  // namespace gpu
}  // namespace llm_decoder
