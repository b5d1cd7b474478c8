#include "sampler.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <tuple>
#include <vector>

#include "check.h"
#include "llm_decoder/philox.h"
#include "top_candidates.h"

namespace {

using namespace llm_decoder;

// Owns what SamplingParams borrows: n draws with everything switched off.
struct Params {
  std::vector<std::int32_t> rows, top_k;
  std::vector<float> temperature, top_p, min_p, repetition, presence, frequency;
  std::vector<std::uint64_t> seed;
  std::vector<std::int64_t> position, none;
  std::vector<std::int32_t> no_ids;
  std::vector<float> no_values;

  explicit Params(std::size_t n)
      : rows(n, 0),
        top_k(n, 0),
        temperature(n, 1.0f),
        top_p(n, 1.0f),
        min_p(n, 0.0f),
        repetition(n, 1.0f),
        presence(n, 0.0f),
        frequency(n, 0.0f),
        seed(n, 0),
        position(n, 0),
        none(n + 1, 0) {}

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
    p.prompt = p.output = p.bias = p.banned = p.allowed = {none, no_ids};
    p.bias_values = no_values;
    return p;
  }
};

struct Drawn {
  std::vector<std::int32_t> tokens, ranks, top_ids;
  std::vector<float> logprobs, top_logprobs;

  Drawn(std::size_t n, std::int32_t n_top)
      : tokens(n), ranks(n), top_ids(n * static_cast<std::size_t>(n_top)), logprobs(n), top_logprobs(top_ids.size()) {}
  SampleResult result() { return {tokens.data(), logprobs.data(), ranks.data(), top_ids.data(), top_logprobs.data()}; }
};

std::vector<float> random_logits(std::size_t n, unsigned seed, float spread) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal(0.0f, spread);
  std::vector<float> logits(n);
  for (float& x : logits) x = normal(generator);
  return logits;
}

Drawn draw(const std::vector<float>& logits, std::int32_t vocab_size, const SamplingParams& params, int n_threads,
           std::int32_t n_top = 0) {
  Drawn drawn(params.rows.size, n_top);
  ThreadPool pool(n_threads);
  const LogitsView view{logits.data(), static_cast<std::int32_t>(logits.size()) / vocab_size, vocab_size};
  Sampler(n_threads).sample(view, params, n_top, select_cpu_kernels("auto"), pool, drawn.result());
  return drawn;
}

TEST(philox_gives_the_known_answers_of_random123) {
  const auto zero = philox4x32({0, 0, 0, 0}, {0, 0});
  CHECK(zero == std::array<std::uint32_t, 4>{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8});
  const std::uint32_t ones = 0xffffffff;
  const auto all = philox4x32({ones, ones, ones, ones}, {ones, ones});
  CHECK(all == std::array<std::uint32_t, 4>{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd});
  const auto pi = philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0});
  CHECK(pi == std::array<std::uint32_t, 4>{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1});
}

TEST(uniform_draws_stay_below_one_and_use_all_of_seed_and_position) {
  double sum = 0.0;
  for (int i = 0; i < 200000; ++i) {
    const double u = philox_uniform(7, i);
    CHECK(u >= 0.0 && u < 1.0);
    sum += u;
  }
  CHECK(std::abs(sum / 200000 - 0.5) < 0.003);
  CHECK(philox_uniform(1, 2) != philox_uniform(2, 1));
  CHECK(philox_uniform(std::uint64_t{1} << 40, 0) != philox_uniform(0, 0));
  CHECK(philox_uniform(0, std::int64_t{1} << 40) != philox_uniform(0, 0));
}

void check_top(const std::vector<float>& x, std::int32_t m) {
  std::vector<Candidate> sorted;
  for (std::size_t i = 0; i < x.size(); ++i) sorted.push_back({x[i], static_cast<std::int32_t>(i)});
  std::sort(sorted.begin(), sorted.end(), comes_before);
  TopCandidates top;
  top.reset(x.data(), static_cast<std::int32_t>(x.size()));
  const std::vector<Candidate>& found = top.gather_sorted(m);
  CHECK_EQ(found.size(), std::min(x.size(), static_cast<std::size_t>(m)));
  for (std::size_t i = 0; i < found.size(); ++i) {
    CHECK_EQ(found[i].id, sorted[i].id);
    CHECK_EQ(found[i].value, sorted[i].value);
  }
}

TEST(top_candidates_are_those_of_a_full_sort) {
  for (std::size_t n : {1, 3, 16, 63, 64, 65, 127, 1003, 8193}) {
    for (std::int32_t m : {0, 1, 2, 17, 64, 200, 9000}) check_top(random_logits(n, 3, 2.0f), m);
  }
}

TEST(top_candidates_put_lower_ids_first_among_equals) {
  std::vector<float> equal(1003, 1.5f);
  check_top(equal, 5);
  check_top(equal, 700);
  std::vector<float> rounded = random_logits(1003, 4, 2.0f);
  for (float& x : rounded) x = std::round(x);
  check_top(rounded, 40);
}

