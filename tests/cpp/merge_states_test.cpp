// States of the same rows into one, against the formula in double: every dtype, in place and out, states that saw
// nothing and hold NaN.
#include "merge_states_launch.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "check.h"
#include "device_memory.h"

namespace {

using namespace llm_decoder;
using namespace llm_decoder::gpu;

constexpr float kInf = std::numeric_limits<float>::infinity(), kNan = std::numeric_limits<float>::quiet_NaN();

template <class T>
Dtype dtype_of() {
  if constexpr (std::is_same_v<T, float>) return Dtype::f32;
  return std::is_same_v<T, Bf16> ? Dtype::bf16 : Dtype::f16;
}

// Half a unit in the last place of the largest of a row.
template <class T>
constexpr double kRounding = std::is_same_v<T, float>  ? 1e-6
                             : std::is_same_v<T, Bf16> ? 1.0 / 256
                                                       : 1.0 / 2048;

// Each row followed by a gap; all NaN at first.
template <class T>
struct Rows {
  Rows(int n_rows, int head_dim) : stride(head_dim + 8), memory(n_rows * stride) {
    std::fill_n(memory.data(), memory.size(), from_float<T>(kNan));
  }
  std::int64_t stride;
  DeviceArray<T> memory;

  T* data() const { return memory.data(); }
  T& at(int row, int channel) const { return data()[row * stride + channel]; }
};

template <class T>
struct Problem {
  Problem(int n_tokens_, int n_heads_, int head_dim_, int n_parts_ = 2)
      : n_tokens(n_tokens_), n_heads(n_heads_), head_dim(head_dim_), n_parts(n_parts_), n_rows(n_tokens_ * n_heads_) {
    std::mt19937_64 random(3);
    std::normal_distribution<float> normal;
    lse.resize(static_cast<std::size_t>(n_parts));
    for (std::size_t i = 0; i < lse.size(); ++i) {
      values.emplace_back(n_rows, head_dim);
      for (int row = 0; row < n_rows; ++row) {
        // Of every four rows one saw nothing in the first state, one in the second, one in none: their values are NaN.
        const bool is_empty = row % 4 == 3 || row % 4 == static_cast<int>(i);
        lse[i].push_back(is_empty ? -kInf : 20.0f + 3.0f * normal(random));
        for (int d = 0; d < head_dim && !is_empty; ++d) values[i].at(row, d) = from_float<T>(normal(random));
      }
    }
    out_lse.assign(lse[0].size(), kNan);
  }

  int n_tokens, n_heads, head_dim, n_parts, n_rows;
  std::vector<Rows<T>> values;
  Rows<T> out{n_rows, head_dim};
  std::vector<std::vector<float>> lse;
  std::vector<float> out_lse;

  MergeStatesLaunch launch() {
    MergeStatesLaunch l;
    l.dtype = dtype_of<T>();
    const std::int64_t stride = out.stride;
    l.args.n_parts = n_parts;
    for (std::size_t i = 0; i < lse.size(); ++i) {
      l.args.parts[i] = {values[i].data(), n_heads * stride, stride, lse[i].data()};
    }
    l.args.out = out.data();
    l.args.out_token_stride = n_heads * stride;
    l.args.out_head_stride = stride;
    l.args.lse = out_lse.data();
    l.args.n_tokens = n_tokens;
    l.args.n_heads = n_heads;
    l.args.head_dim = head_dim;
    return l;
  }

