// Routing on the host machine, against the formulas in double: softmax and sigmoid, biases, groups, ties, NaN.
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "check.h"
#include "moe_routing_launch.h"

namespace {

using namespace llm_decoder;
using namespace llm_decoder::gpu;

constexpr double kInf = std::numeric_limits<double>::infinity();

struct Case {
  int n_tokens, n_experts, top_k;
  bool is_sigmoid = false, is_normalized = false, has_bias = false;
  float scale = 1.0f;
  int n_groups = 1, top_k_groups = 1, group_best = 1;
};

template <class T>
struct Problem {
  explicit Problem(const Case& c_) : c(c_), stride(c_.n_experts + 3) {
    std::mt19937_64 random(7);
    std::normal_distribution<float> normal;
    // What lies between the rows of logits is NaN.
    logits.assign(static_cast<std::size_t>(c.n_tokens * stride), from_float<T>(std::nanf("")));
    for (int t = 0; t < c.n_tokens; ++t) {
      for (int e = 0; e < c.n_experts; ++e) logit(t, e) = from_float<T>(2 * normal(random));
    }
    for (int e = 0; e < c.n_experts; ++e) bias.push_back(0.1f * normal(random));
    weights.assign(static_cast<std::size_t>(c.n_tokens * c.top_k), std::nanf(""));
    ids.assign(weights.size(), -7);
  }

  const Case c;
  const int stride;
  std::vector<T> logits;
  std::vector<float> bias, weights;
  std::vector<int> ids;

  T& logit(int t, int e) { return logits[static_cast<std::size_t>(t * stride + e)]; }

  MoeRoutingArgs args() {
    MoeRoutingArgs a;
    a.logits = logits.data();
    a.logits_stride = stride;
    if (c.has_bias) a.bias = bias.data();
    a.weights = weights.data();
    a.ids = ids.data();
    a.n_tokens = c.n_tokens;
    a.n_experts = c.n_experts;
    a.top_k = c.top_k;
    a.is_sigmoid = c.is_sigmoid;
    a.is_normalized = c.is_normalized;
    a.scale = c.scale;
    a.n_groups = c.n_groups;
    a.top_k_groups = c.top_k_groups;
    a.group_best = c.group_best;
    return a;
  }

  void run() {
    moe_routing(std::is_same_v<T, float>  ? Dtype::f32
                : std::is_same_v<T, Bf16> ? Dtype::bf16
                                          : Dtype::f16,
                args(), nullptr);
  }

  // Indices of the n largest, the lowest index first among equals.
  static std::vector<int> best(const std::vector<double>& values, int n) {
    std::vector<int> order(values.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) {
      return values[static_cast<std::size_t>(a)] > values[static_cast<std::size_t>(b)];
    });
    order.resize(static_cast<std::size_t>(n));
    return order;
  }

  void check(const std::string& name) {
    const auto n = static_cast<std::size_t>(c.n_experts);
    for (int t = 0; t < c.n_tokens; ++t) {
      std::vector<double> scores(n), choices;
      double sum = 0;
      for (std::size_t e = 0; e < n; ++e) {
        const double x = to_float(logit(t, static_cast<int>(e)));
        scores[e] = std::isnan(x) ? 0.0 : c.is_sigmoid ? 1 / (1 + std::exp(-x)) : std::exp(x);
        sum += scores[e];
      }
      if (!c.is_sigmoid && sum > 0) {
        for (double& x : scores) x /= sum;
      }
      choices = scores;
      if (c.has_bias) {
        for (std::size_t e = 0; e < n; ++e) choices[e] += bias[e];
      }
      const std::size_t group_size = n / static_cast<std::size_t>(c.n_groups);
      std::vector<double> groups;
      for (std::size_t g = 0; g < n; g += group_size) {
        std::vector<double> sorted(choices.begin() + static_cast<std::ptrdiff_t>(g),
                                   choices.begin() + static_cast<std::ptrdiff_t>(g + group_size));
        std::sort(sorted.rbegin(), sorted.rend());
        groups.push_back(c.group_best == 2 ? sorted[0] + sorted[1] : sorted[0]);
      }
      const std::vector<int> kept = best(groups, c.top_k_groups);
      for (std::size_t e = 0; e < n; ++e) {
        if (std::find(kept.begin(), kept.end(), static_cast<int>(e / group_size)) == kept.end()) choices[e] = -kInf;
      }
      const std::vector<int> want = best(choices, c.top_k);
      double chosen = 0;
      for (const int e : want) chosen += scores[static_cast<std::size_t>(e)];
      for (int r = 0; r < c.top_k; ++r) {
        const auto at = static_cast<std::size_t>(t * c.top_k + r);
        const int e = want[static_cast<std::size_t>(r)];
        double weight = scores[static_cast<std::size_t>(e)] * c.scale;
        if (c.is_normalized) weight = chosen > 0 ? weight / chosen : 0.0;
        if (ids[at] != e || !(std::abs(weights[at] - weight) <= 1e-5 * weight + 1e-12)) {
          check::fail(__FILE__, __LINE__, name, ": token ", t, ", choice ", r, ": expert ", ids[at], " with ",
                      weights[at], ", want ", e, " with ", weight);
        }
      }
    }
  }
};

template <class T>
void check_case(const Case& c, const std::string& name) {
  Problem<T> problem(c);
  problem.run();
  problem.check(name);
}

