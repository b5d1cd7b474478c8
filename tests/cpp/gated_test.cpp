// Activations of rows on the host machine against their formulas in double: gated and not, every dtype, rows of any
// length at any address, int8 after.
#include <algorithm>
#include <string>

#include "check.h"
#include "gated_launch.h"
#include "row_rig.h"

namespace {

using namespace rig;

struct Case {
  int n_rows, n_cols;
  Activation activation = Activation::silu;
  bool is_gated = true, is_quantized = false;
  Dtype x = Dtype::bf16, out = Dtype::bf16;
  int padding = 8, offset = 0;
  float spread = 2.0f;
};

double formula(double x, Activation activation) {
  switch (activation) {
    case Activation::silu:
      return x / (1 + std::exp(-x));
    case Activation::gelu:
      return x * 0.5 * std::erfc(-x / std::sqrt(2.0));
    case Activation::gelu_tanh:
      return x / (1 + std::exp(-2 * std::sqrt(2 / std::acos(-1.0)) * (x + 0.044715 * x * x * x)));
    case Activation::relu:
      return std::max(x, 0.0);
    case Activation::identity:
      break;
  }
  return x;
}

void check_case(const Case& c, const std::string& name) {
  Rows x(c.n_rows, c.is_gated ? 2 * c.n_cols : c.n_cols, c.x, c.padding, c.offset),
      out(c.n_rows, c.n_cols, c.out, c.padding, c.offset);
  Int8Rows quantized(c.n_rows, c.n_cols, c.padding);
  x.fill_normal(1, c.spread);
  x.set(0, 0, -90.0f);
  x.set(c.n_rows - 1, c.n_cols - 1, 90.0f);
  GatedLaunch l;
  l.x = x.tensor();
  l.is_gated = c.is_gated;
  l.activation = c.activation;
  if (c.is_quantized) {
    l.quantized = quantized.tensor();
  } else {
    l.out = out.out();
  }
  l.n_rows = c.n_rows;
  l.n_cols = c.n_cols;
  gated(l, nullptr);

  const auto want = [&](int row, int i) {
    return formula(x.get(row, i), c.activation) * (c.is_gated ? x.get(row, c.n_cols + i) : 1.0f);
  };
  for (int row = 0; row < c.n_rows; ++row) {
    if (c.is_quantized) {
      if (!is_quantized(quantized, row, 1e-6, want)) check::fail(__FILE__, __LINE__, name, ": row ", row, " as int8");
      continue;
    }
    for (int i = 0; i < c.n_cols; ++i) {
      const double got = out.get(row, i);
      // Where 1 + erf and 1 + tanh cancel, what is left is small and its error one of 1.
      const double up = c.is_gated ? std::abs(x.get(row, c.n_cols + i)) : 1.0;
      const double cancelled = 2e-7 * std::abs(x.get(row, i)) * up;
      if (!(std::abs(got - want(row, i)) <= (out.rounding() + 1e-6) * std::abs(want(row, i)) + cancelled + 1e-7)) {
        check::fail(__FILE__, __LINE__, name, ": row ", row, ", column ", i, ": got ", got, ", want ", want(row, i));
      }
    }
  }
  CHECK(out.padding_is_whole());
}

const Activation kActivations[] = {Activation::silu, Activation::gelu, Activation::gelu_tanh, Activation::relu,
                                   Activation::identity};

TEST(every_activation_gated_and_alone_in_every_dtype) {
  for (const Activation activation : kActivations) {
    for (int bits = 0; bits < 16; ++bits) {
      const Dtype half = bits & 8 ? Dtype::f16 : Dtype::bf16;
      Case c{3, 70, activation};
      c.is_gated = (bits & 1) != 0;
      c.x = bits & 2 ? half : Dtype::f32;
      c.out = bits & 4 ? half : Dtype::f32;
      check_case(c, concat("activation ", static_cast<int>(activation), ", variant ", bits));
    }
  }
}

TEST(rows_of_any_length_at_any_address) {
  for (const int n_cols : {1, 3, 8, 31, 33, 127, 2048, 2049, 4200}) {
    for (const int offset : {0, 1, 8}) {
      Case c{2, n_cols};
      c.offset = offset;
      c.padding = offset == 0 ? 8 : 3;
      check_case(c, concat("rows of ", n_cols, ", offset ", offset));
    }
  }
}

TEST(the_result_may_take_the_place_of_the_gate) {
  for (const int n_cols : {16, 67, 4200}) {
    Rows x(3, 2 * n_cols, Dtype::bf16, 8), out(3, n_cols, Dtype::bf16, 8);
    x.fill_normal(1, 2.0f);
    GatedLaunch l;
    l.x = x.tensor();
    l.out = out.out();
    l.n_rows = 3;
    l.n_cols = n_cols;
    gated(l, nullptr);
    l.out = x.out();
    gated(l, nullptr);
    for (int row = 0; row < 3; ++row) {
      for (int i = 0; i < n_cols; ++i) CHECK_EQ(x.get(row, i), out.get(row, i));
    }
  }
}

TEST(the_result_may_be_int8_with_a_scale_a_row) {
  for (const Activation activation : kActivations) {
    for (const int n_cols : {1, 64, 511, 520, 5000}) {
      Case c{5, n_cols, activation};
      c.is_quantized = true;
      c.is_gated = n_cols != 64;
      c.padding = n_cols == 520 ? 3 : 8;
      check_case(c, concat("int8 rows of ", n_cols));
    }
  }
}

TEST(no_order_of_threads_changes_an_activation) {
  for (const Order& order : {Order{Order::Kind::descending, 0}, Order{Order::Kind::shuffled, 5}}) {
    set_host_order(order);
    for (const int n_cols : {100, 1500}) {
      Case c{5, n_cols};
      c.is_quantized = true;
      check_case(c, concat("shuffled, rows of ", n_cols));
    }
    set_host_order({});
  }
}

TEST(what_no_kernel_takes_is_refused) {
  Rows x(1, 16, Dtype::bf16, 0), out(1, 8, Dtype::f16, 0);
  GatedLaunch l;
  l.x = x.tensor();
  l.n_cols = 8;
  CHECK_THROWS(std::invalid_argument, "one place to go, out or quantized, got neither", gated(l, nullptr));
  l.out = out.out();
  CHECK_THROWS(std::invalid_argument, "out must be float32 or bfloat16 like x, got float16", gated(l, nullptr));
  l.n_rows = -1;
  CHECK_THROWS(std::invalid_argument, "n_rows must be 0 to", gated(l, nullptr));
}

}  // namespace
