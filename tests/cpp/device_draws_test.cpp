// Draws and continuations on a device, with parameters and results on the host, against the CPU's Sampler on the same
// logits: whatever a request may ask for, both give the same tokens.
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "check.h"
#include "device_continuations.h"
#include "device_memory.h"
#include "device_sampler.h"
#include "machine.h"
#include "sampler.h"

namespace {

using namespace llm_decoder;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

std::size_t index(std::int64_t i) { return static_cast<std::size_t>(i); }

// Ids of each draw, as many as were added.
struct Lists {
  std::vector<std::int64_t> offsets = {0};
  std::vector<std::int32_t> ids;

  void end_draw() { offsets.push_back(static_cast<std::int64_t>(ids.size())); }
  RaggedIds view() const { return {offsets, ids}; }
};

// Draws, each off but for what it asks for.
struct Request {
  std::vector<std::int32_t> rows, top_k, mask_of_draw;
  std::vector<float> temperature, top_p, min_p, repetition, presence, frequency, bias_values;
  std::vector<std::uint64_t> seed;
  std::vector<std::int64_t> position;
  Lists prompt, output, bias, banned, allowed;
  std::vector<std::uint32_t> masks;
  std::int32_t n_mask_words;

  explicit Request(int vocab_size) : n_mask_words((vocab_size + 31) / 32) {}

  // The lists' ids of a draw are added before it.
  void add(std::int32_t row, float temperature_ = 0.0f) {
    rows.push_back(row);
    temperature.push_back(temperature_);
    top_k.push_back(0);
    top_p.push_back(1.0f);
    min_p.push_back(0.0f);
    repetition.push_back(1.0f);
    presence.push_back(0.0f);
    frequency.push_back(0.0f);
    seed.push_back(rows.size() * 0x9E3779B97F4A7C15u);
    position.push_back(static_cast<std::int64_t>(rows.size()) << 30);
    mask_of_draw.push_back(-1);
    for (Lists* lists : {&prompt, &output, &bias, &banned, &allowed}) lists->end_draw();
  }

  SamplingParams view() const {
    SamplingParams p;
    p.rows = rows;
    p.temperature = temperature;
    p.top_k = top_k;
    p.top_p = top_p;
    p.min_p = min_p;
    p.repetition_penalty = repetition;
    p.presence_penalty = presence;
    p.frequency_penalty = frequency;
    p.seed = seed;
    p.position = position;
    p.prompt = prompt.view();
    p.output = output.view();
    p.bias = bias.view();
    p.bias_values = bias_values;
    p.banned = banned.view();
    p.allowed = allowed.view();
    p.masks = {mask_of_draw, masks, n_mask_words};
    return p;
  }
};

struct Logits {
  int n_rows, vocab_size;
  std::vector<float> values;

  Logits(int n_rows_, int vocab_size_, unsigned seed, float spread)
      : n_rows(n_rows_), vocab_size(vocab_size_), values(index(n_rows * vocab_size)) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal(0.0f, spread);
    for (float& x : values) x = normal(random);
  }

  float& at(int row, int token) { return values[index(row * vocab_size + token)]; }
};

