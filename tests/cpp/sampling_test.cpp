// Sampling kernels on the host machine against their formulas in double: edits, cuts, the draw on its number, log
// probabilities, ranks, best tokens, beams; ties, rows that are not finite, NaN wherever nothing may look.
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "bin_ladder.h"
#include "check.h"
#include "machine.h"
#include "sampling_launch.h"

namespace {

using namespace llm_decoder;
using namespace llm_decoder::gpu;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

std::size_t index(std::int64_t i) { return static_cast<std::size_t>(i); }

// A row of logits is followed by NaN, and by nothing after the last.
struct Logits {
  int n_rows, vocab_size, stride;
  Dtype dtype;
  std::vector<float> values;          // [n_rows, vocab_size], as the dtype has them
  std::vector<std::uint32_t> words;   // float32
  std::vector<std::uint16_t> halves;  // bfloat16, float16

  Logits(std::vector<float> values_, int vocab_size_, Dtype dtype_ = Dtype::f32, int padding = 0)
      : n_rows(static_cast<int>(values_.size()) / vocab_size_),
        vocab_size(vocab_size_),
        stride(vocab_size_ + padding),
        dtype(dtype_),
        values(std::move(values_)) {
    const std::size_t n = index(std::int64_t{n_rows - 1} * stride + vocab_size);
    words.assign(n, 0x7fffffffu);
    halves.assign(n, 0x7fff);
    for (int row = 0; row < n_rows; ++row) {
      for (int i = 0; i < vocab_size; ++i) {
        float& x = values[index(std::int64_t{row} * vocab_size + i)];
        const std::size_t at = index(std::int64_t{row} * stride + i);
        if (dtype == Dtype::bf16) x = to_float(Bf16{halves[at] = from_float<Bf16>(x).bits});
        if (dtype == Dtype::f16) x = to_float(Fp16{halves[at] = from_float<Fp16>(x).bits});
        words[at] = float_bits(x);
      }
    }
  }

  LogitRowsTensor tensor() const {
    const void* data = dtype == Dtype::f32 ? static_cast<const void*>(words.data()) : halves.data();
    return {{data, dtype, stride}, n_rows, vocab_size};
  }
  std::vector<float> row(int i) const {
    return {values.begin() + std::int64_t{i} * vocab_size, values.begin() + std::int64_t{i + 1} * vocab_size};
  }
};

std::vector<float> random_logits(std::size_t n, unsigned seed, float spread) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0f, spread);
  std::vector<float> x(n);
  for (float& value : x) value = normal(random);
  return x;
}

using Lists = std::vector<std::vector<std::int32_t>>;

struct FlatLists {
  std::vector<std::int64_t> offsets = {0};
  std::vector<std::int32_t> ids;

  explicit FlatLists(const Lists& lists) {
    for (const auto& list : lists) {
      ids.insert(ids.end(), list.begin(), list.end());
      offsets.push_back(static_cast<std::int64_t>(ids.size()));
    }
  }
  TokenLists view() const { return {offsets.data(), ids.data()}; }
};

// One draw's parameters, all off.
struct Params {
  std::int32_t row = 0, top_k = 0;
  float temperature = 0.0f, top_p = 1.0f, min_p = 0.0f, repetition = 1.0f, presence = 0.0f, frequency = 0.0f;
  std::uint64_t seed = 0;
  std::int64_t position = 0;
  std::vector<std::int32_t> prompt, output, bias, banned, allowed;
  std::vector<std::int32_t> mask;  // empty: none
  std::vector<float> bias_values;
};

struct Result {
  std::vector<std::int32_t> tokens, ranks, best_tokens;
  std::vector<float> logprobs, best_logprobs;
};

template <class T, class Get>
std::vector<T> gather(const std::vector<Params>& draws, const Get& get) {
  std::vector<T> values;
  for (const Params& draw : draws) values.push_back(get(draw));
  return values;
}

// Workspaces hold NaN at first.
struct Memory {
  std::vector<Vec<std::uint32_t, 4>> words;
  explicit Memory(std::int64_t n_bytes) : words(index(n_bytes / 16), {{~0u, ~0u, ~0u, ~0u}}) {}
};

