// Sorts pairs of token and choice by expert.
#pragma once

#include "machine.h"
#include "moe.h"

namespace llm_decoder {
namespace gpu {

// Throws std::invalid_argument for what cannot be sorted.
void moe_sort(const MoeSortArgs& args, Stream stream);

}  // namespace gpu
}  // namespace llm_decoder
