// What a request's parameters change in its logits before anything is drawn: penalties, bias, bans.
#pragma once

#include <cstddef>

#include "sampler.h"

namespace llm_decoder {

// Whether draw `draw` changes its logits at all.
bool has_logit_edits(const SamplingParams& params, std::size_t draw);

// logits: [vocab_size], changed in place. Penalties first, then bias, then tokens that are banned, not allowed or not
// in the mask become -inf.
void edit_logits(const SamplingParams& params, std::size_t draw, Span<float> logits, Sampler::Scratch& scratch);

}  // namespace llm_decoder