TEST(the_best_experts_by_softmax_or_sigmoid_for_any_number_of_them) {
  for (const int n_experts : {1, 2, 8, 33, 60, 64, 65, 160, 256, 384, 1024}) {
    for (const bool is_sigmoid : {false, true}) {
      Case c{5, n_experts, std::min(n_experts, 8)};
      c.is_sigmoid = is_sigmoid;
      check_case<float>(c, concat("float32, experts ", n_experts));
      check_case<Bf16>(c, concat("bf16, experts ", n_experts));
      check_case<Fp16>(c, concat("fp16, experts ", n_experts));
    }
  }
}

TEST(weights_are_normalised_then_scaled) {
  Case c{9, 64, 6};
  c.scale = 2.5f;
  check_case<float>(c, "scaled");
  c.is_normalized = true;
  check_case<float>(c, "normalised");
  c.is_sigmoid = true;
  check_case<float>(c, "sigmoid, normalised");
  c.top_k = 32;
  check_case<float>(c, "32 choices");
}

TEST(a_bias_chooses_and_does_not_weigh) {
  for (const bool is_sigmoid : {false, true}) {
    Case c{9, 100, 7};
    c.has_bias = true;
    c.is_sigmoid = is_sigmoid;
    check_case<float>(c, "bias");
  }
}

TEST(experts_come_from_the_best_groups_alone) {
  for (const int group_best : {1, 2}) {
    for (const bool has_bias : {false, true}) {
      Case c{6, 256, 8};
      c.is_sigmoid = c.is_normalized = true;
      c.has_bias = has_bias;
      c.group_best = group_best;
      c.n_groups = 8;
      c.top_k_groups = 4;
      check_case<float>(c, "8 groups of 32");
      c.n_experts = 160;
      c.top_k_groups = 3;
      c.is_sigmoid = false;
      check_case<float>(c, "8 groups of 20");
      c.n_experts = 96;
      c.n_groups = 32;
      c.top_k_groups = 5;
      check_case<Bf16>(c, "32 groups of 3");
    }
  }
}

TEST(equal_scores_go_to_the_lowest_expert) {
  Problem<Bf16> problem({3, 70, 9});
  for (int e = 0; e < 70; ++e) {
    problem.logit(0, e) = from_float<Bf16>(0.5f);
    problem.logit(1, e) = from_float<Bf16>(static_cast<float>(e % 3));
    problem.logit(2, e) = from_float<Bf16>(e >= 40 && e < 44 ? 1.0f : 0.0f);
  }
  problem.run();
  problem.check("ties");
  const int want[] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 2, 5, 8, 11, 14, 17, 20, 23, 26, 40, 41, 42, 43, 0, 1, 2, 3, 4};
  for (std::size_t i = 0; i < 27; ++i) CHECK_EQ(problem.ids[i], want[i]);
}

TEST(logits_that_are_no_numbers_or_infinitely_small_still_give_experts) {
  for (const bool is_sigmoid : {false, true}) {
    Case c{3, 10, 4};
    c.is_sigmoid = is_sigmoid;
    c.is_normalized = true;
    Problem<float> problem(c);
    const float inf = std::numeric_limits<float>::infinity();
    for (int e = 0; e < 10; ++e) {
      problem.logit(0, e) = -inf;
      problem.logit(1, e) = e == 6 ? 1.0f : std::nanf("");
      if (e % 2 == 0) problem.logit(2, e) = std::nanf("");
    }
    problem.run();
    problem.check("no numbers");
  }
}

TEST(no_order_of_threads_changes_a_bit) {
  Case c{7, 256, 8};
  c.is_sigmoid = c.is_normalized = c.has_bias = true;
  c.n_groups = 8;
  c.top_k_groups = 4;
  Problem<float> first(c);
  first.run();
  for (const Order& order : {Order{Order::Kind::descending, 0}, Order{Order::Kind::shuffled, 5}}) {
    set_host_order(order);
    Problem<float> again(c);
    again.run();
    set_host_order({});
    CHECK(again.ids == first.ids);
    CHECK(again.weights == first.weights);
  }
}

TEST(what_cannot_be_routed_is_refused) {
  const auto refused = [](const Case& c, const char* part) {
    Problem<float> problem(Case{1, 2048, 1});
    Problem<float> shaped(Case{1, 4, 1});
    MoeRoutingArgs args = problem.args();
    args.n_experts = c.n_experts;
    args.top_k = c.top_k;
    args.n_groups = c.n_groups;
    args.top_k_groups = c.top_k_groups;
    args.group_best = c.group_best;
    CHECK_THROWS(std::invalid_argument, part, moe_routing(Dtype::f32, args, nullptr));
  };
  refused({1, 1025, 1}, "n_experts must be 1 to 1024, got 1025");
  refused({1, 4, 5}, "top_k must be 1 to 32 and at most the 4 experts of 1 groups, got 5");
  refused({1, 64, 33}, "got 33");
  refused({1, 10, 1, false, false, false, 1.0f, 3}, "divide the 10 experts, got 3");
  refused({1, 8, 1, false, false, false, 1.0f, 4, 5}, "top_k_groups must be 1 to n_groups (4), got 5");
  refused({1, 8, 1, false, false, false, 1.0f, 8, 4, 2}, "with groups of 1");
  Problem<float> problem({1, 4, 1});
  CHECK_THROWS(std::invalid_argument, "float32, bfloat16 or float16, got int8",
               moe_routing(Dtype::s8, problem.args(), nullptr));
}

TEST(no_tokens_are_nothing_to_do) {
  Problem<float> problem({0, 4, 1});
  problem.run();
}

}  // namespace
