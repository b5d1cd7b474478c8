// Routes tokens to experts.
#pragma once

#include "machine.h"
#include "moe_routing.h"

namespace llm_decoder {
namespace gpu {

// logits_dtype: f32, bf16, f16. Throws std::invalid_argument for what cannot be routed.
void moe_routing(Dtype logits_dtype, const MoeRoutingArgs& args, Stream stream);

}  // namespace gpu
}  // namespace llm_decoder