// A request as a user may write it, within the limits of sampling.py, and with ids that come again.
Request random_request(int n_draws, int n_rows, int vocab_size, unsigned seed) {
  std::mt19937 random(seed);
  const auto below = [&](int n) { return static_cast<std::int32_t>(random() % static_cast<unsigned>(n)); };
  const auto one_in = [&](int n) { return below(n) == 0; };
  const auto between = [&](float low, float high) {
    return low + (high - low) * static_cast<float>(below(1001)) / 1000;
  };
  const auto add_ids = [&](Lists& lists, int n) {
    for (int i = 0; i < n; ++i) lists.ids.push_back(i > 0 && one_in(3) ? lists.ids.back() : below(vocab_size));
  };
  Request r(vocab_size);
  for (int i = 0; i < n_draws; ++i) {
    if (one_in(2)) add_ids(r.prompt, below(30));
    if (one_in(2)) add_ids(r.output, below(30));
    if (one_in(3)) add_ids(r.bias, 1 + below(6));
    if (one_in(3)) add_ids(r.banned, below(vocab_size / 2 + 1));
    if (one_in(4)) add_ids(r.allowed, 1 + below(vocab_size));
    r.add(below(n_rows));
    const std::size_t at = r.rows.size() - 1;
    while (r.bias_values.size() < r.bias.ids.size()) r.bias_values.push_back(between(-100, one_in(2) ? 100 : 0));
    r.temperature[at] = one_in(4) ? 0.0f : one_in(5) ? between(0.01f, 100) : between(0.3f, 2);
    if (one_in(2)) r.top_k[at] = 1 + below(one_in(3) ? 2 * vocab_size : 40);
    if (one_in(2)) r.top_p[at] = one_in(8) ? 1e-6f : between(0.05f, 0.999f);
    if (one_in(3)) r.min_p[at] = one_in(8) ? 1.0f : between(0, 0.2f);
    if (one_in(3)) r.repetition[at] = one_in(4) ? between(0.01f, 100) : between(0.7f, 1.5f);
    if (one_in(3)) r.presence[at] = between(-2, 2);
    if (one_in(3)) r.frequency[at] = between(-2, 2);
    r.seed[at] = std::uint64_t{random()} << 32 | random();
    r.position[at] = one_in(3) ? std::int64_t{below(1 << 20)} << 20 : below(1000);
    if (one_in(4)) {
      r.mask_of_draw[at] = static_cast<std::int32_t>(r.masks.size()) / r.n_mask_words;
      for (int j = 0; j < r.n_mask_words; ++j) {
        r.masks.push_back(one_in(3) ? (one_in(2) ? 0u : ~0u) : static_cast<std::uint32_t>(random()));
      }
    }
  }
  return r;
}

// The logits on the device, read by both kinds of launches.
class OnDevice {
 public:
  explicit OnDevice(const Logits& logits)
      : n_rows_(logits.n_rows),
        vocab_size_(logits.vocab_size),
        values_(static_cast<std::int64_t>(logits.values.size())) {
    gpu::copy_memory(values_.data(), logits.values.data(), values_.n_bytes(), nullptr);
    gpu::synchronize(nullptr);
  }
  gpu::LogitRowsTensor tensor() const { return {{values_.data(), Dtype::f32, vocab_size_}, n_rows_, vocab_size_}; }

 private:
  int n_rows_, vocab_size_;
  gpu::DeviceArray<float> values_;
};

bool is_close(float got, float want) {
  return got == want || (std::isnan(got) && std::isnan(want)) || std::abs(got - want) <= 2e-5f * (1 + std::abs(want));
}

// Throws at the first difference, saying where.
#define SAME(ok, ...) \
  if (!(ok)) return check::fail(__FILE__, __LINE__, __VA_ARGS__)

struct Draws {
  std::vector<std::int32_t> tokens, ranks, top_ids;
  std::vector<float> logprobs, top_logprobs;

  Draws(std::size_t n, int n_top)
      : tokens(n, -7), ranks(n, -7), top_ids(n * index(n_top), -7), logprobs(n), top_logprobs(n * index(n_top)) {}
  SampleResult result() { return {tokens.data(), logprobs.data(), ranks.data(), top_ids.data(), top_logprobs.data()}; }
};

Draws draw_on_cpu(const Logits& logits, const SamplingParams& params, int n_top) {
  Draws draws(params.rows.size, n_top);
  ThreadPool pool(1);
  Sampler(1).sample({logits.values.data(), logits.n_rows, logits.vocab_size}, params, n_top, select_cpu_kernels("auto"),
                    pool, draws.result());
  return draws;
}

Draws draw_on_device(const Logits& logits, const SamplingParams& params, int n_top) {
  Draws draws(params.rows.size, n_top);
  const OnDevice on_device(logits);
  gpu::DeviceSampler sampler;
  sampler.begin_sample(on_device.tensor(), params, n_top, nullptr);
  sampler.end_sample(draws.result());
  return draws;
}