Result run(const Logits& logits, const std::vector<Params>& draws, int n_best = 0) {
  const std::size_t n = draws.size();
  const auto rows = gather<std::int32_t>(draws, [](const Params& p) { return p.row; });
  const auto top_k = gather<std::int32_t>(draws, [](const Params& p) { return p.top_k; });
  const auto temperature = gather<float>(draws, [](const Params& p) { return p.temperature; });
  const auto top_p = gather<float>(draws, [](const Params& p) { return p.top_p; });
  const auto min_p = gather<float>(draws, [](const Params& p) { return p.min_p; });
  const auto repetition = gather<float>(draws, [](const Params& p) { return p.repetition; });
  const auto presence = gather<float>(draws, [](const Params& p) { return p.presence; });
  const auto frequency = gather<float>(draws, [](const Params& p) { return p.frequency; });
  const auto seed = gather<std::uint64_t>(draws, [](const Params& p) { return p.seed; });
  const auto position = gather<std::int64_t>(draws, [](const Params& p) { return p.position; });
  const auto lists = [&](std::vector<std::int32_t> Params::* field) {
    return FlatLists(gather<std::vector<std::int32_t>>(draws, [field](const Params& p) { return p.*field; }));
  };
  const FlatLists prompt = lists(&Params::prompt), output = lists(&Params::output), bias = lists(&Params::bias),
                  banned = lists(&Params::banned), allowed = lists(&Params::allowed);
  std::vector<float> bias_values;
  for (const Params& draw : draws) {
    bias_values.insert(bias_values.end(), draw.bias_values.begin(), draw.bias_values.end());
  }

  Result result;
  result.tokens.assign(n, -7);
  result.ranks.assign(n, -7);
  result.logprobs.assign(n, 7.0f);
  result.best_tokens.assign(n * index(n_best), -7);
  result.best_logprobs.assign(n * index(n_best), 7.0f);

  SampleLaunch l;
  l.logits = logits.tensor();
  l.n_draws = static_cast<int>(n);
  l.params.rows = rows.data();
  const bool is_random = std::any_of(temperature.begin(), temperature.end(), [](float t) { return t > 0.0f; });
  if (is_random) l.params.temperature = temperature.data();
  l.params.top_k = top_k.data();
  l.params.top_p = top_p.data();
  l.params.min_p = min_p.data();
  l.params.repetition_penalty = repetition.data();
  l.params.presence_penalty = presence.data();
  l.params.frequency_penalty = frequency.data();
  l.params.seed = seed.data();
  l.params.position = position.data();
  const bool has_lists =
      !prompt.ids.empty() || !output.ids.empty() || !bias.ids.empty() || !banned.ids.empty() || !allowed.ids.empty();
  if (has_lists) {
    l.params.prompt = prompt.view();
    l.params.output = output.view();
    l.params.bias = bias.view();
    l.params.banned = banned.view();
    l.params.allowed = allowed.view();
    l.params.bias_values = bias_values.data();
  }
  const int n_words = (logits.vocab_size + 31) / 32;
  std::vector<std::int32_t> mask_of_draw;
  std::vector<std::uint32_t> mask_words;
  for (const Params& draw : draws) {
    mask_of_draw.push_back(draw.mask.empty() ? -1 : static_cast<std::int32_t>(mask_words.size()) / n_words);
    if (draw.mask.empty()) continue;
    const std::size_t begin = mask_words.size();
    mask_words.resize(begin + index(n_words), 0);
    for (const std::int32_t id : draw.mask) mask_words[begin + index(id / 32)] |= std::uint32_t{1} << id % 32;
  }
  if (!mask_words.empty()) l.params.masks = {mask_of_draw.data(), mask_words.data(), n_words};
  l.tokens = result.tokens.data();
  l.logprobs = result.logprobs.data();
  l.ranks = result.ranks.data();
  l.best = {n_best, result.best_tokens.data(), result.best_logprobs.data()};
  Memory workspace(workspace_bytes(l));
  l.workspace = workspace.words.data();
  sample(l, nullptr);
  return result;
}

// ---- the formulas ----------------------------------------------------------------------------------------------

