#include "device_sampler.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "check_sampling.h"
#include "llm_decoder/errors.h"

namespace llm_decoder {
namespace gpu {
namespace {

void check_n_best(const char* place, std::int32_t n_top, std::int32_t vocab_size) {
  check_n_top(place, n_top, vocab_size);
  check_arg(n_top <= kMaxBest, place, "n_top must be at most ", kMaxBest, " on a GPU, got ", n_top, "; ask for fewer");
}

void check_one_bias_each(const RaggedIds& bias, std::size_t n_draws) {
  std::vector<std::int32_t> sorted;
  for (std::size_t draw = 0; draw < n_draws; ++draw) {
    const Span<const std::int32_t> ids = bias.of(draw);
    sorted.assign(ids.begin(), ids.end());
    std::sort(sorted.begin(), sorted.end());
    const auto twice = std::adjacent_find(sorted.begin(), sorted.end());
    check_arg(twice == sorted.end(), "sample", "a token must have one bias a draw on a GPU, got token ",
              twice == sorted.end() ? 0 : *twice, " twice; add them up");
  }
}

// Those of a call that are not switched off for all draws: kernels leave out what is null.
struct StagedParams {
  StagedArray<std::int32_t> rows, top_k, mask_of_draw;
  StagedArray<float> temperature, top_p, min_p, repetition, presence, frequency, bias_values;
  StagedArray<std::uint64_t> seed;
  StagedArray<std::int64_t> position;
  StagedArray<std::uint32_t> masks;
  struct Lists {
    StagedArray<std::int64_t> offsets;
    StagedArray<std::int32_t> ids;
  };
  Lists prompt, output, bias, banned, allowed;
};

template <class T>
StagedArray<T> stage_unless(T off, Span<const T> values, StagedArrays& arrays) {
  if (std::all_of(values.begin(), values.end(), [off](T value) { return value == off; })) return {};
  return arrays.add(values);
}

StagedParams::Lists stage_lists(const RaggedIds& lists, StagedArrays& arrays) {
  if (lists.ids.empty()) return {};
  return {arrays.add(lists.offsets), arrays.add(lists.ids)};
}

StagedParams stage(const SamplingParams& p, StagedArrays& arrays) {
  StagedParams staged;
  staged.rows = arrays.add(p.rows);
  staged.temperature = stage_unless(0.0f, p.temperature, arrays);
  staged.top_k = stage_unless(0, p.top_k, arrays);
  staged.top_p = stage_unless(1.0f, p.top_p, arrays);
  staged.min_p = stage_unless(0.0f, p.min_p, arrays);
  staged.repetition = stage_unless(1.0f, p.repetition_penalty, arrays);
  staged.presence = stage_unless(0.0f, p.presence_penalty, arrays);
  staged.frequency = stage_unless(0.0f, p.frequency_penalty, arrays);
  staged.seed = arrays.add(p.seed);
  staged.position = arrays.add(p.position);
  if (staged.repetition.begin >= 0) staged.prompt = stage_lists(p.prompt, arrays);
  if (staged.repetition.begin >= 0 || staged.presence.begin >= 0 || staged.frequency.begin >= 0) {
    staged.output = stage_lists(p.output, arrays);
  }
  staged.bias = stage_lists(p.bias, arrays);
  if (!p.bias.ids.empty()) staged.bias_values = arrays.add(p.bias_values);
  staged.banned = stage_lists(p.banned, arrays);
  staged.allowed = stage_lists(p.allowed, arrays);
  staged.mask_of_draw = stage_unless(-1, p.masks.of_draw, arrays);
  if (staged.mask_of_draw.begin >= 0) staged.masks = arrays.add(p.masks.words);
  return staged;
}

DrawParams on_device(const StagedParams& staged, std::int32_t n_mask_words, const StagedArrays& arrays) {
  const auto lists = [&arrays](const StagedParams::Lists& l) {
    return TokenLists{arrays.device(l.offsets), arrays.device(l.ids)};
  };
  DrawParams p;
  p.rows = arrays.device(staged.rows);
  p.temperature = arrays.device(staged.temperature);
  p.top_k = arrays.device(staged.top_k);
  p.top_p = arrays.device(staged.top_p);
  p.min_p = arrays.device(staged.min_p);
  p.repetition_penalty = arrays.device(staged.repetition);
  p.presence_penalty = arrays.device(staged.presence);
  p.frequency_penalty = arrays.device(staged.frequency);
  p.seed = arrays.device(staged.seed);
  p.position = arrays.device(staged.position);
  p.prompt = lists(staged.prompt);
  p.output = lists(staged.output);
  p.bias = lists(staged.bias);
  p.bias_values = arrays.device(staged.bias_values);
  p.banned = lists(staged.banned);
  p.allowed = lists(staged.allowed);
  p.masks = {arrays.device(staged.mask_of_draw), arrays.device(staged.masks), n_mask_words};
  return p;
}

}  // namespace

void DeviceSampler::sample(const LogitRowsTensor& logits, const SamplingParams& params, std::int32_t n_top,
                           const SampleResult& result, Stream stream) {
  check_sampling(params, logits.n_rows, logits.vocab_size);
  check_n_best("sample", n_top, logits.vocab_size);
  check_one_bias_each(params.bias, params.rows.size);
  if (params.rows.empty()) return;
  params_.begin(stream);
  const StagedParams staged = stage(params, params_);
  params_.upload(stream);
  SampleLaunch launch;
  launch.logits = logits;
  launch.params = on_device(staged, params.masks.n_words, params_);
  launch.n_draws = static_cast<int>(params.rows.size);
  launch.best.n = n_top;
  const Places places = places_for(launch.n_draws, n_top);
  make_room(places, workspace_bytes(launch));
  point_at(places, n_top, launch);
  launch.tokens = static_cast<std::int32_t*>(static_cast<void*>(results_.data() + places.tokens));
  gpu::sample(launch, stream);
  read_back(places, result, stream);
}

void DeviceSampler::log_probs(const LogitRowsTensor& logits, Span<const std::int32_t> targets, std::int32_t n_top,
                              const SampleResult& result, Stream stream) {
  check_targets(targets, logits.n_rows, logits.vocab_size);
  check_n_best("log_probs", n_top, logits.vocab_size);
  if (targets.empty()) return;
  params_.begin(stream);
  const StagedArray<std::int32_t> staged = params_.add(targets);
  params_.upload(stream);
  LogProbsLaunch launch;
  launch.logits = logits;
  launch.targets = params_.device(staged);
  launch.best.n = n_top;
  const Places places = places_for(logits.n_rows, n_top);
  make_room(places, workspace_bytes(launch));
  point_at(places, n_top, launch);
  gpu::log_probs(launch, stream);
  SampleResult without_tokens = result;
  without_tokens.tokens = nullptr;
  read_back(places, without_tokens, stream);
}

DeviceSampler::Places DeviceSampler::places_for(std::int64_t n_draws, std::int32_t n_top) {
  constexpr std::int64_t kBytes = 4;  // of an id or a float
  Places places;
  places.logprobs = places.tokens + n_draws * kBytes;
  places.ranks = places.logprobs + n_draws * kBytes;
  places.top_ids = places.ranks + n_draws * kBytes;
  places.top_logprobs = places.top_ids + n_draws * n_top * kBytes;
  places.end = places.top_logprobs + n_draws * n_top * kBytes;
  return places;
}

void DeviceSampler::make_room(const Places& places, std::int64_t workspace_bytes) {
  // Nothing is queued that uses what goes: params_.begin has waited.
  if (workspace_.size() < workspace_bytes) workspace_ = DeviceArray<std::byte>(workspace_bytes);
  if (results_.size() >= places.end) return;
  results_ = DeviceArray<std::byte>(places.end);
  host_results_ = PinnedArray<std::byte>(places.end);
}

template <class Launch>
void DeviceSampler::point_at(const Places& places, std::int32_t n_top, Launch& launch) const {
  const auto at = [this](std::int64_t place) { return static_cast<void*>(results_.data() + place); };
  launch.logprobs = static_cast<float*>(at(places.logprobs));
  launch.ranks = static_cast<std::int32_t*>(at(places.ranks));
  launch.best = {n_top, static_cast<std::int32_t*>(at(places.top_ids)), static_cast<float*>(at(places.top_logprobs))};
  launch.workspace = workspace_.data();
}

void DeviceSampler::read_back(const Places& places, const SampleResult& result, Stream stream) {
  copy_memory(host_results_.data(), results_.data(), places.end, stream);
  synchronize(stream);
  const auto copy = [this](void* to, std::int64_t begin, std::int64_t end) {
    if (end > begin) std::memcpy(to, host_results_.data() + begin, static_cast<std::size_t>(end - begin));
  };
  if (result.tokens != nullptr) copy(result.tokens, places.tokens, places.logprobs);
  copy(result.logprobs, places.logprobs, places.ranks);
  copy(result.ranks, places.ranks, places.top_ids);
  copy(result.top_ids, places.top_ids, places.top_logprobs);
  copy(result.top_logprobs, places.top_logprobs, places.end);
}

}  // namespace gpu
}  // namespace llm_decoder