void check_draws(const Logits& logits, const Request& request, int n_top, const std::string& name) {
  const Draws want = draw_on_cpu(logits, request.view(), n_top), got = draw_on_device(logits, request.view(), n_top);
  for (std::size_t i = 0; i < want.tokens.size(); ++i) {
    SAME(got.tokens[i] == want.tokens[i], name, ": draw ", i, ": token ", got.tokens[i], ", want ", want.tokens[i]);
    SAME(got.ranks[i] == want.ranks[i], name, ": draw ", i, ": rank ", got.ranks[i], ", want ", want.ranks[i]);
    SAME(is_close(got.logprobs[i], want.logprobs[i]), name, ": draw ", i, ": log probability ", got.logprobs[i],
         ", want ", want.logprobs[i]);
  }
  SAME(got.top_ids == want.top_ids, name, ": other best tokens");
  for (std::size_t i = 0; i < want.top_logprobs.size(); ++i) {
    SAME(is_close(got.top_logprobs[i], want.top_logprobs[i]), name, ": best ", i, ": ", got.top_logprobs[i], ", want ",
         want.top_logprobs[i]);
  }
}

struct Continuations {
  int n;
  std::vector<std::int32_t> tokens, ranks, top_ids;
  std::vector<float> scores, keys, logprobs, top_logprobs;

  // n_top: -1 without ranks, too.
  Continuations(std::size_t n_draws, int n_, int n_top)
      : n(n_),
        tokens(n_draws * index(n), -7),
        ranks(n_top < 0 ? 0 : tokens.size(), -7),
        top_ids(n_top < 0 ? 0 : n_draws * index(n_top), -7),
        scores(tokens.size()),
        keys(tokens.size()),
        logprobs(tokens.size()),
        top_logprobs(top_ids.size()) {}

  ContinuationResult result() {
    ContinuationResult r;
    r.n = n;
    r.tokens = tokens.data();
    r.scores = scores.data();
    r.keys = keys.data();
    r.logprobs = logprobs.data();
    r.ranks = ranks.empty() ? nullptr : ranks.data();
    r.n_top = static_cast<std::int32_t>(top_ids.size() / std::max<std::size_t>(1, tokens.size() / index(n)));
    r.top_ids = top_ids.data();
    r.top_logprobs = top_logprobs.data();
    return r;
  }
};

Continuations continue_on_cpu(const Logits& logits, const SamplingParams& params, int n, int n_top) {
  Continuations found(params.rows.size, n, n_top);
  ThreadPool pool(1);
  Sampler(1).continuations({logits.values.data(), logits.n_rows, logits.vocab_size}, params, select_cpu_kernels("auto"),
                           pool, found.result());
  return found;
}

Continuations continue_on_device(const Logits& logits, const SamplingParams& params, int n, int n_top) {
  Continuations found(params.rows.size, n, n_top);
  gpu::DeviceContinuations().find(OnDevice(logits).tensor(), params, found.result(), nullptr);
  return found;
}

// Two tokens whose keys are within rounding of each other may change places, and the last one may be the one behind it.
void check_continuations(const Logits& logits, const Request& request, int n, int n_top, const std::string& name) {
  const Continuations want = continue_on_cpu(logits, request.view(), n, n_top);
  const Continuations got = continue_on_device(logits, request.view(), n, n_top);
  int n_in_doubt = 0;
  for (std::size_t i = 0; i < want.tokens.size(); ++i) {
    const std::size_t place = i % index(n);
    SAME(is_close(got.keys[i], want.keys[i]), name, ": draw ", i / index(n), ": key ", place, ": ", got.keys[i],
         ", want ", want.keys[i]);
    if (got.tokens[i] == want.tokens[i]) {
      SAME(is_close(got.scores[i], want.scores[i]), name, ": score of ", got.tokens[i], ": ", got.scores[i], ", want ",
           want.scores[i]);
      SAME(is_close(got.logprobs[i], want.logprobs[i]), name, ": log probability of ", got.tokens[i]);
      if (n_top >= 0) SAME(got.ranks[i] == want.ranks[i], name, ": rank of ", got.tokens[i], ": ", got.ranks[i]);
      continue;
    }
    const bool is_near = (place > 0 && is_close(want.keys[i - 1], want.keys[i])) || place == index(n) - 1 ||
                         is_close(want.keys[i + 1], want.keys[i]);
    SAME(is_near, name, ": draw ", i / index(n), ": token ", place, ": ", got.tokens[i], ", want ", want.tokens[i]);
    ++n_in_doubt;
  }
  SAME(n_in_doubt <= 4 + static_cast<int>(want.tokens.size()) / 50, name, ": ", n_in_doubt, " of ", want.tokens.size(),
       " tokens in doubt");
  SAME(got.top_ids == want.top_ids, name, ": other best tokens");
  for (std::size_t i = 0; i < want.top_logprobs.size(); ++i) {
    SAME(is_close(got.top_logprobs[i], want.top_logprobs[i]), name, ": best ", i);
  }
}