// Philox4x32-10 as Salmon et al. 2011 write it.
double uniform_of(std::uint64_t seed, std::int64_t position) {
  const auto at = static_cast<std::uint64_t>(position);
  std::uint32_t c[4] = {static_cast<std::uint32_t>(at), static_cast<std::uint32_t>(at >> 32), 0, 0};
  std::uint32_t k[2] = {static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(seed >> 32)};
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t p0 = 0xD2511F53ull * c[0], p1 = 0xCD9E8D57ull * c[2];
    const std::uint32_t next[4] = {static_cast<std::uint32_t>(p1 >> 32) ^ c[1] ^ k[0], static_cast<std::uint32_t>(p1),
                                   static_cast<std::uint32_t>(p0 >> 32) ^ c[3] ^ k[1], static_cast<std::uint32_t>(p0)};
    std::copy(next, next + 4, c);
    k[0] += 0x9E3779B9u;
    k[1] += 0xBB67AE85u;
  }
  return std::ldexp(static_cast<double>((std::uint64_t{c[0]} << 21) ^ (c[1] >> 11)), -53);
}

bool holds(const std::vector<std::int32_t>& list, int id) { return std::count(list.begin(), list.end(), id) > 0; }

std::vector<float> edited(std::vector<float> x, const Params& p) {
  for (int id = 0; id < static_cast<int>(x.size()); ++id) {
    float& v = x[index(id)];
    const auto n_used = std::count(p.output.begin(), p.output.end(), id);
    if (p.repetition != 1.0f && (n_used > 0 || holds(p.prompt, id))) v = v < 0 ? v * p.repetition : v / p.repetition;
    if (n_used > 0) {
      const float times = static_cast<float>(n_used) * p.frequency;
      v -= times + p.presence;
    }
    for (std::size_t i = 0; i < p.bias.size(); ++i) v += p.bias[i] == id ? p.bias_values[i] : 0.0f;
    if (holds(p.banned, id) || (!p.allowed.empty() && !holds(p.allowed, id))) v = -kInfinity;
    if (!p.mask.empty() && !holds(p.mask, id)) v = -kInfinity;
  }
  return x;
}

std::vector<int> in_order(const std::vector<float>& x) {
  std::vector<int> ids(x.size());
  std::iota(ids.begin(), ids.end(), 0);
  std::stable_sort(ids.begin(), ids.end(), [&](int a, int b) { return x[index(a)] > x[index(b)]; });
  return ids;
}

// The token, and how close another one was, as a share of the sum: `doubt`.
struct Drawn {
  int token;
  double doubt;
};

Drawn draw_by_formula(const std::vector<float>& x, const Params& p) {
  const std::vector<int> order = in_order(x);
  if (p.temperature == 0.0f) return {order[0], 1.0};
  std::size_t n = p.top_k > 0 ? std::min(order.size(), index(p.top_k)) : order.size();
  std::vector<double> through;
  std::vector<double> weights;
  double sum = 0, doubt = 1.0;
  for (std::size_t i = 0; i < n; ++i) {
    weights.push_back(std::exp((double{x[index(order[i])]} - x[index(order[0])]) / p.temperature));
    through.push_back(sum += weights.back());
  }
  const auto near = [&](double target) {
    for (const double t : through) doubt = std::min(doubt, std::abs(t - target) / sum);
  };
  if (p.top_p < 1.0f) {
    const double nucleus = double{p.top_p} * sum;
    near(nucleus);
    n = std::min(n, index(std::lower_bound(through.begin(), through.end(), nucleus) - through.begin()) + 1);
  }
  while (weights[n - 1] < double{p.min_p}) --n;
  sum = through[n - 1];
  const double target = uniform_of(p.seed, p.position) * sum;
  near(target);
  const auto at = std::upper_bound(through.begin(), through.begin() + static_cast<std::ptrdiff_t>(n), target);
  return {order[std::min(n - 1, index(at - through.begin()))], doubt};
}

double log_sum_exp(const std::vector<float>& x) {
  const double max = *std::max_element(x.begin(), x.end());
  double sum = 0;
  for (const float v : x) sum += std::exp(v - max);
  return max + std::log(sum);
}

bool is_close(double got, double want) { return got == want || std::abs(got - want) <= 2e-6 * (1 + std::abs(want)); }

