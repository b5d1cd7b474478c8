// Every method of the study gives what the formula gives, in any order of threads.
#include <algorithm>
#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "check.h"
#include "study/study_launch.h"

namespace {

using namespace llm_decoder;
using namespace llm_decoder::gpu;
using namespace llm_decoder::gpu::study;

constexpr const char* kNames[] = {"naive",          "flash_attention_1", "flash_attention_2",
                                  "flash_decoding", "flash_decoding_pp", "paged_attention"};

struct Shape {
  int n_batch, n_queries, n_keys, n_heads, n_kv_heads, head_dim, n_splits;
};

struct Problem {
  explicit Problem(const Shape& s) : shape(s) {
    std::mt19937_64 random(7);
    std::normal_distribution<float> normal;
    const auto fill = [&](std::vector<Bf16>& x, std::int64_t n) {
      x.resize(static_cast<std::size_t>(n));
      for (Bf16& value : x) value = from_float<Bf16>(normal(random));
    };
    fill(q, std::int64_t{s.n_batch} * s.n_queries * s.n_heads * s.head_dim);
    fill(k, std::int64_t{s.n_batch} * s.n_keys * s.n_kv_heads * s.head_dim);
    fill(v, std::int64_t{s.n_batch} * s.n_keys * s.n_kv_heads * s.head_dim);
    out.resize(q.size());
    scatter_pages(random);
  }

  Shape shape;
  std::vector<Bf16> q, k, v, k_pages, v_pages, out;
  std::vector<int> block_table;
  static constexpr int kPageSize = 16;

  void scatter_pages(std::mt19937_64& random) {
    const int per_sequence = (shape.n_keys + kPageSize - 1) / kPageSize, n_pages = shape.n_batch * per_sequence;
    block_table.resize(static_cast<std::size_t>(n_pages));
    for (int i = 0; i < n_pages; ++i) block_table[static_cast<std::size_t>(i)] = i;
    std::shuffle(block_table.begin(), block_table.end(), random);
    const auto width = static_cast<std::size_t>(shape.n_kv_heads * shape.head_dim);
    k_pages.assign(static_cast<std::size_t>(n_pages * kPageSize) * width, Bf16{0x7fff});
    v_pages = k_pages;
    for (int b = 0; b < shape.n_batch; ++b) {
      for (int key = 0; key < shape.n_keys; ++key) {
        const int page = block_table[static_cast<std::size_t>(b * per_sequence + key / kPageSize)];
        const auto from = static_cast<std::size_t>(b * shape.n_keys + key) * width;
        const auto to = static_cast<std::size_t>(page * kPageSize + key % kPageSize) * width;
        std::copy_n(&k[from], width, &k_pages[to]);
        std::copy_n(&v[from], width, &v_pages[to]);
      }
    }
  }

  void run(const char* name, float unified_max = 0.0f) {
    const Method method = method_named(name);
    StudyArgs a;
    const bool is_paged = method == Method::paged_attention;
    a.q = q.data();
    a.k = is_paged ? k_pages.data() : k.data();
    a.v = is_paged ? v_pages.data() : v.data();
    a.out = out.data();
    a.n_batch = shape.n_batch;
    a.n_queries = shape.n_queries;
    a.n_keys = shape.n_keys;
    a.n_heads = shape.n_heads;
    a.n_kv_heads = shape.n_kv_heads;
    a.head_dim = shape.head_dim;
    a.scale = 1.0f / std::sqrt(static_cast<float>(shape.head_dim));
    a.block_table = block_table.data();
    a.page_size = kPageSize;
    a.unified_max = unified_max;
    const bool is_split = std::string(name).find("decoding") != std::string::npos || is_paged;
    a.n_splits = is_split ? shape.n_splits : 1;
    const ScratchSizes sizes = scratch_sizes(method, a);
    const float nan = std::nanf("");
    std::vector<float> scores(sizes.n_scores, nan), maxima(sizes.n_states, nan), sums(sizes.n_states, nan);
    std::vector<float> states(sizes.n_states * static_cast<std::size_t>(shape.head_dim), nan);
    std::vector<int> wrong(sizes.n_wrong_flags, 0);
    a.scores = scores.data();
    a.states = states.data();
    a.state_max = maxima.data();
    a.state_sum = sums.data();
    a.is_wrong = wrong.data();
    std::fill(out.begin(), out.end(), Bf16{0x7fff});
    run_method(method, a, nullptr);
    n_wrong = std::count(wrong.begin(), wrong.end(), 1);
  }
  std::ptrdiff_t n_wrong = 0;

