#include "check_sampling.h"

#include <cmath>

#include "llm_decoder/errors.h"

namespace llm_decoder {
namespace {

constexpr char kPlace[] = "sample";

template <class T>
void check_one_each(Span<T> values, std::size_t n_draws, const char* name) {
  check_arg(values.size == n_draws, kPlace, name, " must have one entry for each of ", n_draws, " rows, got ",
            values.size);
}

void check_ids(const RaggedIds& ragged, std::size_t n_draws, std::int32_t vocab_size, const char* name) {
  check_arg(ragged.offsets.size == n_draws + 1, kPlace, name, "_offsets must have ", n_draws + 1, " entries, got ",
            ragged.offsets.size);
  check_arg(ragged.offsets[0] == 0 && ragged.offsets[n_draws] == static_cast<std::int64_t>(ragged.ids.size), kPlace,
            name, "_offsets must go from 0 to the number of ids, ", ragged.ids.size, ", got ", ragged.offsets[0],
            " to ", ragged.offsets[n_draws]);
  for (std::size_t i = 0; i < n_draws; ++i) {
    check_arg(ragged.offsets[i] <= ragged.offsets[i + 1], kPlace, name, "_offsets must ascend, got ", ragged.offsets[i],
              " before ", ragged.offsets[i + 1]);
  }
  for (const std::int32_t id : ragged.ids) {
    check_arg(id >= 0 && id < vocab_size, kPlace, name, " ids must be in [0, ", vocab_size, "), got ", id);
  }
}

template <class Ok>
void check_values(Span<const float> values, std::size_t n_draws, const char* name, const char* need, const Ok& ok) {
  check_one_each(values, n_draws, name);
  for (const float value : values) check_arg(ok(value), kPlace, name, " must be ", need, ", got ", value);
}

bool is_finite(float value) { return std::isfinite(value); }

void check_masks(const TokenMasks& masks, std::size_t n_draws, std::int32_t vocab_size) {
  if (masks.n_words == 0 && masks.of_draw.empty()) return;
  check_one_each(masks.of_draw, n_draws, "mask_of_draw");
  check_arg(masks.n_words >= (vocab_size + 31) / 32, kPlace, "masks must have a bit for each of ", vocab_size,
            " tokens, ", (vocab_size + 31) / 32, " words, got ", masks.n_words);
  const std::int64_t n_masks = static_cast<std::int64_t>(masks.words.size) / masks.n_words;
  for (const std::int32_t mask : masks.of_draw) {
    check_arg(mask >= -1 && mask < n_masks, kPlace, "mask_of_draw must be in [-1, ", n_masks, "), got ", mask);
  }
}

}  // namespace

void check_sampling(const SamplingParams& p, std::int32_t n_rows, std::int32_t vocab_size) {
  const std::size_t n = p.rows.size;
  for (const std::int32_t row : p.rows) {
    check_arg(row >= 0 && row < n_rows, kPlace, "rows must be in [0, ", n_rows, "), got ", row);
  }
  check_values(p.temperature, n, "temperature", "finite and not negative",
               [](float v) { return is_finite(v) && v >= 0.0f; });
  check_values(p.top_p, n, "top_p", "in (0, 1]", [](float v) { return v > 0.0f && v <= 1.0f; });
  check_values(p.min_p, n, "min_p", "in [0, 1]", [](float v) { return v >= 0.0f && v <= 1.0f; });
  check_values(p.repetition_penalty, n, "repetition_penalty", "finite and positive",
               [](float v) { return is_finite(v) && v > 0.0f; });
  check_values(p.presence_penalty, n, "presence_penalty", "finite", is_finite);
  check_values(p.frequency_penalty, n, "frequency_penalty", "finite", is_finite);
  check_values(p.bias_values, p.bias.ids.size, "bias_values", "finite", is_finite);
  check_one_each(p.top_k, n, "top_k");
  for (const std::int32_t top_k : p.top_k) check_arg(top_k >= 0, kPlace, "top_k must not be negative, got ", top_k);
  check_one_each(p.seed, n, "seed");
  check_one_each(p.position, n, "position");
  check_ids(p.prompt, n, vocab_size, "prompt");
  check_ids(p.output, n, vocab_size, "output");
  check_ids(p.bias, n, vocab_size, "bias");
  check_ids(p.banned, n, vocab_size, "banned");
  check_ids(p.allowed, n, vocab_size, "allowed");
  check_masks(p.masks, n, vocab_size);
}

void check_targets(Span<const std::int32_t> targets, std::int32_t n_rows, std::int32_t vocab_size) {
  constexpr char kHere[] = "log_probs";
  check_arg(targets.size == static_cast<std::size_t>(n_rows), kHere, "needs a target for each of ", n_rows,
            " rows, got ", targets.size);
  for (const std::int32_t id : targets) {
    check_arg(id >= 0 && id < vocab_size, kHere, "targets must be in [0, ", vocab_size, "), got ", id);
  }
}

void check_n_top(const char* place, std::int32_t n_top, std::int32_t vocab_size) {
  check_arg(n_top >= 0 && n_top <= vocab_size, place, "n_top must be in [0, ", vocab_size, "], got ", n_top);
}

void check_continuations(std::int32_t n, std::int32_t n_top, std::int32_t vocab_size) {
  constexpr char kHere[] = "continuations";
  check_n_top(kHere, n_top, vocab_size);
  check_arg(n >= 1 && n <= vocab_size, kHere, "n must be in [1, ", vocab_size, "], got ", n);
}

}  // namespace llm_decoder
