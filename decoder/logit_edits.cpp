#include "logit_edits.h"

#include <algorithm>
#include <limits>

namespace llm_decoder {
namespace {

constexpr float kNegativeInfinity = -std::numeric_limits<float>::infinity();

float& at(Span<float> logits, std::int32_t id) { return logits[static_cast<std::size_t>(id)]; }

// Each token once, however often it occurs.
void penalise_repetition(Span<const std::int32_t> tokens, float penalty, Span<float> logits,
                         std::vector<std::int32_t>& is_seen) {
  for (const std::int32_t id : tokens) {
    std::int32_t& seen = is_seen[static_cast<std::size_t>(id)];
    if (seen != 0) continue;
    seen = 1;
    float& logit = at(logits, id);
    logit = logit < 0.0f ? logit * penalty : logit / penalty;
  }
}

void forget(Span<const std::int32_t> tokens, std::vector<std::int32_t>& n_seen) {
  for (const std::int32_t id : tokens) n_seen[static_cast<std::size_t>(id)] = 0;
}

void penalise_output(Span<const std::int32_t> output, float presence, float frequency, Span<float> logits,
                     std::vector<std::int32_t>& n_seen) {
  for (const std::int32_t id : output) ++n_seen[static_cast<std::size_t>(id)];
  for (const std::int32_t id : output) {
    std::int32_t& n = n_seen[static_cast<std::size_t>(id)];
    if (n > 0) at(logits, id) -= static_cast<float>(n) * frequency + presence;
    n = 0;
  }
}

void keep_only(Span<const std::int32_t> allowed, Span<float> logits, std::vector<Candidate>& kept) {
  kept.clear();
  for (const std::int32_t id : allowed) kept.push_back({at(logits, id), id});
  std::fill(logits.begin(), logits.end(), kNegativeInfinity);
  for (const Candidate& candidate : kept) at(logits, candidate.id) = candidate.value;
}

// 32 tokens at a time: most words of a mask are all ones or all zeros.
void keep_masked(const std::uint32_t* words, Span<float> logits) {
  for (std::size_t begin = 0; begin < logits.size; begin += 32) {
    const std::uint32_t word = words[begin / 32];
    if (word == ~std::uint32_t{0}) continue;
    const std::size_t end = std::min(begin + 32, logits.size);
    for (std::size_t id = begin; id < end; ++id) {
      if ((word >> (id - begin) & 1u) == 0) logits[id] = kNegativeInfinity;
    }
  }
}

}  // namespace

bool has_logit_edits(const SamplingParams& params, std::size_t draw) {
  const bool has_history = !params.prompt.of(draw).empty() || !params.output.of(draw).empty();
  const bool has_penalty = params.repetition_penalty[draw] != 1.0f || params.presence_penalty[draw] != 0.0f ||
                           params.frequency_penalty[draw] != 0.0f;
  return (has_history && has_penalty) || !params.bias.of(draw).empty() || !params.banned.of(draw).empty() ||
         !params.allowed.of(draw).empty() || params.masks.has(draw);
}

void edit_logits(const SamplingParams& params, std::size_t draw, Span<float> logits, Sampler::Scratch& scratch) {
  const Span<const std::int32_t> prompt = params.prompt.of(draw), output = params.output.of(draw);
  if (const float penalty = params.repetition_penalty[draw]; penalty != 1.0f) {
    penalise_repetition(prompt, penalty, logits, scratch.n_seen);
    penalise_repetition(output, penalty, logits, scratch.n_seen);
    forget(prompt, scratch.n_seen);
    forget(output, scratch.n_seen);
  }
  penalise_output(output, params.presence_penalty[draw], params.frequency_penalty[draw], logits, scratch.n_seen);

  const Span<const std::int32_t> biased = params.bias.of(draw);
  const float* bias = params.bias_values.data + params.bias.offsets[draw];
  for (std::size_t i = 0; i < biased.size; ++i) at(logits, biased[i]) += bias[i];
  for (const std::int32_t id : params.banned.of(draw)) at(logits, id) = kNegativeInfinity;
  if (!params.allowed.of(draw).empty()) keep_only(params.allowed.of(draw), logits, scratch.kept);
  if (params.masks.has(draw)) keep_masked(params.masks.of(draw), logits);
}

}  // namespace llm_decoder