struct Size {
  int vocab_size, n_draws;
  float spread;
};
constexpr Size kSizes[] = {{1, 8, 1.0f},    {3, 12, 1.0f},    {61, 40, 0.3f},
                           {331, 60, 3.0f}, {4200, 20, 3.0f}, {4097, 10, 20.0f}};

TEST(draws_of_any_request_are_those_of_the_cpu) {
  for (const Size& size : kSizes) {
    const Logits logits(4, size.vocab_size, 5, size.spread);
    for (unsigned seed = 0; seed < 3; ++seed) {
      const int n_top = std::min(size.vocab_size, seed == 0 ? 0 : seed == 1 ? 20 : 300);
      check_draws(logits, random_request(size.n_draws, 4, size.vocab_size, seed), n_top,
                  concat("vocabulary of ", size.vocab_size, ", request ", seed));
    }
  }
}

TEST(continuations_of_any_request_are_those_of_the_cpu) {
  for (const Size& size : kSizes) {
    const Logits logits(4, size.vocab_size, 6, size.spread);
    for (unsigned seed = 0; seed < 3; ++seed) {
      const int n = std::min(size.vocab_size, seed == 0 ? 8 : seed == 1 ? 128 : 700);
      const int n_top = std::min(size.vocab_size, seed == 0 ? -1 : seed == 1 ? 0 : 20);
      check_continuations(logits, random_request(size.n_draws, 4, size.vocab_size, 10 + seed), n, n_top,
                          concat("vocabulary of ", size.vocab_size, ", request ", seed));
    }
  }
}

TEST(plain_beams_have_all_tokens_of_a_row_in_the_order_of_its_logits) {
  Logits logits(2, 4300, 7, 2.0f);
  for (int token = 0; token < 4300; ++token) logits.at(1, token) = std::round(logits.at(1, token) * 4) / 4;
  Request request(4300);
  for (const int row : {0, 1}) request.add(row);
  const Continuations got = continue_on_device(logits, request.view(), 4300, 0);
  const Continuations want = continue_on_cpu(logits, request.view(), 4300, 0);
  CHECK(got.tokens == want.tokens);
  CHECK(got.ranks == want.ranks);
  CHECK(got.keys == got.scores && got.scores == got.logprobs);
}

TEST(tokens_that_are_all_but_impossible_count_towards_top_k) {
  Logits logits(1, 500, 8, 1.0f);
  for (int token = 0; token < 5; ++token) logits.at(0, token) = 90.0f;
  Request request(500);
  for (const int top_k : {5, 6, 50}) {
    request.add(0, 0.4f);
    request.top_k.back() = top_k;
  }
  const Continuations got = continue_on_device(logits, request.view(), 60, -1);
  for (const auto& [draw, n_left] : {std::pair{0, 5}, {1, 6}, {2, 50}}) {
    const auto begin = got.tokens.begin() + draw * 60;
    CHECK_EQ(std::count_if(begin, begin + 60, [](std::int32_t token) { return token >= 0; }), n_left);
  }
  check_continuations(logits, request, 60, -1, "a few likely tokens");
}

TEST(the_first_continuations_of_many_draws_follow_the_distribution) {
  // The first by key is a draw (Gumbel's trick). Chi-square with 3 degrees of freedom passes 16.3 once in a thousand.
  Logits logits(1, 4, 9, 0.0f);
  const std::vector<float> x = {0.0f, 1.0f, -1.0f, 0.5f};
  std::copy(x.begin(), x.end(), logits.values.begin());
  Request request(4);
  for (int i = 0; i < 400; ++i) request.add(0, 1.0f);
  const Continuations got = continue_on_device(logits, request.view(), 1, -1);
  double sum = 0.0, chi_square = 0.0;
  for (const float v : x) sum += std::exp(v);
  for (int token = 0; token < 4; ++token) {
    const double want = 400 * std::exp(x[index(token)]) / sum;
    const auto n = static_cast<double>(std::count(got.tokens.begin(), got.tokens.end(), token));
    chi_square += (n - want) * (n - want) / want;
  }
  CHECK(chi_square < 16.3);
}

