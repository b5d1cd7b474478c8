#include "sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "check_sampling.h"
#include "draw.h"
#include "llm_decoder/philox.h"
#include "logit_edits.h"

namespace llm_decoder {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNotANumber = std::numeric_limits<float>::quiet_NaN();
constexpr std::int32_t kNoId = -1;

struct RowSummary {
  float log_sum_exp, max;
  bool is_usable;  // no NaN, no +inf, and at least one value above -inf
};

RowSummary summarise(const float* x, std::int32_t n, const CpuKernels& kernels) {
  RowSummary summary{};
  bool is_finite = false;
  summary.log_sum_exp = kernels.log_sum_exp(x, n, &summary.max, &is_finite);
  summary.is_usable = is_finite && summary.max > -kInfinity;
  return summary;
}

std::int32_t rank_of(const float* x, std::int32_t n, float value) {
  std::int32_t n_larger = 0;
  for (std::int32_t i = 0; i < n; ++i) n_larger += x[i] > value ? 1 : 0;
  return 1 + n_larger;
}

// The token's entries of `result`, of the raw logits.
void report_token(const float* raw, std::int32_t n, const RowSummary& summary, std::int32_t token, std::size_t draw,
                  const SampleResult& result) {
  const bool is_valid = token >= 0 && summary.is_usable;
  result.logprobs[draw] = is_valid ? raw[token] - summary.log_sum_exp : kNotANumber;
  result.ranks[draw] = !is_valid ? 0 : raw[token] == summary.max ? 1 : rank_of(raw, n, raw[token]);
}

// top_ids, top_logprobs: [n_draws, n_top]
void report_top(const float* raw, std::int32_t n, const RowSummary& summary, std::size_t draw, std::int32_t n_top,
                TopCandidates& top, std::int32_t* top_ids, float* top_logprobs) {
  if (n_top == 0) return;
  std::int32_t* ids = top_ids + draw * static_cast<std::size_t>(n_top);
  float* logprobs = top_logprobs + draw * static_cast<std::size_t>(n_top);
  std::fill_n(ids, n_top, kNoId);
  std::fill_n(logprobs, n_top, kNotANumber);
  if (!summary.is_usable) return;
  top.reset(raw, n);
  for (const Candidate& candidate : top.gather_sorted(n_top)) {
    *ids++ = candidate.id;
    *logprobs++ = candidate.value - summary.log_sum_exp;
  }
}

// The sum of the relative probabilities of all n logits. scaled: [n], overwritten.
double sum_of_all(const float* x, std::int32_t n, float max, float temperature, const CpuKernels& kernels,
                  float* scaled) {
  for (std::int32_t i = 0; i < n; ++i) scaled[i] = (x[i] - max) / temperature;
  return std::exp(static_cast<double>(summarise(scaled, n, kernels).log_sum_exp));
}

std::int32_t choose_token(const float* raw, std::int32_t n, const RowSummary& raw_summary, const SamplingParams& params,
                          std::size_t draw, const CpuKernels& kernels, Sampler::Scratch& scratch) {
  const float* x = raw;
  float max = raw_summary.max;
  if (has_logit_edits(params, draw)) {
    scratch.logits.assign(raw, raw + n);
    edit_logits(params, draw, scratch.logits, scratch);
    x = scratch.logits.data();
    const RowSummary summary = summarise(x, n, kernels);
    if (!summary.is_usable) return kNoTokenLeft;
    max = summary.max;
  }
  const float temperature = params.temperature[draw];
  if (temperature == 0.0f) return kernels.index_of_max(x, n, max);
  const std::int32_t top_k = params.top_k[draw] == 0 ? n : std::min(params.top_k[draw], n);
  const double sum = top_k < n ? 0.0 : sum_of_all(x, n, max, temperature, kernels, scratch.scaled.data());
  const Distribution distribution{max, temperature, top_k, params.top_p[draw], params.min_p[draw], sum};
  const double uniform = philox_uniform(params.seed[draw], params.position[draw]);
  return draw_token(x, n, distribution, uniform, scratch.draw);
}

// Edited log probabilities over the temperature, those that are cut off at -inf. x: [n], changed in place.
void cut_and_scale(float* x, std::int32_t n, float max, const SamplingParams& params, std::size_t draw,
                   const CpuKernels& kernels, Sampler::Scratch& scratch) {
  const float temperature = params.temperature[draw];
  const std::int32_t top_k = params.top_k[draw] == 0 ? n : std::min(params.top_k[draw], n);
  const bool has_cut = top_k < n || params.top_p[draw] < 1.0f || params.min_p[draw] > 0.0f;
  Candidate last{-kInfinity, n};
  if (has_cut) {
    const double sum = top_k < n ? 0.0 : sum_of_all(x, n, max, temperature, kernels, scratch.scaled.data());
    last = last_left(x, n, {max, temperature, top_k, params.top_p[draw], params.min_p[draw], sum}, scratch.draw);
  }
  for (std::int32_t i = 0; i < n; ++i) x[i] = comes_before(last, {x[i], i}) ? -kInfinity : x[i] / temperature;
}

// keys[i] = x[i] + noise of (seed, position, i), where x[i] is above -inf.
void add_noise(const float* x, std::int32_t n, std::uint64_t seed, std::int64_t position, float* keys) {
  for (std::int32_t begin = 0; begin < n; begin += 4) {
    const std::array<std::uint32_t, 4> words = philox_words(seed, position, static_cast<std::uint32_t>(begin) / 4 + 1);
    for (std::int32_t i = begin; i < std::min(begin + 4, n); ++i) {
      const double uniform = (words[static_cast<std::size_t>(i - begin)] + 0.5) * 0x1p-32;
      keys[i] = x[i] == -kInfinity ? -kInfinity : x[i] - static_cast<float>(std::log(-std::log(uniform)));
    }
  }
}

// scores and keys: [n], each without `shift`.
void report_continuations(const float* raw, const RowSummary& summary, const float* scores, const float* keys,
                          float shift, std::int32_t n, std::size_t draw, TopCandidates& top,
                          const ContinuationResult& result) {
  top.reset(keys, n);
  std::size_t at = draw * static_cast<std::size_t>(result.n);
  for (const Candidate& candidate : top.gather_sorted(result.n)) {
    if (candidate.value == -kInfinity) break;
    result.tokens[at] = candidate.id;
    result.scores[at] = scores[candidate.id] - shift;
    result.keys[at] = candidate.value - shift;
    result.logprobs[at] = raw[candidate.id] - summary.log_sum_exp;
    if (result.ranks != nullptr) result.ranks[at] = rank_of(raw, n, raw[candidate.id]);
    ++at;
  }
}

}  // namespace

