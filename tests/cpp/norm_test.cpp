// RMS norm and layer norm on the host machine against their formulas in double: every dtype of every array, rows of any
// length at any address, the residual before, int8 after.
#include <algorithm>
#include <string>

#include "check.h"
#include "norm_launch.h"
#include "row_rig.h"

namespace {

using namespace rig;

struct Case {
  int n_rows, n_cols;
  Dtype x = Dtype::bf16, residual = Dtype::f32, weight = Dtype::bf16, out = Dtype::bf16;
  bool has_residual = false, has_bias = false, is_quantized = false, subtracts_mean = false;
  int padding = 8, offset = 0;
  float spread = 1.0f;
};

void check_case(const Case& c, const std::string& name) {
  Rows x(c.n_rows, c.n_cols, c.x, c.padding, c.offset), residual(c.n_rows, c.n_cols, c.residual, c.padding, c.offset),
      weight(1, c.n_cols, c.weight, 0, c.offset), bias(1, c.n_cols, c.weight, 0, c.offset),
      out(c.n_rows, c.n_cols, c.out, c.padding, c.offset);
  Int8Rows quantized(c.n_rows, c.n_cols, c.padding);
  x.fill_normal(1, c.spread);
  residual.fill_normal(2, c.spread);
  weight.fill_normal(3, 1.0f);
  bias.fill_normal(4, 1.0f);
  const Rows before = residual;

  NormLaunch l;
  l.x = x.tensor();
  if (c.has_residual) l.residual = residual.out();
  l.weight = weight.tensor();
  if (c.has_bias) l.bias = bias.tensor();
  if (c.is_quantized) {
    l.quantized = quantized.tensor();
  } else {
    l.out = out.out();
  }
  l.n_rows = c.n_rows;
  l.n_cols = c.n_cols;
  l.eps = 1e-3f;
  if (c.subtracts_mean) {
    layer_norm(l, nullptr);
  } else {
    rms_norm(l, nullptr);
  }

  for (int row = 0; row < c.n_rows; ++row) {
    std::vector<double> v(index(c.n_cols));
    double mean = 0, square = 0;
    for (int i = 0; i < c.n_cols; ++i) {
      double& value = v[index(i)];
      value = x.get(row, i);
      if (c.has_residual) {
        value = residual.rounded(x.get(row, i) + before.get(row, i));
        CHECK_EQ(residual.get(row, i), static_cast<float>(value));
      }
      mean += c.subtracts_mean ? value / c.n_cols : 0.0;
    }
    for (const double value : v) square += (value - mean) * (value - mean) / c.n_cols;
    const auto want = [&](int, int i) {
      return (v[index(i)] - mean) / std::sqrt(square + 1e-3) * weight.get(0, i) + (c.has_bias ? bias.get(0, i) : 0.0f);
    };
    if (c.is_quantized) {
      if (!is_quantized(quantized, row, 2e-6, want)) check::fail(__FILE__, __LINE__, name, ": row ", row, " as int8");
      continue;
    }
    for (int i = 0; i < c.n_cols; ++i) {
      const double got = out.get(row, i);
      if (!(std::abs(got - want(row, i)) <= (out.rounding() + 2e-6) * std::abs(want(row, i)) + 4e-6)) {
        check::fail(__FILE__, __LINE__, name, ": row ", row, ", column ", i, ": got ", got, ", want ", want(row, i));
      }
    }
  }
  CHECK(out.padding_is_whole() && residual.padding_is_whole());
}

const Dtype kHalves[] = {Dtype::bf16, Dtype::f16};

TEST(rows_of_any_length_are_normed) {
  for (const int n_cols : {1, 3, 8, 31, 33, 127, 128, 512, 513, 1000, 4096, 4104}) {
    for (const bool subtracts_mean : {false, true}) {
      Case c{3, n_cols};
      c.subtracts_mean = subtracts_mean;
      c.has_residual = true;
      c.has_bias = subtracts_mean;
      check_case(c, concat("rows of ", n_cols));
    }
  }
}

TEST(every_array_is_float32_or_of_the_models_type) {
  for (const Dtype half : kHalves) {
    for (int bits = 0; bits < 64; ++bits) {
      Case c{2, bits % 2 == 0 ? 40 : 37};
      c.x = bits & 1 ? half : Dtype::f32;
      c.residual = bits & 2 ? half : Dtype::f32;
      c.weight = bits & 4 ? half : Dtype::f32;
      c.out = bits & 8 ? half : Dtype::f32;
      c.has_residual = (bits & 16) != 0;
      c.subtracts_mean = c.has_bias = (bits & 32) != 0;
      check_case(c, concat("dtypes ", bits, " with ", dtype_name(half)));
    }
  }
}

TEST(rows_need_not_be_aligned) {
  for (const int offset : {1, 3, 8}) {
    for (const int padding : {0, 3}) {
      Case c{5, 520};
      c.offset = offset;
      c.padding = padding;
      c.has_residual = true;
      check_case(c, concat("offset ", offset, ", padding ", padding));
    }
  }
}

TEST(the_result_may_be_int8_with_a_scale_a_row) {
  for (const int n_cols : {1, 31, 64, 600, 3000}) {
    for (const int padding : {0, 5, 8}) {
      Case c{3, n_cols};
      c.is_quantized = c.has_residual = true;
      c.padding = padding;
      check_case(c, concat("int8 rows of ", n_cols));
    }
  }
}

TEST(a_row_of_zeros_has_scale_one_and_one_that_is_not_finite_has_none) {
  // Row 3 becomes infinite where its largest value meets the weight.
  Rows x(4, 40, Dtype::f32, 0), weight(1, 40, Dtype::f32, 0);
  x.fill_normal(1, 1.0f);
  weight.fill_normal(2, 1.0f);
  for (int i = 0; i < 40; ++i) x.set(1, i, 0.0f);
  x.set(2, 39, std::numeric_limits<float>::quiet_NaN());
  x.set(0, 11, 0.0f);
  x.set(3, 11, 1e4f);
  weight.set(0, 11, std::numeric_limits<float>::max());
  Int8Rows quantized(4, 40, 0);
  NormLaunch l;
  l.x = x.tensor();
  l.weight = weight.tensor();
  l.quantized = quantized.tensor();
  l.n_rows = 4;
  l.n_cols = 40;
  l.eps = 1e-6f;
  rms_norm(l, nullptr);
  CHECK_EQ(quantized.scale[1], 1.0f);
  for (int i = 0; i < 40; ++i) CHECK_EQ(static_cast<int>(quantized.get(1, i)), 0);
  CHECK(quantized.scale[0] > 0.0f && std::isfinite(quantized.scale[0]));
  CHECK(std::isnan(quantized.scale[2]));
  CHECK(std::isnan(quantized.scale[3]));
}

TEST(large_values_do_not_hide_the_mean_from_a_layer_norm) {
  Rows x(1, 600, Dtype::f32, 0), weight(1, 600, Dtype::f32, 0), out(1, 600, Dtype::f32, 0);
  for (int i = 0; i < 600; ++i) {
    x.set(0, i, 4096.0f + (i % 2 == 0 ? 0.5f : -0.5f));
    weight.set(0, i, 1.0f);
  }
  NormLaunch l;
  l.x = x.tensor();
  l.weight = weight.tensor();
  l.out = out.out();
  l.n_rows = 1;
  l.n_cols = 600;
  layer_norm(l, nullptr);
  for (int i = 0; i < 600; ++i) CHECK(std::abs(out.get(0, i) - (i % 2 == 0 ? 1.0f : -1.0f)) < 1e-5f);
}

TEST(no_order_of_threads_changes_a_norm) {
  for (const Order& order : {Order{Order::Kind::descending, 0}, Order{Order::Kind::shuffled, 5}}) {
    set_host_order(order);
    for (const int n_cols : {100, 2000}) {
      Case c{5, n_cols};
      c.has_residual = c.is_quantized = c.subtracts_mean = c.has_bias = true;
      check_case(c, concat("shuffled, rows of ", n_cols));
    }
    set_host_order({});
  }
}

TEST(no_rows_are_no_work_and_what_no_kernel_takes_is_refused) {
  Rows x(1, 8, Dtype::bf16, 0), weight(1, 8, Dtype::f16, 0);
  NormLaunch l;
  l.x = x.tensor();
  l.weight = weight.tensor();
  l.n_cols = 8;
  CHECK_THROWS(std::invalid_argument, "[rms_norm] the result must have one place to go", rms_norm(l, nullptr));
  l.out = x.out();
  CHECK_THROWS(std::invalid_argument, "[layer_norm] weight must be float32 or bfloat16 like x, got float16",
               layer_norm(l, nullptr));
  l.weight.dtype = Dtype::s8;
  CHECK_THROWS(std::invalid_argument, "weight must be float32, bfloat16 or float16, got int8", rms_norm(l, nullptr));
  l.weight.dtype = Dtype::f32;
  rms_norm(l, nullptr);
  l.n_cols = 60000;
  CHECK_THROWS(std::invalid_argument, "n_cols must be 1 to", rms_norm(l, nullptr));
}

}  // namespace