// Compares all that a run tells with the formulas. Returns how many draws were in doubt and went the other way.
int check_run(const Logits& logits, const std::vector<Params>& draws, const std::string& name, int n_best = 0) {
  const Result got = run(logits, draws, n_best);
  int n_other = 0;
  for (std::size_t i = 0; i < draws.size(); ++i) {
    const std::vector<float> raw = logits.row(draws[i].row);
    const Drawn want = draw_by_formula(edited(raw, draws[i]), draws[i]);
    const int token = got.tokens[i];
    if (token != want.token) {
      if (!(want.doubt < 1e-6)) {
        check::fail(__FILE__, __LINE__, name, ": draw ", i, ": got token ", token, ", want ", want.token,
                    ", which is in doubt by ", want.doubt);
      }
      ++n_other;
    }
    const double lse = log_sum_exp(raw);
    if (!is_close(got.logprobs[i], raw[index(token)] - lse)) {
      check::fail(__FILE__, __LINE__, name, ": draw ", i, ": log probability ", got.logprobs[i], ", want ",
                  raw[index(token)] - lse);
    }
    const auto n_larger = std::count_if(raw.begin(), raw.end(), [&](float v) { return v > raw[index(token)]; });
    CHECK_EQ(got.ranks[i], 1 + n_larger);
    const std::vector<int> order = in_order(raw);
    for (std::size_t j = 0; j < index(n_best); ++j) {
      CHECK_EQ(got.best_tokens[i * index(n_best) + j], order[j]);
      CHECK(is_close(got.best_logprobs[i * index(n_best) + j], raw[index(order[j])] - lse));
    }
  }
  return n_other;
}

// ---- the tests -------------------------------------------------------------------------------------------------

TEST(greedy_takes_the_lowest_of_the_largest_whatever_the_size_and_dtype) {
  for (const int vocab_size : {1, 3, 31, 33, 127, 1000, 4095, 4097, 8200}) {
    for (const Dtype dtype : {Dtype::f32, Dtype::bf16, Dtype::f16}) {
      std::vector<float> x = random_logits(index(2 * vocab_size), 5, 2.0f);
      const float largest = 20.0f;
      x[index(vocab_size / 2)] = x[index(vocab_size - 1)] = largest;           // of row 0
      x[index(vocab_size)] = x[index(vocab_size + vocab_size - 1)] = largest;  // of row 1
      const Logits logits(x, vocab_size, dtype, vocab_size % 2 == 0 ? 8 : 3);
      std::vector<Params> draws(2);
      draws[1].row = 1;
      check_run(logits, draws, concat("greedy of ", vocab_size, " ", dtype_name(dtype)));
    }
  }
}

TEST(draws_are_those_of_the_formula_under_every_cut) {
  const int vocab_size = 1003;
  int n_other = 0;
  for (const Dtype dtype : {Dtype::f32, Dtype::bf16}) {
    const Logits logits(random_logits(index(3 * vocab_size), 7, 3.0f), vocab_size, dtype, 5);
    std::vector<Params> draws;
    for (int bits = dtype == Dtype::f32 ? 0 : 1; bits < 64; bits += dtype == Dtype::f32 ? 2 : 4) {
      Params p;
      p.row = bits % 3;
      p.temperature = bits % 5 < 2 ? 0.7f : 1.6f;
      if (bits & 2) p.top_k = bits & 4 ? 40 : 3;
      if (bits & 8) p.top_p = bits & 16 ? 0.9f : 0.3f;
      if (bits & 32) p.min_p = 0.05f;
      p.seed = static_cast<std::uint64_t>(bits) << 33 | 9u;
      p.position = bits * 1000003ll;
      draws.push_back(p);
    }
    n_other += check_run(logits, draws, concat("cuts of ", dtype_name(dtype)));
  }
  CHECK(n_other <= 1);
}