  void check(const std::string& name) const {
    const int group = shape.n_heads / shape.n_kv_heads;
    std::vector<double> logits, want(static_cast<std::size_t>(shape.head_dim));
    for (int row = 0; row < shape.n_batch * shape.n_queries * shape.n_heads; ++row) {
      const int head = row % shape.n_heads, query = row / shape.n_heads % shape.n_queries;
      const int batch = row / shape.n_heads / shape.n_queries;
      const auto at = [&](int key, int d) {
        return static_cast<std::size_t>(
            ((batch * shape.n_keys + key) * shape.n_kv_heads + head / group) * shape.head_dim + d);
      };
      logits.assign(static_cast<std::size_t>(shape.n_keys - shape.n_queries + query + 1), 0.0);
      double largest = -1e300, sum = 0;
      for (std::size_t key = 0; key < logits.size(); ++key) {
        for (int d = 0; d < shape.head_dim; ++d) {
          logits[key] += double{to_float(q[static_cast<std::size_t>(row * shape.head_dim + d)])} *
                         to_float(k[at(static_cast<int>(key), d)]);
        }
        logits[key] /= std::sqrt(static_cast<double>(shape.head_dim));
        largest = std::max(largest, logits[key]);
      }
      std::fill(want.begin(), want.end(), 0.0);
      for (std::size_t key = 0; key < logits.size(); ++key) {
        const double p = std::exp(logits[key] - largest);
        sum += p;
        for (int d = 0; d < shape.head_dim; ++d)
          want[static_cast<std::size_t>(d)] += p * to_float(v[at(static_cast<int>(key), d)]);
      }
      for (int d = 0; d < shape.head_dim; ++d) {
        const double got = to_float(out[static_cast<std::size_t>(row * shape.head_dim + d)]);
        const double expected = want[static_cast<std::size_t>(d)] / sum;
        if (!(std::abs(got - expected) <= 1.0 / 256 * (0.05 + std::abs(expected)))) {
          check::fail(__FILE__, __LINE__, name, ": row ", row, ", channel ", d, ": got ", got, ", want ", expected);
        }
      }
    }
  }
};

TEST(every_method_gives_what_the_formula_gives) {
  for (const Shape& shape : {Shape{1, 1, 1, 1, 1, 8, 1}, Shape{2, 1, 131, 4, 2, 64, 3}, Shape{1, 19, 19, 2, 2, 40, 2},
                             Shape{2, 5, 77, 6, 2, 128, 5}, Shape{1, 33, 100, 2, 1, 64, 1}}) {
    Problem problem(shape);
    for (const char* name : kNames) {
      problem.run(name);
      problem.check(concat(name, ", ", shape.n_keys, " keys"));
    }
  }
}

TEST(no_order_of_threads_changes_a_result) {
  Problem problem({1, 3, 70, 4, 2, 64, 2});
  for (const Order& order : {Order{Order::Kind::descending, 0}, Order{Order::Kind::shuffled, 3}}) {
    set_host_order(order);
    for (const char* name : kNames) {
      problem.run(name);
      problem.check(name);
    }
  }
  set_host_order({});
}

TEST(a_unified_maximum_that_was_wrong_is_computed_again) {
  Problem problem({1, 2, 90, 4, 2, 64, 2});
  problem.run("flash_decoding_pp");
  CHECK_EQ(problem.n_wrong, 0);
  for (const float guess : {-300.0f, 300.0f}) {
    problem.run("flash_decoding_pp", guess);
    CHECK_EQ(problem.n_wrong, 8);
    problem.check("flash_decoding_pp");
  }
}

TEST(shapes_that_cannot_be_are_refused) {
  StudyArgs a;
  a.n_batch = a.n_queries = a.n_keys = a.n_heads = a.n_kv_heads = 1;
  a.head_dim = 12;
  CHECK_THROWS(std::invalid_argument, "head_dim", run_method(Method::naive, a, nullptr));
  a.head_dim = 8;
  a.n_splits = 2;
  CHECK_THROWS(std::invalid_argument, "does not split", run_method(Method::flash_attention_2, a, nullptr));
  CHECK_THROWS(std::invalid_argument, "block table", run_method(Method::paged_attention, a, nullptr));
  a.n_queries = 2;
  CHECK_THROWS(std::invalid_argument, "every query", run_method(Method::naive, a, nullptr));
  CHECK_THROWS(std::invalid_argument, "flash_decoding_pp", method_named("flash"));
}

}  // namespace
