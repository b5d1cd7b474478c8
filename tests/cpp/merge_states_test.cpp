// The merge of states that several calls found, against the formula in double: every dtype, strides, states of nothing.
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "check.h"
#include "merge_states_launch.h"

namespace {

using namespace llm_decoder;
using namespace llm_decoder::gpu;

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

template <class T>
Dtype dtype_of() {
  if constexpr (std::is_same_v<T, Bf16>) return Dtype::bf16;
  if constexpr (std::is_same_v<T, Fp16>) return Dtype::f16;
  return Dtype::f32;
}

struct Sizes {
  int n_parts, n_tokens, n_heads, head_dim;
  int gap = 0;  // elements between rows that belong to nobody
};

template <class T>
struct Problem {
  explicit Problem(const Sizes& s_) : s(s_), row(static_cast<std::size_t>(s.head_dim + s.gap)) {
    std::mt19937_64 random(3);
    std::normal_distribution<float> normal;
    n_rows = static_cast<std::size_t>(s.n_tokens * s.n_heads);
    for (int part = 0; part < s.n_parts; ++part) {
      parts.emplace_back(n_rows * row, from_float<T>(kNaN));
      lses.emplace_back(n_rows);
      for (std::size_t r = 0; r < n_rows; ++r) {
        // Now and then a part saw nothing for a row, and for the last row none did: its elements may be anything.
        const bool saw_nothing = r + 1 == n_rows || random() % 5 == 0;
        lses.back()[r] = saw_nothing ? -kInf : 3 * normal(random);
        if (saw_nothing) continue;
        for (int d = 0; d < s.head_dim; ++d)
          parts.back()[r * row + static_cast<std::size_t>(d)] = from_float<T>(normal(random));
      }
    }
    out.assign(n_rows * row, from_float<T>(kNaN));
    lse.assign(n_rows, kNaN);
  }

  const Sizes s;
  const std::size_t row;
  std::size_t n_rows = 0;
  std::vector<std::vector<T>> parts;
  std::vector<std::vector<float>> lses;
  std::vector<T> out;
  std::vector<float> lse;

  void run() {
    MergePartsArgs args;
    args.n_parts = s.n_parts;
    for (std::size_t i = 0; i < parts.size(); ++i) {
      args.parts[i] = parts[i].data();
      args.part_head_stride[i] = static_cast<std::int64_t>(row);
      args.part_token_stride[i] = static_cast<std::int64_t>(row) * s.n_heads;
      args.part_lse[i] = lses[i].data();
    }
    args.out = out.data();
    args.out_head_stride = static_cast<std::int64_t>(row);
    args.out_token_stride = static_cast<std::int64_t>(row) * s.n_heads;
    args.lse = lse.data();
    args.n_tokens = s.n_tokens;
    args.n_heads = s.n_heads;
    args.head_dim = s.head_dim;
    merge_parts(dtype_of<T>(), args, nullptr);
  }

  void check(double tolerance) const {
    for (std::size_t r = 0; r < n_rows; ++r) {
      double sum = 0;
      for (const auto& part : lses) sum += std::exp(double{part[r]});
      const double want_lse = sum > 0 ? std::log(sum) : -kInf;
      CHECK(lse[r] == want_lse || std::abs(lse[r] - want_lse) < 1e-5 * (1 + std::abs(want_lse)));
      for (int d = 0; d < s.head_dim + s.gap; ++d) {
        const std::size_t at = r * row + static_cast<std::size_t>(d);
        if (d >= s.head_dim) {
          CHECK(std::isnan(to_float(out[at])));
          continue;
        }
        double want = 0;
        for (std::size_t i = 0; i < parts.size(); ++i) {
          if (lses[i][r] != -kInf) want += std::exp(lses[i][r] - want_lse) * to_float(parts[i][at]);
        }
        CHECK(std::abs(to_float(out[at]) - want) <= tolerance * (1 + std::abs(want)));
      }
    }
  }
};

template <class T>
void check_sizes(const Sizes& sizes, double tolerance) {
  Problem<T> problem(sizes);
  problem.run();
  problem.check(tolerance);
}

TEST(parts_merge_to_the_whole_in_every_dtype) {
  for (const Sizes& sizes :
       {Sizes{1, 1, 1, 8}, Sizes{2, 3, 5, 40}, Sizes{3, 7, 2, 128, 8}, Sizes{kMaxParts, 2, 3, 256}}) {
    check_sizes<float>(sizes, 1e-6);
    check_sizes<Bf16>(sizes, 1.0 / 256);
    check_sizes<Fp16>(sizes, 1.0 / 2048);
  }
}

TEST(no_order_of_threads_changes_a_bit) {
  Problem<float> first({3, 5, 3, 72});
  first.run();
  for (const Order& order : {Order{Order::Kind::descending, 0}, Order{Order::Kind::shuffled, 5}}) {
    set_host_order(order);
    Problem<float> again({3, 5, 3, 72});
    again.run();
    set_host_order({});
    CHECK(again.out == first.out);
  }
}

TEST(a_step_without_tokens_is_nothing_to_do) { check_sizes<float>({2, 0, 4, 64}, 0); }

TEST(no_parts_too_many_and_bytes_are_refused) {
  MergePartsArgs args;
  CHECK_THROWS(std::invalid_argument, "1 to 32 parts, got 0", merge_parts(Dtype::f32, args, nullptr));
  args.n_parts = kMaxParts + 1;
  CHECK_THROWS(std::invalid_argument, "got 33", merge_parts(Dtype::f32, args, nullptr));
  args.n_parts = 1;
  CHECK_THROWS(std::invalid_argument, "must be bfloat16 or float16, got int8", merge_parts(Dtype::s8, args, nullptr));
}

}  // namespace