TEST(extreme_parameters_keep_their_meaning) {
  const int vocab_size = 300;
  const Logits logits(random_logits(index(vocab_size), 8, 4.0f), vocab_size);
  std::vector<Params> draws;
  const auto add = [&](auto change) {
    Params p;
    p.temperature = 1.0f;
    p.seed = 77 + draws.size();
    change(p);
    draws.push_back(p);
  };
  add([](Params& p) { p.temperature = 1e-45f; });
  add([](Params& p) { p.temperature = 1e-3f; });
  add([](Params& p) { p.temperature = 100.0f; });
  add([](Params& p) { p.temperature = 3e38f; });
  add([](Params& p) { p.top_k = 1; });
  add([](Params& p) { p.top_k = 299; });
  add([](Params& p) { p.top_k = 2147483647; });
  add([](Params& p) { p.top_p = 1e-6f; });
  add([](Params& p) { p.top_p = 0.999999f; });
  add([](Params& p) { p.min_p = 1.0f; });
  add([](Params& p) { p.min_p = 1e-30f; });
  add([](Params& p) { p.seed = ~std::uint64_t{0}, p.position = -1; });
  check_run(logits, draws, "extremes");
}

TEST(equal_logits_are_drawn_in_the_order_of_their_ids) {
  // More in a bin than a block keeps at hand; then several values in a bin, each many times.
  const int vocab_size = 5000;
  std::vector<float> x(index(2 * vocab_size), 1.25f);
  for (int i = 0; i < vocab_size; ++i) x[index(vocab_size + i)] = 1.0f + 0.001f * static_cast<float>(i % 7);
  const Logits logits(x, vocab_size, Dtype::f32, 1);
  std::vector<Params> draws;
  for (int i = 0; i < 12; ++i) {
    Params p;
    p.row = i % 2;
    p.temperature = 1.0f;
    p.seed = static_cast<std::uint64_t>(i);
    if (i >= 4) p.top_k = 3000;
    if (i >= 8) p.top_p = 0.5f;
    draws.push_back(p);
  }
  check_run(logits, draws, "ties");
}

TEST(a_top_k_of_all_tokens_or_more_cuts_nothing) {
  const Logits logits(std::vector<float>(40, 0.5f), 40);
  std::vector<Params> draws(16);
  for (std::size_t i = 0; i < draws.size(); ++i) {
    draws[i].temperature = 1.0f;
    draws[i].top_k = i % 2 == 0 ? 40 : 1000;
    draws[i].seed = i;
  }
  check_run(logits, draws, "all of a flat row");
}

#if !defined(LLM_DECODER_ON_DEVICE)  // words of kernels, called by themselves
TEST(sums_that_cuts_reach_are_whole_and_never_beyond_the_sum) {
  Cuts cuts(SamplingArgs{}, 0, 1);
  cuts.uniform = 0.0;
  CHECK_EQ(cuts.drawn(10), 1u);
  cuts.uniform = 0.5;
  CHECK_EQ(cuts.drawn(10), 6u);  // the first that is more than 5
  cuts.uniform = 1.0 - 0x1p-53;
  CHECK_EQ(cuts.drawn(10), 10u);
  for (int low_bits = 0; low_bits < 16; ++low_bits) {  // sums that float64 rounds
    const std::uint64_t sum = (std::uint64_t{1} << 54) + static_cast<std::uint64_t>(low_bits);
    CHECK(cuts.drawn(sum) <= sum);
  }
  cuts.top_p = 0.5;
  CHECK_EQ(cuts.nucleus(10), 5u);  // the first that is not less than 5
  CHECK_EQ(cuts.nucleus(11), 6u);
  cuts.top_p = 1e-6;
  CHECK_EQ(cuts.nucleus(10), 1u);
}
#endif

TEST(penalties_bias_and_bans_change_what_they_name) {
  const int vocab_size = 4200;  // two parts
  const Logits logits(random_logits(index(2 * vocab_size), 9, 2.0f), vocab_size);
  std::vector<Params> draws;
  for (int bits = 0; bits < 64; ++bits) {
    Params p;
    p.row = bits % 3 == 0 ? 1 : 0;
    const auto order = in_order(logits.row(p.row));
    p.temperature = bits & 8 ? 0.8f : 0.0f;
    p.seed = static_cast<std::uint64_t>(bits);
    p.prompt = {order[0], order[5], order[5], 7, 4199};
    p.output = {order[1], order[1], order[2], order[2], order[2], order[5], 4096};
    if (bits & 1) p.repetition = bits & 16 ? 0.5f : 1.7f;
    if (bits & 2) p.presence = 0.9f, p.frequency = 1.3f;
    if (bits & 4) p.bias = {order[4], 0, 4199}, p.bias_values = {1.75f, 9.0f, 8.5f};
    if (bits & 8) p.banned = {order[3], order[3], order[4], 0};
    if (bits & 16) p.allowed = {order[3], order[6], order[6], 33, 4199, 4097};
    if (bits & 32) p.mask = {order[1], order[3], order[7], order[8], 33, 4100, 4199};
    draws.push_back(p);
  }
  check_run(logits, draws, "edits", 2);
}

