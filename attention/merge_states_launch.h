// States of the same rows, found over different keys, into one.
#pragma once

#include "merge_states.h"

namespace llm_decoder {
namespace gpu {

struct MergeStatesLaunch {
  Dtype dtype = Dtype::bf16;  // of the values: f32, bf16, f16
  MergePartsArgs args;
};

// Rows of which no state saw anything are 0 with a log-sum-exp of -infinity. Throws std::invalid_argument for what
// no kernel was compiled for, and says what is.
void merge_states(const MergeStatesLaunch& launch, Stream stream);

// Those of a planned attention, into its out of bf16 or f16.
void merge_planned_states(Dtype out_dtype, const MergeStatesArgs& args, Stream stream);

}  // namespace gpu
}  // namespace llm_decoder
