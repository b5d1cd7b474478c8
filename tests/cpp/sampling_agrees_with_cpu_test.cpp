// The same request, row and seed give the same token on the GPU's kernels and on the CPU: what ties the two samplers
// together, whose sums are not made alike.
#include <cmath>
#include <random>
#include <vector>

#include "check.h"
#include "sampler.h"
#include "sampling_launch.h"

namespace {

using namespace llm_decoder;

std::size_t index(std::int64_t i) { return static_cast<std::size_t>(i); }

struct Request {
  std::vector<std::int32_t> rows, top_k;
  std::vector<float> temperature, top_p, min_p, repetition, presence, frequency, bias_values;
  std::vector<std::uint64_t> seed;
  std::vector<std::int64_t> position, history_offsets, id_offsets;
  std::vector<std::int32_t> history, ids, mask_of_draw;
  std::vector<std::uint32_t> masks;
  int n_mask_words = 0;
};

Request random_request(int n_draws, int n_rows, int vocab_size) {
  Request r;
  std::mt19937 random(3);
  const auto below = [&](int n) { return static_cast<std::int32_t>(random() % static_cast<unsigned>(n)); };
  r.history_offsets = r.id_offsets = {0};
  r.n_mask_words = (vocab_size + 31) / 32;
  for (int i = 0; i < 2 * r.n_mask_words; ++i) r.masks.push_back(static_cast<std::uint32_t>(random()));
  for (int i = 0; i < n_draws; ++i) {
    r.rows.push_back(below(n_rows));
    r.top_k.push_back(below(3) == 0 ? 0 : 1 + below(200));
    r.temperature.push_back(0.25f * static_cast<float>(below(9)));
    r.top_p.push_back(below(2) == 0 ? 1.0f : 0.05f + 0.01f * static_cast<float>(below(90)));
    r.min_p.push_back(below(2) == 0 ? 0.0f : 0.002f * static_cast<float>(below(50)));
    r.repetition.push_back(below(2) == 0 ? 1.0f : 0.8f + 0.1f * static_cast<float>(below(5)));
    r.presence.push_back(0.1f * static_cast<float>(below(5)));
    r.frequency.push_back(0.3f * static_cast<float>(below(3)));
    r.seed.push_back(std::uint64_t{random()} << 32 | random());
    r.position.push_back(below(100000));
    for (int j = 0; j < 20; ++j) r.history.push_back(below(vocab_size));
    r.history_offsets.push_back(static_cast<std::int64_t>(r.history.size()));
    for (int j = 0; j < 3; ++j) {
      r.ids.push_back(below(vocab_size / 3) * 3 + j);  // never twice
      r.bias_values.push_back(0.5f * static_cast<float>(below(9)) - 2.0f);
    }
    r.id_offsets.push_back(static_cast<std::int64_t>(r.ids.size()));
    r.mask_of_draw.push_back(below(3) - 1);
  }
  return r;
}

struct Answer {
  std::vector<std::int32_t> tokens, ranks, top_ids;
  std::vector<float> logprobs, top_logprobs;

  Answer(std::size_t n, std::size_t n_top)
      : tokens(n), ranks(n), top_ids(n * n_top), logprobs(n), top_logprobs(n * n_top) {}
};

Answer ask_cpu(const std::vector<float>& logits, int vocab_size, Request& r, int n_top) {
  SamplingParams p;
  p.rows = r.rows;
  p.temperature = r.temperature;
  p.top_k = r.top_k;
  p.top_p = r.top_p;
  p.min_p = r.min_p;
  p.repetition_penalty = r.repetition;
  p.presence_penalty = r.presence;
  p.frequency_penalty = r.frequency;
  p.seed = r.seed;
  p.position = r.position;
  p.prompt = p.output = {r.history_offsets, r.history};
  p.bias = {r.id_offsets, r.ids};
  p.bias_values = r.bias_values;
  const std::vector<std::int64_t> none(r.rows.size() + 1, 0);
  const std::vector<std::int32_t> no_ids;
  p.banned = p.allowed = {none, no_ids};
  p.masks = {r.mask_of_draw, r.masks, r.n_mask_words};
  Answer a(r.rows.size(), index(n_top));
  ThreadPool pool(1);
  Sampler(1).sample({logits.data(), static_cast<std::int32_t>(logits.size()) / vocab_size, vocab_size}, p, n_top,
                    select_cpu_kernels("auto"), pool,
                    {a.tokens.data(), a.logprobs.data(), a.ranks.data(), a.top_ids.data(), a.top_logprobs.data()});
  return a;
}

Answer ask_gpu(const std::vector<float>& logits, int vocab_size, const Request& r, int n_top) {
  Answer a(r.rows.size(), index(n_top));
  gpu::SampleLaunch l;
  l.logits = {{logits.data(), Dtype::f32, vocab_size}, static_cast<int>(logits.size()) / vocab_size, vocab_size};
  l.n_draws = static_cast<int>(r.rows.size());
  l.params.rows = r.rows.data();
  l.params.temperature = r.temperature.data();
  l.params.top_k = r.top_k.data();
  l.params.top_p = r.top_p.data();
  l.params.min_p = r.min_p.data();
  l.params.repetition_penalty = r.repetition.data();
  l.params.presence_penalty = r.presence.data();
  l.params.frequency_penalty = r.frequency.data();
  l.params.seed = r.seed.data();
  l.params.position = r.position.data();
  l.params.prompt = l.params.output = {r.history_offsets.data(), r.history.data()};
  l.params.bias = {r.id_offsets.data(), r.ids.data()};
  l.params.bias_values = r.bias_values.data();
  l.params.masks = {r.mask_of_draw.data(), r.masks.data(), r.n_mask_words};
  l.tokens = a.tokens.data();
  l.logprobs = a.logprobs.data();
  l.ranks = a.ranks.data();
  l.best = {n_top, a.top_ids.data(), a.top_logprobs.data()};
  std::vector<gpu::Vec<std::uint32_t, 4>> workspace(index(workspace_bytes(l) / 16));
  l.workspace = workspace.data();
  sample(l, nullptr);
  return a;
}

TEST(both_samplers_give_the_same_tokens_and_log_probabilities) {
  const int vocab_size = 3001, n_rows = 4, n_draws = 60, n_top = 4;
  std::mt19937 random(5);
  std::normal_distribution<float> normal(0.0f, 3.0f);
  std::vector<float> logits(index(n_rows * vocab_size));
  for (float& x : logits) x = normal(random);
  Request request = random_request(n_draws, n_rows, vocab_size);
  const Answer cpu = ask_cpu(logits, vocab_size, request, n_top), gpu = ask_gpu(logits, vocab_size, request, n_top);
  for (std::size_t i = 0; i < index(n_draws); ++i) {
    CHECK_EQ(gpu.tokens[i], cpu.tokens[i]);
    CHECK_EQ(gpu.ranks[i], cpu.ranks[i]);
    CHECK(std::abs(gpu.logprobs[i] - cpu.logprobs[i]) < 1e-5f);
  }
  CHECK(gpu.top_ids == cpu.top_ids);
  for (std::size_t i = 0; i < cpu.top_logprobs.size(); ++i) {
    CHECK(std::abs(gpu.top_logprobs[i] - cpu.top_logprobs[i]) < 1e-5f);
  }
}

}  // namespace
