// What every sampler asks of its parameters, whoever computes.
#pragma once

#include "sampler.h"

namespace llm_decoder {

// All throw std::invalid_argument naming what is out of its range.
void check_sampling(const SamplingParams& params, std::int32_t n_rows, std::int32_t vocab_size);
void check_targets(Span<const std::int32_t> targets, std::int32_t n_rows, std::int32_t vocab_size);
void check_n_top(const char* place, std::int32_t n_top, std::int32_t vocab_size);
void check_continuations(std::int32_t n, std::int32_t n_top, std::int32_t vocab_size);

}  // namespace llm_decoder
