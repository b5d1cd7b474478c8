// Drawn tokens into the ids of the next step.
#pragma once

#include "machine.h"

namespace llm_decoder {
namespace gpu {

// ids: [n] on the device; t < 0 becomes drawn[-1 - t], or 0 where that draw gave no token. The caller checks that every
// draw that is named is there.
void feed_tokens(std::int32_t* ids, const std::int32_t* drawn, int n, Stream stream);

}  // namespace gpu
}  // namespace llm_decoder
