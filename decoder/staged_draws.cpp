#include "staged_draws.h"

#include <algorithm>
#include <vector>

namespace llm_decoder {
namespace gpu {
namespace {

template <class T>
StagedArray<T> stage_unless(T off, Span<const T> values, StagedArrays& arrays) {
  if (std::all_of(values.begin(), values.end(), [off](T value) { return value == off; })) return {};
  return arrays.add(values);
}

template <class T>
bool is_staged(const StagedArray<T>& array) {
  return array.begin >= 0;
}

}  // namespace

StagedDraws::StagedDraws(const SamplingParams& p, std::int32_t vocab_size, StagedArrays& arrays) {
  rows_ = arrays.add(p.rows);
  temperature_ = stage_unless(0.0f, p.temperature, arrays);
  top_k_ = stage_unless(0, p.top_k, arrays);
  top_p_ = stage_unless(1.0f, p.top_p, arrays);
  min_p_ = stage_unless(0.0f, p.min_p, arrays);
  repetition_ = stage_unless(1.0f, p.repetition_penalty, arrays);
  presence_ = stage_unless(0.0f, p.presence_penalty, arrays);
  frequency_ = stage_unless(0.0f, p.frequency_penalty, arrays);
  seed_ = arrays.add(p.seed);
  position_ = arrays.add(p.position);
  if (is_staged(repetition_)) prompt_ = stage(p.prompt, arrays);
  if (is_staged(repetition_) || is_staged(presence_) || is_staged(frequency_)) output_ = stage(p.output, arrays);
  stage_bias(p, vocab_size, arrays);
  banned_ = stage(p.banned, arrays);
  allowed_ = stage(p.allowed, arrays);
  mask_of_draw_ = stage_unless(-1, p.masks.of_draw, arrays);
  if (is_staged(mask_of_draw_)) masks_ = arrays.add(p.masks.words);
  n_mask_words_ = p.masks.n_words;
}

StagedDraws::Lists StagedDraws::stage(const RaggedIds& lists, StagedArrays& arrays) {
  if (lists.ids.empty()) return {};
  return {arrays.add(lists.offsets), arrays.add(lists.ids)};
}

// Kernels take a token's bias once a draw: a token that has several has their sum.
void StagedDraws::stage_bias(const SamplingParams& p, std::int32_t vocab_size, StagedArrays& arrays) {
  if (p.bias.ids.empty()) return;
  std::vector<std::int64_t> offsets = {0};
  std::vector<std::int32_t> ids;
  std::vector<float> values;
  std::vector<std::int64_t> last_place(static_cast<std::size_t>(vocab_size), -1);  // of each token
  for (std::size_t draw = 0; draw < p.rows.size; ++draw) {
    for (std::int64_t i = p.bias.offsets[draw]; i < p.bias.offsets[draw + 1]; ++i) {
      const std::int32_t id = p.bias.ids[static_cast<std::size_t>(i)];
      const float value = p.bias_values[static_cast<std::size_t>(i)];
      std::int64_t& place = last_place[static_cast<std::size_t>(id)];
      if (place >= offsets.back()) {
        values[static_cast<std::size_t>(place)] += value;
      } else {
        place = static_cast<std::int64_t>(ids.size());
        ids.push_back(id);
        values.push_back(value);
      }
    }
    offsets.push_back(static_cast<std::int64_t>(ids.size()));
  }
  bias_ = {arrays.add(Span<const std::int64_t>(offsets)), arrays.add(Span<const std::int32_t>(ids))};
  bias_values_ = arrays.add(Span<const float>(values));
}

DrawParams StagedDraws::on_device(const StagedArrays& arrays) const {
  const auto lists = [&arrays](const Lists& l) { return TokenLists{arrays.device(l.offsets), arrays.device(l.ids)}; };
  DrawParams p;
  p.rows = arrays.device(rows_);
  p.temperature = arrays.device(temperature_);
  p.top_k = arrays.device(top_k_);
  p.top_p = arrays.device(top_p_);
  p.min_p = arrays.device(min_p_);
  p.repetition_penalty = arrays.device(repetition_);
  p.presence_penalty = arrays.device(presence_);
  p.frequency_penalty = arrays.device(frequency_);
  p.seed = arrays.device(seed_);
  p.position = arrays.device(position_);
  p.prompt = lists(prompt_);
  p.output = lists(output_);
  p.bias = lists(bias_);
  p.bias_values = arrays.device(bias_values_);
  p.banned = lists(banned_);
  p.allowed = lists(allowed_);
  p.masks = {arrays.device(mask_of_draw_), arrays.device(masks_), n_mask_words_};
  return p;
}

}  // namespace gpu
}  // namespace llm_decoder
