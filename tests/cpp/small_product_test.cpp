// Products of few rows on the host machine, against the formula in double: every format and dtype, any size, NaN
// wherever nothing may look, and the same bits whatever the batch; gated ones against gated.h on the same product.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "check.h"
#include "gated_launch.h"
#include "packed_weights_rig.h"
#include "small_product_launch.h"

namespace {

using namespace llm_decoder;
using namespace llm_decoder::gpu;
using namespace rig;

struct Case {
  GpuWeightFormat format;
  int m, n, k;
  int n_multiprocessors = 1;
  bool has_scale = true, has_bias = true, is_gated = false;
};

const float kNan = std::numeric_limits<float>::quiet_NaN();

// All that a product reads and writes, in memory of exactly the right size.
template <class T, class Out>
struct Problem {
  explicit Problem(const Case& c_)
      : c(c_),
        weights(c.format, c.n, c.k, 1),
        a_stride(c.k + 8),
        out_stride(c.n + 3),
        plan(plan_small_product(c.format, c.n, c.k, c.n_multiprocessors)) {
    std::mt19937_64 random(2);
    std::normal_distribution<float> normal;
    a.assign(at((c.m - 1) * a_stride + c.k), from_float<T>(kNan));
    for (int row = 0; row < c.m; ++row) {
      for (int i = 0; i < c.k; ++i) a[at(row * a_stride + i)] = from_float<T>(normal(random));
    }
    for (int n = 0; n < c.n; ++n) {
      scale.push_back(0.01f * (1.0f + std::abs(normal(random))));
      bias.push_back(normal(random));
    }
    counters.assign(static_cast<std::size_t>(small_product_counters(c.n)), 0);
  }

  const Case c;
  PackedWeights<T> weights;
  const int a_stride, out_stride;
  SmallProductPlan plan;
  std::vector<T> a;
  std::vector<float> scale, bias;
  std::vector<int> counters;

  SmallProductLaunch launch_of(int first_row, int m, std::vector<Out>& out, std::vector<float>& partials) {
    SmallProductLaunch l;
    l.dtype = kDtypeOf<T>;
    l.out_dtype = kDtypeOf<Out>;
    l.format = c.format;
    l.plan = plan;
    l.args.a = a.data() + first_row * a_stride;
    l.args.a_stride = a_stride;
    l.args.w = reinterpret_cast<const std::uint32_t*>(weights.packed.data());
    if (c.has_scale) l.args.w_scale = scale.data();
    if (c.has_bias) l.args.bias = bias.data();
    out.assign(at(m * out_stride), from_float<Out>(77.0f));
    l.args.out = out.data();
    l.args.out_stride = out_stride;
    l.args.is_gated = c.is_gated;
    l.args.m = m;
    l.args.n = c.n;
    l.args.k = c.k;
    partials.assign(static_cast<std::size_t>(small_product_partials(plan, m, c.n)), kNan);
    l.args.partials = partials.data();
    l.args.n_arrived = counters.data();
    return l;
  }

  // Rows [first_row, first_row + m) of the product.
  std::vector<Out> run(int first_row, int m) {
    std::vector<Out> out;
    std::vector<float> partials;
    small_product(launch_of(first_row, m, out, partials), nullptr);
    for (const int counter : counters) CHECK_EQ(counter, 0);
    return out;
  }

