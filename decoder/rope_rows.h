// The angles of rotary position embedding (Su et al. 2021) for the tokens of one step, shared by all layers.
#pragma once

#include <cstdint>

#include "llm_decoder/model_config.h"

namespace llm_decoder {

// cos, sin: [half] of one position, half = config.rope_inv_freq.size().
void fill_rope_row(const ModelConfig& config, std::int32_t position, float* cos, float* sin);

}  // namespace llm_decoder