void Sampler::Scratch::reserve(std::int32_t vocab_size, std::size_t n_ids) {
  logits.reserve(static_cast<std::size_t>(vocab_size));
  scaled.resize(static_cast<std::size_t>(vocab_size));
  kept.reserve(n_ids);
  n_seen.resize(static_cast<std::size_t>(vocab_size), 0);
  draw.reserve(vocab_size);
}

void Sampler::sample(const LogitsView& logits, const SamplingParams& params, std::int32_t n_top,
                     const CpuKernels& kernels, ThreadPool& pool, const SampleResult& result) {
  check_sampling(params, logits.n_rows, logits.vocab_size);
  check_n_top("sample", n_top, logits.vocab_size);
  for (Scratch& scratch : scratch_) scratch.reserve(logits.vocab_size, params.allowed.ids.size);
  pool.parallel_for(static_cast<std::int64_t>(params.rows.size), [&](std::int64_t item, int thread) {
    const std::size_t draw = static_cast<std::size_t>(item);
    const float* raw = logits.row(params.rows[draw]);
    Scratch& scratch = scratch_[static_cast<std::size_t>(thread)];
    const RowSummary summary = summarise(raw, logits.vocab_size, kernels);
    const std::int32_t token =
        summary.is_usable ? choose_token(raw, logits.vocab_size, summary, params, draw, kernels, scratch) : kNotFinite;
    result.tokens[draw] = token;
    report_token(raw, logits.vocab_size, summary, token, draw, result);
    report_top(raw, logits.vocab_size, summary, draw, n_top, scratch.draw.top, result.top_ids, result.top_logprobs);
  });
}

