// What every decoder asks of a configuration, whoever computes.
#pragma once

#include "llm_decoder/model_config.h"

namespace llm_decoder {

// Throws std::invalid_argument, saying `place`, for a configuration that contradicts itself.
void check_config(const char* place, const ModelConfig& config);

}  // namespace llm_decoder