TEST(draws_follow_the_distribution) {
  // Chi-square with 4 degrees of freedom passes 18.5 once in a thousand seeds; these are fixed.
  const std::vector<float> x = {0.0f, 1.0f, -1.0f, 2.0f, 0.5f, -60.0f};
  const Logits logits(x, 6);
  std::vector<Params> draws(72);
  for (std::size_t i = 0; i < draws.size(); ++i) {
    draws[i].temperature = 1.0f;
    draws[i].seed = 1234;
    draws[i].position = static_cast<std::int64_t>(i);
  }
  const Result got = run(logits, draws);
  const double lse = log_sum_exp(x);
  double chi_square = 0;
  for (int token = 0; token < 5; ++token) {
    const double want = std::exp(x[index(token)] - lse) * static_cast<double>(draws.size());
    const auto n = static_cast<double>(std::count(got.tokens.begin(), got.tokens.end(), token));
    chi_square += (n - want) * (n - want) / want;
  }
  CHECK(chi_square < 18.5);
  CHECK_EQ(std::count(got.tokens.begin(), got.tokens.end(), 5), 0);
}

TEST(rows_that_are_not_finite_and_draws_with_nothing_left_are_told_apart) {
  const int vocab_size = 5000;
  std::vector<float> x = random_logits(index(5 * vocab_size), 10, 1.0f);
  x[3] = kNan;
  x[index(2 * vocab_size - 1)] = kInfinity;
  std::fill_n(x.begin() + 2 * vocab_size, vocab_size, -kInfinity);
  std::fill_n(x.begin() + 4 * vocab_size + 1, vocab_size - 1, -kInfinity);
  const Logits logits(x, vocab_size);
  std::vector<std::int32_t> all(index(vocab_size));
  std::iota(all.begin(), all.end(), 0);
  for (const float temperature : {0.0f, 1.0f}) {
    std::vector<Params> draws(5);
    for (int i = 0; i < 5; ++i) {
      draws[index(i)].row = i;
      draws[index(i)].temperature = temperature;
    }
    draws[3].banned = all;
    const Result got = run(logits, draws, 2);
    CHECK_EQ(got.tokens[0], kNotFinite);
    CHECK_EQ(got.tokens[1], kNotFinite);
    CHECK_EQ(got.tokens[2], kNotFinite);
    CHECK_EQ(got.tokens[3], kNoTokenLeft);
    CHECK_EQ(got.tokens[4], 0);
    CHECK_EQ(got.logprobs[4], 0.0f);
    CHECK_EQ(got.best_tokens[8], 0);
    CHECK_EQ(got.best_tokens[9], 1);
    CHECK_EQ(got.best_logprobs[9], -kInfinity);
    for (std::size_t i = 0; i < 4; ++i) {
      CHECK(std::isnan(got.logprobs[i]));
      CHECK_EQ(got.ranks[i], 0);
      CHECK_EQ(got.best_tokens[2 * i] >= 0, i == 3);
      CHECK_EQ(std::isnan(got.best_logprobs[2 * i]), i != 3);
    }
  }
}