  // `before`: the problem as it was, where merging was in place.
  void check(const Problem& before, const Rows<T>& got, const std::vector<float>& got_lse,
             const std::string& name) const {
    for (int row = 0; row < n_rows; ++row) {
      const auto r = static_cast<std::size_t>(row);
      std::vector<double> weights(lse.size());
      double sum = 0, largest = 0;
      for (std::size_t i = 0; i < lse.size(); ++i) sum += weights[i] = std::exp(double{before.lse[i][r]} - 20);
      std::vector<double> want(static_cast<std::size_t>(head_dim));
      for (int d = 0; d < head_dim; ++d) {
        for (std::size_t i = 0; i < lse.size(); ++i) {
          if (weights[i] > 0) {
            want[static_cast<std::size_t>(d)] += weights[i] / sum * to_float(before.values[i].at(row, d));
          }
        }
        largest = std::max(largest, std::abs(want[static_cast<std::size_t>(d)]));
      }
      for (int d = 0; d < head_dim; ++d) {
        const double x = to_float(got.at(row, d)), w = want[static_cast<std::size_t>(d)];
        if (!(std::abs(x - w) <= (kRounding<T> + 1e-5) * largest)) {
          check::fail(__FILE__, __LINE__, name, ": row ", row, ", channel ", d, ": got ", x, ", want ", w);
        }
      }
      for (int d = head_dim; d < head_dim + 8; ++d) CHECK(std::isnan(to_float(got.at(row, d))));
      const double want_lse = sum > 0 ? 20 + std::log(sum) : -kInf;
      if (!(got_lse[r] == want_lse || std::abs(got_lse[r] - want_lse) <= 1e-5 * std::abs(want_lse))) {
        check::fail(__FILE__, __LINE__, name, ": row ", row, ": log-sum-exp ", got_lse[r], ", want ", want_lse);
      }
    }
  }
};

template <class T>
void check_shapes(const std::string& name) {
  for (const int head_dim : {8, 40, 64, 72, 128, 256}) {
    Problem<T> problem(5, 7, head_dim);
    merge_states(problem.launch(), nullptr);
    problem.check(problem, problem.out, problem.out_lse, concat(name, ", heads of ", head_dim));
  }
}

TEST(two_states_become_what_both_saw) {
  check_shapes<Bf16>("bfloat16");
  check_shapes<Fp16>("float16");
  check_shapes<float>("float32");
}

TEST(any_number_of_states_become_what_all_saw) {
  for (const int n_parts : {1, 3, kMaxParts}) {
    Problem<float> problem(5, 3, 72, n_parts);
    merge_states(problem.launch(), nullptr);
    problem.check(problem, problem.out, problem.out_lse, concat(n_parts, " states"));
  }
}

TEST(a_state_may_be_merged_in_place_whatever_the_order_of_threads) {
  for (const Order& order :
       {Order{}, Order{Order::Kind::descending, 0}, Order{Order::Kind::shuffled, 1}, Order{Order::Kind::shuffled, 2}}) {
    for (std::size_t i = 0; i < 2; ++i) {
      Problem<Bf16> before(9, 3, 128), problem(9, 3, 128);
      MergeStatesLaunch l = problem.launch();
      l.args.out = problem.values[i].data();
      l.args.lse = problem.lse[i].data();
      set_host_order(order);
      merge_states(l, nullptr);
      set_host_order({});
      problem.check(before, problem.values[i], problem.lse[i], "in place");
    }
  }
}

TEST(the_log_sum_exp_is_written_only_where_it_is_asked_for) {
  Problem<float> problem(3, 2, 16), other(3, 2, 16);
  MergeStatesLaunch l = problem.launch();
  l.args.lse = nullptr;
  merge_states(l, nullptr);
  merge_states(other.launch(), nullptr);
  for (const float x : problem.out_lse) CHECK(std::isnan(x));
  problem.check(problem, problem.out, other.out_lse, "no log-sum-exp");
}

TEST(a_log_sum_exp_of_nan_is_not_hidden) {
  Problem<float> problem(1, 1, 16);
  problem.lse[0][0] = kNan;
  merge_states(problem.launch(), nullptr);
  CHECK(std::isnan(problem.out.at(0, 0)));
  CHECK(std::isnan(problem.out_lse[0]));
}

TEST(no_tokens_is_nothing_to_merge) { merge_states({}, nullptr); }

template <class Change>
void refuse(const char* part, const Change& change) {
  Problem<Bf16> problem(2, 2, 64);
  MergeStatesLaunch l = problem.launch();
  change(l);
  CHECK_THROWS(std::invalid_argument, part, merge_states(l, nullptr));
}

TEST(what_no_kernel_was_compiled_for_is_refused) {
  refuse("[merge_states] states and out must be float32, bfloat16 or float16, got fp8",
         [](auto& l) { l.dtype = Dtype::fp8; });
  refuse("head_dim must be a multiple of 8 up to 256, got 100", [](auto& l) { l.args.head_dim = 100; });
  refuse("got 264", [](auto& l) { l.args.head_dim = 264; });
  refuse("got 2000000000 and 2", [](auto& l) { l.args.n_tokens = 2000000000; });
  refuse("got 2 and 0", [](auto& l) { l.args.n_heads = 0; });
  refuse("out must be there", [](auto& l) { l.args.out = nullptr; });
  refuse("there must be 1 to 32 states, got 0", [](auto& l) { l.args.n_parts = 0; });
  refuse("got 33", [](auto& l) { l.args.n_parts = kMaxParts + 1; });
  refuse("the log-sum-exp of a state must be there", [](auto& l) { l.args.parts[1].lse = nullptr; });
  refuse("a state must be aligned to 16",
         [](auto& l) { l.args.parts[1].values = static_cast<const Bf16*>(l.args.parts[1].values) + 4; });
  refuse("strides of a state must be multiples of 8 elements, got 68",
         [](auto& l) { l.args.parts[0].head_stride = 68; });
}

}  // namespace