TEST(top_candidates_include_minus_infinity_last) {
  std::vector<float> x(200, -std::numeric_limits<float>::infinity());
  x[150] = 1.0f;
  x[3] = -2.0f;
  check_top(x, 2);
  check_top(x, 5);
}

TEST(a_draw_does_not_depend_on_the_number_of_threads_or_on_its_place_in_the_batch) {
  const std::int32_t vocab_size = 8193;
  const std::vector<float> logits = random_logits(vocab_size * 3, 11, 3.0f);
  Params params(60);
  for (std::size_t i = 0; i < 60; ++i) {
    params.rows[i] = static_cast<std::int32_t>(i % 3);
    params.seed[i] = i % 5;
    params.position[i] = static_cast<std::int64_t>(i % 4);
    params.temperature[i] = 1.5f;
  }
  const Drawn alone = draw(logits, vocab_size, params.view(), 1, 3);
  const Drawn together = draw(logits, vocab_size, params.view(), 4, 3);
  CHECK(alone.tokens == together.tokens);
  CHECK(alone.logprobs == together.logprobs);
  CHECK(alone.top_ids == together.top_ids);
  for (std::size_t i = 0; i < 60; ++i) {
    Params one(1);
    one.rows[0] = params.rows[i];
    one.seed[0] = params.seed[i];
    one.position[0] = params.position[i];
    one.temperature[0] = params.temperature[i];
    CHECK_EQ(draw(logits, vocab_size, one.view(), 1).tokens[0], alone.tokens[i]);
  }
}

struct Continued {
  std::vector<std::int32_t> tokens, ranks;
  std::vector<float> scores, keys, logprobs;

  Continued(const std::vector<float>& logits, std::int32_t vocab_size, const SamplingParams& params, std::int32_t n,
            int n_threads)
      : tokens(params.rows.size * static_cast<std::size_t>(n)),
        ranks(tokens.size()),
        scores(tokens.size()),
        keys(tokens.size()),
        logprobs(tokens.size()) {
    ContinuationResult result;
    result.n = n;
    result.tokens = tokens.data();
    result.scores = scores.data();
    result.keys = keys.data();
    result.logprobs = logprobs.data();
    result.ranks = ranks.data();
    ThreadPool pool(n_threads);
    const LogitsView view{logits.data(), static_cast<std::int32_t>(logits.size()) / vocab_size, vocab_size};
    Sampler(n_threads).continuations(view, params, select_cpu_kernels("auto"), pool, result);
  }
};

TEST(continuations_without_a_temperature_are_the_likeliest_tokens) {
  constexpr std::int32_t kVocab = 1003, kN = 17;
  const std::vector<float> logits = random_logits(2 * kVocab, 5, 2.0f);
  Params params(2);
  params.rows = {1, 0};
  params.temperature = {0.0f, 0.0f};
  const Continued found(logits, kVocab, params.view(), kN, 2);
  const Drawn drawn = draw(logits, kVocab, params.view(), 1, kN);
  CHECK(found.tokens == drawn.top_ids);
  CHECK(found.logprobs == drawn.top_logprobs);
  CHECK(found.scores == found.logprobs);
  CHECK(found.keys == found.scores);
  for (std::int32_t i = 0; i < kN; ++i) CHECK_EQ(found.ranks[static_cast<std::size_t>(i)], i + 1);
}

TEST(continuations_are_the_tokens_that_draws_may_give_and_do_not_depend_on_threads) {
  constexpr std::int32_t kVocab = 500;
  const std::vector<float> logits = random_logits(kVocab, 6, 3.0f);
  for (const auto& [top_k, top_p, min_p] : {std::tuple{0, 0.7f, 0.0f}, {9, 1.0f, 0.0f}, {30, 0.8f, 0.02f}}) {
    Params params(400);
    for (std::size_t i = 0; i < 400; ++i) {
      params.top_k[i] = top_k;
      params.top_p[i] = top_p;
      params.min_p[i] = min_p;
      params.temperature[i] = 1.5f;
      params.position[i] = static_cast<std::int64_t>(i);
    }
    const Continued found(logits, kVocab, params.view(), kVocab, 1);
    const Continued again(logits, kVocab, params.view(), kVocab, 3);
    CHECK(found.tokens == again.tokens);
    std::vector<std::int32_t> kept;
    for (std::size_t i = 0; i < kVocab && found.tokens[i] >= 0; ++i) {
      kept.push_back(found.tokens[i]);
      CHECK(i == 0 || found.keys[i] <= found.keys[i - 1]);
      CHECK(std::abs(found.scores[i] - found.logprobs[i] / 1.5f) < 1e-5f);
    }
    if (top_k == 9) CHECK_EQ(kept.size(), 9u);
    CHECK(kept.size() > 1 && kept.size() < 400);
    for (const std::int32_t token : draw(logits, kVocab, params.view(), 1).tokens) {
      CHECK(std::find(kept.begin(), kept.end(), token) != kept.end());
    }
  }
}