TEST(targets_have_their_log_probabilities_ranks_and_best_alternatives) {
  for (const Dtype dtype : {Dtype::f32, Dtype::bf16, Dtype::f16}) {
    for (const int vocab_size : {1, 31, 4500}) {
      const int n_rows = 4, n_best = std::min(vocab_size, 20);
      std::vector<float> x = random_logits(index(n_rows * vocab_size), 11, 3.0f);
      x[0] = kNan;
      const Logits logits(x, vocab_size, dtype, 3);
      std::vector<std::int32_t> targets = {0, 0, vocab_size - 1, vocab_size / 2}, ranks(4, -7), best(index(4 * n_best));
      std::vector<float> logprobs(4), best_logprobs(best.size());
      LogProbsLaunch l;
      l.logits = logits.tensor();
      l.targets = targets.data();
      l.logprobs = logprobs.data();
      l.ranks = ranks.data();
      l.best = {n_best, best.data(), best_logprobs.data()};
      Memory workspace(workspace_bytes(l));
      l.workspace = workspace.words.data();
      log_probs(l, nullptr);
      CHECK(std::isnan(logprobs[0]) && std::isnan(best_logprobs[0]));
      CHECK_EQ(ranks[0], 0);
      CHECK_EQ(best[0], kNotFinite);
      for (int row = 1; row < n_rows; ++row) {
        const std::vector<float> raw = logits.row(row);
        const double lse = log_sum_exp(raw);
        const float own = raw[index(targets[index(row)])];
        CHECK(is_close(logprobs[index(row)], own - lse));
        CHECK_EQ(ranks[index(row)], 1 + std::count_if(raw.begin(), raw.end(), [&](float v) { return v > own; }));
        const std::vector<int> order = in_order(raw);
        for (int j = 0; j < n_best; ++j) {
          CHECK_EQ(best[index(row * n_best + j)], order[index(j)]);
          CHECK(is_close(best_logprobs[index(row * n_best + j)], raw[index(order[index(j)])] - lse));
        }
      }
    }
  }
}

TEST(any_number_of_best_tokens_is_in_order_among_ties) {
  const int vocab_size = 4400;
  std::vector<float> x = random_logits(index(vocab_size), 12, 1.0f);
  for (float& v : x) v = std::round(v * 4) / 4;
  x[17] = -0.0f;
  x[16] = 0.0f;
  for (const int n_best : {256, 257, 4400}) {
    check_run(Logits(x, vocab_size), {Params{}}, concat(n_best, " best"), n_best);
  }
  check_run(Logits({0.5f, -0.0f, 0.0f, -1.0f}, 4), {Params{}}, "signed zeros", 4);
}

struct Beams {
  std::vector<std::int32_t> tokens, beams;
  std::vector<float> scores;
};

Beams run_beams(const Logits& logits, int n_beams, const std::vector<float>& scores, int n) {
  const std::size_t n_out = index(logits.n_rows / n_beams * n);
  Beams out{std::vector<std::int32_t>(n_out, -7), std::vector<std::int32_t>(n_out, -7), std::vector<float>(n_out)};
  BeamLaunch l;
  l.logits = logits.tensor();
  l.n_beams = n_beams;
  l.scores = scores.data();
  l.n = n;
  l.tokens = out.tokens.data();
  l.beams = out.beams.data();
  l.new_scores = out.scores.data();
  Memory workspace(workspace_bytes(l));
  l.workspace = workspace.words.data();
  best_of_beams(l, nullptr);
  return out;
}

TEST(beams_of_a_group_compete_with_their_scores) {
  for (const int vocab_size : {7, 257, 4300}) {
    const int n_groups = 2, n_beams = 3, n = 2 * n_beams;
    const Logits logits(random_logits(index(n_groups * n_beams * vocab_size), 13, 2.0f), vocab_size, Dtype::bf16, 2);
    const std::vector<float> scores = {-1.0f, -1.5f, -0.7f, -3.0f, -1e9f, -3.25f};
    const Beams got = run_beams(logits, n_beams, scores, n);
    for (int group = 0; group < n_groups; ++group) {
      std::vector<double> want;
      for (int beam = 0; beam < n_beams; ++beam) {
        const std::vector<float> raw = logits.row(group * n_beams + beam);
        const double lse = log_sum_exp(raw);
        for (const float v : raw) want.push_back(v - lse + scores[index(group * n_beams + beam)]);
      }
      std::vector<double> sorted = want;
      std::sort(sorted.begin(), sorted.end(), std::greater<double>());
      for (int i = 0; i < n; ++i) {
        const std::size_t at = index(group * n + i);
        CHECK(is_close(got.scores[at], sorted[index(i)]));
        CHECK(is_close(want[index(got.beams[at] * vocab_size + got.tokens[at])], sorted[index(i)]));
        if (i > 0) CHECK(got.scores[at] <= got.scores[at - 1]);
      }
    }
  }
}