  void check(const std::vector<Out>& out, const std::string& name) const {
    const double unit = std::is_same_v<Out, float> ? 0 : std::is_same_v<Out, Bf16> ? 1.0 / 256 : 1.0 / 2048;
    for (int m = 0; m < c.m; ++m) {
      for (int n = 0; n < out_stride; ++n) {
        const double got = to_float(out[at(m * out_stride + n)]);
        if (n >= c.n) {
          CHECK_EQ(got, 77.0);
          continue;
        }
        double sum = 0, size = 0;
        for (int i = 0; i < c.k; ++i) {
          const double term = double{to_float(a[at(m * a_stride + i)])} * weights.values[at(n * c.k + i)];
          sum += term;
          size += std::abs(term);
        }
        const double s = c.has_scale ? scale[at(n)] : 1.0, b = c.has_bias ? bias[at(n)] : 0.0, want = sum * s + b;
        if (!(std::abs(got - want) <= unit * std::abs(want) + 2e-7 * (size * s + std::abs(b)))) {
          check::fail(__FILE__, __LINE__, name, " ", name_of(c.format), ": row ", m, ", output ", n, ": got ", got,
                      ", want ", want);
        }
      }
    }
  }
};

template <class T, class Out>
void check_case(const Case& c) {
  Problem<T, Out> problem(c);
  problem.check(problem.run(0, c.m), concat(c.m, " x ", c.n, " x ", c.k, " for ", c.n_multiprocessors));
}

TEST(any_rows_outputs_and_inputs_in_every_format) {
  struct Size {
    int m, n, k;
  };
  for (const GpuWeightFormat format : kFormats) {
    for (const Size& s : {Size{1, 1, 8}, Size{3, 65, 40}, Size{8, 64, 128}, Size{9, 300, 264}, Size{16, 33, 136},
                          Size{17, 130, 72}, Size{33, 100, 520}, Size{64, 31, 1032}}) {
      check_case<Bf16, Bf16>({format, s.m, s.n, s.k});
    }
    for (const int m : {5, 12, 20, 50}) {
      check_case<Fp16, Fp16>({format, m, 66, 200});
      check_case<Bf16, float>({format, m, 127, 96});
      check_case<Fp16, float>({format, m, 3, 312});
    }
  }
}

TEST(inputs_that_take_several_slices) {
  for (const GpuWeightFormat format : kFormats) {
    check_case<Bf16, float>({format, 2, 300, 2600});
    check_case<Bf16, float>({format, 10, 200, 1800});
  }
}

TEST(blocks_that_share_inputs_sum_to_the_same) {
  for (const GpuWeightFormat format : kFormats) {
    for (const int n_multiprocessors : {6, 132}) {
      CHECK(plan_small_product(format, 300, 1288, n_multiprocessors).n_splits > 1);
      check_case<Bf16, Bf16>({format, 3, 300, 1288, n_multiprocessors});
      check_case<Fp16, float>({format, 18, 70, 1800, n_multiprocessors});
    }
  }
}

TEST(a_scale_and_a_bias_are_there_or_not) {
  for (const GpuWeightFormat format : kFormats) {
    for (int bits = 0; bits < 4; ++bits) {
      check_case<Bf16, float>({format, 4, 20, 1040, 4, (bits & 1) != 0, (bits & 2) != 0});
    }
  }
}

// Each row asks for one input.
template <class T>
void check_exact(GpuWeightFormat format) {
  Case c{format, 64, 72, 128};
  c.has_scale = c.has_bias = false;
  Problem<T, float> problem(c);
  for (int first = 0; first < c.k; first += c.m) {
    for (int row = 0; row < c.m; ++row) {
      for (int i = 0; i < c.k; ++i) {
        problem.a[at(row * problem.a_stride + i)] = from_float<T>(i == first + row ? 1.0f : 0.0f);
      }
    }
    const std::vector<float> out = problem.run(0, c.m);
    for (int row = 0; row < c.m; ++row) {
      for (int n = 0; n < c.n; ++n) {
        CHECK_EQ(double{out[at(row * problem.out_stride + n)]}, problem.weights.values[at(n * c.k + first + row)]);
      }
    }
  }
}

TEST(every_weight_is_exact) {
  for (const GpuWeightFormat format : kFormats) {
    check_exact<Bf16>(format);
    check_exact<Fp16>(format);
  }
}

TEST(a_row_gives_the_same_bits_alone_and_among_any_others) {
  for (const GpuWeightFormat format : kFormats) {
    Problem<Bf16, float> problem({format, 64, 70, 1296, 6});
    CHECK(problem.plan.n_splits > 1);
    const std::vector<float> all = problem.run(0, 64);
    for (const int m : {1, 2, 9, 20, 40}) {
      const std::vector<float> some = problem.run(64 - m, m);
      const float* same = &all[at((64 - m) * problem.out_stride)];
      for (int i = 0; i < m * problem.out_stride; ++i) CHECK_EQ(some[at(i)], same[i]);
    }
  }
}

TEST(no_order_of_threads_and_blocks_changes_a_bit) {
  for (const GpuWeightFormat format : kFormats) {
    for (const int m : {3, 30}) {
      Problem<Bf16, float> problem({format, m, 300, 1416, 8});
      CHECK(problem.plan.n_splits > 1);
      const std::vector<float> first = problem.run(0, m);
      for (const Order& order : {Order{Order::Kind::descending, 0}, Order{Order::Kind::shuffled, 5}}) {
        set_host_order(order);
        const std::vector<float> again = problem.run(0, m);
        set_host_order({});
        CHECK(again == first);
      }
    }
  }
}

// Gated where it was summed, and written as [gate, up] and gated then.
template <class T>
void check_gated(Case c) {
  std::vector<T> want = Problem<T, T>(c).run(0, c.m);
  c.is_gated = true;
  Problem<T, T> problem(c);
  const int stride = problem.out_stride, n_pairs = c.n / 2;
  GatedLaunch l;
  l.x = {want.data(), kDtypeOf<T>, stride};
  l.out = {want.data(), kDtypeOf<T>, stride};
  l.n_rows = c.m;
  l.n_cols = n_pairs;
  gated(l, nullptr);
  const std::vector<T> got = problem.run(0, c.m);
  for (int row = 0; row < c.m; ++row) {
    for (int i = 0; i < stride; ++i) {
      const T wanted = i < n_pairs ? want[at(row * stride + i)] : from_float<T>(77.0f);
      CHECK_EQ(got[at(row * stride + i)].bits, wanted.bits);
    }
  }
}

TEST(gated_products_are_the_bits_of_a_product_and_its_activation) {
  for (const GpuWeightFormat format : kFormats) {
    for (const int n : {128, 256, 384}) check_gated<Bf16>({format, 3, n, 136});
    check_gated<Fp16>({format, 9, 384, 72, 1, false, false});
    check_gated<Bf16>({format, 40, 128, 1032, 8});
    check_gated<Bf16>({format, 2, 640, 1288, 132});
  }
}

TEST(a_gated_row_gives_the_same_bits_alone_and_among_others) {
  for (const GpuWeightFormat format : kFormats) {
    Problem<Bf16, Bf16> problem({format, 20, 384, 1296, 16, true, true, true});
    CHECK(problem.plan.n_splits > 1);
    const std::vector<Bf16> all = problem.run(0, 20), one = problem.run(19, 1);
    for (int i = 0; i < 192; ++i) CHECK_EQ(one[at(i)].bits, all[at(19 * problem.out_stride + i)].bits);
  }
}

TEST(plans_fill_the_device_once) {
  struct Size {
    int n, k;
  };
  for (const GpuWeightFormat format : kFormats) {
    for (const Size& s : {Size{4096, 4096}, Size{6144, 4096}, Size{28672, 4096}, Size{4096, 14336}, Size{1024, 4096}}) {
      const SmallProductPlan plan = plan_small_product(format, s.n, s.k, 132);
      const int n_blocks = (s.n + 255) / 256 * plan.n_splits;
      CHECK(n_blocks <= 132);
      const bool is_all = plan.bricks_per_split == 2;  // nothing left to cut
      CHECK(is_all || n_blocks >= 90);
    }
    CHECK_EQ(plan_small_product(format, 128256, 4096, 132).n_splits, 1);
  }
}

TEST(what_no_kernel_takes_is_refused) {
  Problem<Bf16, Bf16> problem({GpuWeightFormat::w8, 2, 64, 2048, 132});
  CHECK(problem.plan.n_splits > 1);
  std::vector<Bf16> out;
  std::vector<float> partials;
  const SmallProductLaunch right = problem.launch_of(0, 2, out, partials);
  const auto expect = [&](const char* part, const auto& spoil) {
    SmallProductLaunch l = right;
    spoil(l);
    CHECK_THROWS(std::invalid_argument, part, small_product(l, nullptr));
  };
  expect("0 to 64 rows, got 65", [](SmallProductLaunch& l) { l.args.m = 65; });
  expect("multiple of 8, got 64 and 2044", [](SmallProductLaunch& l) { l.args.k = 2044; });
  expect("a must be bfloat16 or float16, got float32",
         [](SmallProductLaunch& l) { l.dtype = l.out_dtype = Dtype::f32; });
  expect("out must be bfloat16", [](SmallProductLaunch& l) { l.out_dtype = Dtype::f16; });
  expect("gated outputs must be bfloat16 like a and come from a multiple of 128, got bfloat16 from 64",
         [](SmallProductLaunch& l) { l.args.is_gated = true; });
  expect("rows of a must be aligned", [](SmallProductLaunch& l) { l.args.a_stride = 2052; });
  expect("rows of a must be aligned", [](SmallProductLaunch& l) { l.args.a = static_cast<const Bf16*>(l.args.a) + 1; });
  expect("packed weights must be aligned", [](SmallProductLaunch& l) { l.args.w += 1; });
  expect("the plan must cut 16 bricks", [](SmallProductLaunch& l) { l.plan.bricks_per_split *= 2; });
  expect("need partials and n_arrived", [](SmallProductLaunch& l) { l.args.partials = nullptr; });
  CHECK_THROWS(std::invalid_argument, "must be positive", plan_small_product(GpuWeightFormat::w8, 64, 0, 132));
  CHECK_THROWS(std::invalid_argument, "[pack_gpu_w8] n and k must be positive", pack_gpu_w8(nullptr, 0, 0, 8, nullptr));
  const std::vector<std::uint8_t> with_nan(8, 0xff);
  std::vector<std::uint8_t> packed(static_cast<std::size_t>(packed_gpu_bytes(GpuWeightFormat::f8, 1, 8)));
  CHECK_THROWS(std::invalid_argument, "[pack_gpu_f8] weights must be finite, got a NaN",
               pack_gpu_f8(with_nan.data(), 8, 1, 8, packed.data()));
  SmallProductLaunch nothing = right;
  nothing.args.m = 0;
  small_product(nothing, nullptr);
}

}  // namespace