TEST(a_flat_row_reaches_its_last_token) {
  const std::vector<float> flat(2000, 0.25f);
  Params params(4000);
  for (std::size_t i = 0; i < 4000; ++i) params.seed[i] = i;
  const Drawn drawn = draw(flat, 2000, params.view(), 2);
  CHECK_EQ(*std::min_element(drawn.tokens.begin(), drawn.tokens.end()) < 10, true);
  CHECK_EQ(*std::max_element(drawn.tokens.begin(), drawn.tokens.end()) > 1990, true);
}

TEST(a_mask_of_bits_allows_what_a_list_of_the_same_tokens_allows) {
  const std::int32_t vocab_size = 8193;  // the last word of a mask has one token, and words behind it none
  const std::size_t n = 40, n_words = 260;
  const std::vector<float> logits = random_logits(static_cast<std::size_t>(vocab_size) * 3, 5, 3.0f);
  std::mt19937 generator(6);
  Params params(n);
  std::vector<std::int64_t> offsets = {0};
  std::vector<std::int32_t> ids, of_draw(n, -1);
  std::vector<std::uint32_t> words(n / 2 * n_words, 0);
  for (std::size_t i = 0; i < n; ++i) {
    params.rows[i] = static_cast<std::int32_t>(i % 3);
    params.seed[i] = i;
    params.temperature[i] = i % 4 == 0 ? 0.0f : 1.5f;
    if (i % 2 == 0) {  // the others have no mask
      of_draw[i] = static_cast<std::int32_t>(n / 2 - 1 - i / 2);
      std::uint32_t* const mask = words.data() + static_cast<std::size_t>(of_draw[i]) * n_words;
      const std::int32_t n_allowed = i % 4 == 0 ? 3 : 5000;
      for (std::int32_t j = 0; j < n_allowed; ++j) {
        const std::int32_t id = j == 0 ? vocab_size - 1 : static_cast<std::int32_t>(generator() % 8193u);
        ids.push_back(id);
        mask[id / 32] |= std::uint32_t{1} << id % 32;
      }
      mask[n_words - 1] = ~std::uint32_t{0};
    }
    offsets.push_back(static_cast<std::int64_t>(ids.size()));
  }
  SamplingParams listed = params.view(), masked = params.view();
  listed.allowed = {offsets, ids};
  masked.masks = {of_draw, words, static_cast<std::int32_t>(n_words)};
  const Drawn expected = draw(logits, vocab_size, listed, 2, 2), drawn = draw(logits, vocab_size, masked, 2, 2);
  CHECK(drawn.tokens == expected.tokens);
  CHECK(drawn.logprobs == expected.logprobs);
  CHECK(drawn.top_ids == expected.top_ids);
  CHECK(drawn.tokens != draw(logits, vocab_size, params.view(), 2, 2).tokens);

  of_draw[0] = static_cast<std::int32_t>(n / 2);
  CHECK_THROWS(std::invalid_argument, "mask", draw(logits, vocab_size, masked, 1, 0));
  of_draw[0] = -1;
  masked.masks.n_words = 256;
  CHECK_THROWS(std::invalid_argument, "mask", draw(logits, vocab_size, masked, 1, 0));
}

TEST(a_mask_without_a_token_leaves_none) {
  const std::vector<float> logits(64, 0.5f);
  Params params(1);
  SamplingParams masked = params.view();
  const std::vector<std::int32_t> of_draw = {0};
  const std::vector<std::uint32_t> words = {0, 0};
  masked.masks = {of_draw, words, 2};
  CHECK_EQ(draw(logits, 64, masked, 1, 0).tokens[0], kNoTokenLeft);
}

TEST(a_row_that_is_not_finite_and_a_draw_with_nothing_left_are_told_apart) {
  const float infinity = std::numeric_limits<float>::infinity();
  std::vector<float> logits(4 * 3, 0.5f);
  logits[0] = std::numeric_limits<float>::quiet_NaN();
  logits[3] = infinity;
  std::fill_n(logits.begin() + 6, 3, -infinity);
  Params params(4);
  params.rows = {0, 1, 2, 3};
  const std::vector<std::int64_t> offsets = {0, 3, 6, 9, 12};
  const std::vector<std::int32_t> all = {0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2};
  SamplingParams banned = params.view();
  banned.banned = {offsets, all};
  const Drawn drawn = draw(logits, 3, banned, 1, 1);
  CHECK((drawn.tokens == std::vector<std::int32_t>{kNotFinite, kNotFinite, kNotFinite, kNoTokenLeft}));
  for (std::size_t i = 0; i < 4; ++i) {
    CHECK(std::isnan(drawn.logprobs[i]));
    CHECK_EQ(drawn.ranks[i], 0);
  }
  CHECK_EQ(drawn.top_ids[2], -1);
  CHECK_EQ(drawn.top_ids[3], 0);
}

}  // namespace