TEST(rows_that_are_not_finite_and_draws_with_nothing_left_are_told_apart) {
  const int vocab_size = 4200;
  Logits logits(5, vocab_size, 10, 1.0f);
  logits.at(0, 4199) = std::numeric_limits<float>::quiet_NaN();
  logits.at(1, 3) = kInfinity;
  for (int token = 0; token < vocab_size; ++token) logits.at(2, token) = -kInfinity;
  for (int token = 2; token < vocab_size; ++token) logits.at(3, token) = -kInfinity;
  for (const float temperature : {0.0f, 0.7f}) {
    Request request(vocab_size);
    for (int row = 0; row < 4; ++row) request.add(row, temperature);
    request.banned.ids.resize(index(vocab_size));
    std::iota(request.banned.ids.begin(), request.banned.ids.end(), 0);
    request.add(4, temperature);
    const Continuations got = continue_on_device(logits, request.view(), 3, 2);
    for (const int draw : {0, 1, 2}) CHECK_EQ(got.tokens[index(3 * draw)], kNotFinite);
    CHECK(got.tokens[9] >= 0 && got.tokens[10] >= 0);
    CHECK_EQ(got.tokens[11], -1);
    CHECK_EQ(got.tokens[12], kNoTokenLeft);
    CHECK_EQ(got.tokens[13], -1);
    check_continuations(logits, request, 3, 2, "rows of all kinds");
    check_draws(logits, request, 2, "rows of all kinds");
  }
}

TEST(several_biases_of_a_token_add_up) {
  const Logits logits(1, 100, 11, 1.0f);
  Request request(100);
  request.bias.ids = {40, 7, 40, 40, 9};
  request.bias_values = {20, 50, 20, 20, -3};
  request.add(0);
  request.bias.ids.push_back(40);  // of the next draw
  request.bias_values.push_back(-5);
  request.add(0);
  CHECK_EQ(draw_on_device(logits, request.view(), 0).tokens[0], 40);
  check_draws(logits, request, 0, "biases");
  check_continuations(logits, request, 100, -1, "biases");
}

#if !defined(LLM_DECODER_ON_DEVICE)  // which has an order of its own
TEST(neither_the_order_of_threads_nor_the_batch_changes_a_bit) {
  const int vocab_size = 4200;
  const Logits logits(4, vocab_size, 12, 3.0f);
  const Request request = random_request(5, 4, vocab_size, 20);
  const Continuations first = continue_on_device(logits, request.view(), 40, 3);
  for (const gpu::Order& order :
       {gpu::Order{gpu::Order::Kind::descending, 0}, gpu::Order{gpu::Order::Kind::shuffled, 5}}) {
    gpu::set_host_order(order);
    const Continuations again = continue_on_device(logits, request.view(), 40, 3);
    gpu::set_host_order({});
    CHECK(again.tokens == first.tokens);
    CHECK(again.ranks == first.ranks);
    CHECK(std::equal(again.keys.begin(), again.keys.end(), first.keys.begin(),
                     [](float a, float b) { return a == b || (std::isnan(a) && std::isnan(b)); }));
  }
}
#endif

TEST(sizes_that_no_row_has_are_refused) {
  const Logits logits(1, 10, 13, 1.0f);
  Request request(10);
  request.add(0);
  CHECK_THROWS(std::invalid_argument, "n must be in [1, 10], got 11",
               continue_on_device(logits, request.view(), 11, 0));
  CHECK_THROWS(std::invalid_argument, "n_top must be in [0, 10], got 12",
               continue_on_device(logits, request.view(), 3, 12));
  request.top_p[0] = 0.0f;
  CHECK_THROWS(std::invalid_argument, "top_p must be in (0, 1], got 0",
               continue_on_device(logits, request.view(), 3, 0));
}

}  // namespace