TEST(beams_with_equal_scores_go_by_beam_then_token) {
  // Of each beam tokens 1, 2 and 4 are equally good; beam 1 is as good as beam 0, beam 2 is worse.
  const Logits logits({0, 1, 1, 0, 1, 0, 1, 1, 0, 1, 0, 1, 1, 0, 1}, 5);
  const Beams got = run_beams(logits, 3, {-2.0f, -2.0f, -2.5f}, 10);
  CHECK((got.beams == std::vector<std::int32_t>{0, 0, 0, 1, 1, 1, 2, 2, 2, 0}));
  CHECK((got.tokens == std::vector<std::int32_t>{1, 2, 4, 1, 2, 4, 1, 2, 4, 0}));
}

TEST(a_group_with_a_beam_that_is_not_finite_says_so_and_others_go_on) {
  const Logits logits({0, 1, kNan, 1, 2, 1, 2, 3}, 2);
  const Beams got = run_beams(logits, 2, {0, 0, 0, 0}, 2);
  for (std::size_t i = 0; i < 2; ++i) {
    CHECK_EQ(got.tokens[i], kNotFinite);
    CHECK_EQ(got.beams[i], -1);
    CHECK(std::isnan(got.scores[i]));
  }
  CHECK_EQ(got.tokens[2], 0);
  CHECK_EQ(got.tokens[3], 1);
  CHECK_EQ(got.beams[3], 1);
}

TEST(neither_the_order_of_threads_nor_the_batch_changes_a_bit) {
  const int vocab_size = 4200;
  const Logits logits(random_logits(index(2 * vocab_size), 14, 3.0f), vocab_size);
  std::vector<Params> draws(4);
  for (std::size_t i = 0; i < draws.size(); ++i) {
    draws[i].row = static_cast<std::int32_t>(i % 2);
    draws[i].temperature = 1.3f;
    draws[i].seed = 40 + i;
    draws[i].banned = {static_cast<std::int32_t>(i)};
    if (i > 1) draws[i].top_p = 0.8f;
  }
  const Result first = run(logits, draws, 3);
  for (const Order& order : {Order{Order::Kind::descending, 0}, Order{Order::Kind::shuffled, 5}}) {
    set_host_order(order);
    const Result again = run(logits, draws, 3);
    set_host_order({});
    CHECK(again.tokens == first.tokens);
    CHECK(again.logprobs == first.logprobs);
    CHECK(again.best_tokens == first.best_tokens);
    CHECK(again.best_logprobs == first.best_logprobs);
  }
  for (std::size_t i = 0; i < draws.size(); ++i) {
    const Result alone = run(logits, {draws[i]});
    CHECK_EQ(alone.tokens[0], first.tokens[i]);
    CHECK_EQ(alone.logprobs[0], first.logprobs[i]);
  }
}

TEST(what_no_kernel_takes_is_refused) {
  const Logits logits({0, 1, 2, 3}, 2);
  Memory workspace(4096);
  SampleLaunch l;
  l.logits = logits.tensor();
  l.n_draws = 3;
  CHECK_THROWS(std::invalid_argument, "workspace must be", sample(l, nullptr));
  l.workspace = workspace.words.data();
  CHECK_THROWS(std::invalid_argument, "n_draws must be 0 to the number of rows, 2, got 3", sample(l, nullptr));
  l.n_draws = 2;
  l.best.n = 3;
  CHECK_THROWS(std::invalid_argument, "best tokens must be 0 to 2, got 3", sample(l, nullptr));
  l.best.n = 0;
  l.logits.rows.dtype = Dtype::s8;
  CHECK_THROWS(std::invalid_argument, "logits must be float32, bfloat16 or float16, got int8", sample(l, nullptr));
  l.logits.vocab_size = 1 << 20;
  CHECK_THROWS(std::invalid_argument, "vocab_size must be 1 to 524288", sample(l, nullptr));
  BeamLaunch beams;
  beams.logits = logits.tensor();
  beams.workspace = workspace.words.data();
  beams.n_beams = 2;
  beams.n = 4;
  CHECK_THROWS(std::invalid_argument, "scores must be there", best_of_beams(beams, nullptr));
  beams.n_beams = 3;
  CHECK_THROWS(std::invalid_argument, "whole groups of n_beams, got 3", best_of_beams(beams, nullptr));
}

}  // namespace