void Sampler::continuations(const LogitsView& logits, const SamplingParams& params, const CpuKernels& kernels,
                            ThreadPool& pool, const ContinuationResult& result) {
  check_sampling(params, logits.n_rows, logits.vocab_size);
  check_continuations(result.n, result.n_top, logits.vocab_size);
  const std::int32_t n = logits.vocab_size;
  for (Scratch& scratch : scratch_) {
    scratch.reserve(n, params.allowed.ids.size);
    scratch.keys.resize(static_cast<std::size_t>(n));
  }
  pool.parallel_for(static_cast<std::int64_t>(params.rows.size), [&](std::int64_t item, int thread) {
    const std::size_t draw = static_cast<std::size_t>(item), begin = draw * static_cast<std::size_t>(result.n);
    std::fill_n(result.tokens + begin, result.n, kNoId);
    if (result.ranks != nullptr) std::fill_n(result.ranks + begin, result.n, 0);
    for (float* values : {result.scores, result.keys, result.logprobs}) {
      std::fill_n(values + begin, result.n, kNotANumber);
    }
    const float* raw = logits.row(params.rows[draw]);
    Scratch& scratch = scratch_[static_cast<std::size_t>(thread)];
    const RowSummary summary = summarise(raw, n, kernels);
    report_top(raw, n, summary, draw, result.n_top, scratch.draw.top, result.top_ids, result.top_logprobs);
    if (!summary.is_usable) {
      result.tokens[begin] = kNotFinite;
      return;
    }
    const bool has_noise = params.temperature[draw] > 0.0f;
    if (!has_noise && !has_logit_edits(params, draw)) {
      report_continuations(raw, summary, raw, raw, summary.log_sum_exp, n, draw, scratch.draw.top, result);
      return;
    }
    scratch.logits.resize(static_cast<std::size_t>(n));
    float* x = scratch.logits.data();
    for (std::int32_t i = 0; i < n; ++i) x[i] = raw[i] - summary.log_sum_exp;
    edit_logits(params, draw, scratch.logits, scratch);
    const float max = *std::max_element(x, x + n);
    if (max == -kInfinity) {
      result.tokens[begin] = kNoTokenLeft;
      return;
    }
    const float* keys = x;
    if (has_noise) {
      cut_and_scale(x, n, max, params, draw, kernels, scratch);
      add_noise(x, n, params.seed[draw], params.position[draw], scratch.keys.data());
      keys = scratch.keys.data();
    }
    report_continuations(raw, summary, x, keys, 0.0f, n, draw, scratch.draw.top, result);
  });
}

void Sampler::log_probs(const LogitsView& logits, Span<const std::int32_t> targets, std::int32_t n_top,
                        const CpuKernels& kernels, ThreadPool& pool, const SampleResult& result) {
  check_targets(targets, logits.n_rows, logits.vocab_size);
  check_n_top("log_probs", n_top, logits.vocab_size);
  for (Scratch& scratch : scratch_) scratch.draw.top.reserve(logits.vocab_size);
  pool.parallel_for(logits.n_rows, [&](std::int64_t item, int thread) {
    const std::size_t row = static_cast<std::size_t>(item);
    const float* raw = logits.row(static_cast<std::int32_t>(item));
    const RowSummary summary = summarise(raw, logits.vocab_size, kernels);
    report_token(raw, logits.vocab_size, summary, targets[row], row, result);
    report_top(raw, logits.vocab_size, summary, row, n_top, scratch_[static_cast<std::size_t>(thread)].draw.top,
               result.top_ids, result.top_logprobs);
  });
}

}  // namespace llm_decoder
