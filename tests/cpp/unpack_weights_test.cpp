// Packed weights back in rows on the host machine: what was packed, and what the drawing of the layout says, bit for
// bit, for any range or ids, in several orders of threads.
#include <cstring>
#include <string>

#include "check.h"
#include "every_order.h"
#include "packed_weights_rig.h"
#include "row_rig.h"
#include "unpack_weights_launch.h"

namespace {

using namespace rig;

// Weight (row, i) by the indices of the arrays that pack_gpu_weights.h draws.
template <class T>
double weight_as_drawn(const PackedWeights<T>& w, GpuWeightFormat format, int row, int i) {
  const int run = brick_shape(format).run, in_run = i % run;
  const int n_columns = (w.k + 4 * run - 1) / (4 * run);
  const std::uint8_t* const brick =
      w.packed.data() + std::int64_t{row / 64 * n_columns + i / (4 * run)} * brick_shape(format).bytes();
  const int tile = row % 64 / 16, half = row % 16 / 8, lane = row % 8 * 4 + i % (4 * run) / run;
  if (format == GpuWeightFormat::half) {
    T x;
    std::memcpy(&x, brick + 2 * ((((tile * 2 + in_run / 8) * 2 + half) * 32 + lane) * 8 + in_run % 8), 2);
    return to_float(x);
  }
  if (format == GpuWeightFormat::w8) {
    return brick[(((tile * 4 + in_run / 8) * 32 + lane) * 2 + half) * 8 + in_run % 8] - 128;
  }
  if (format == GpuWeightFormat::f8) {
    return to_float(Fp8{brick[(((tile * 4 + in_run / 8) * 32 + lane) * 2 + half) * 8 + in_run % 8]});
  }
  std::uint32_t word;
  std::memcpy(&word, brick + 4 * ((((tile * 2 + in_run / 16) * 32 + lane) * 2 + half) * 2 + in_run % 16 / 8), 4);
  const int q = static_cast<int>(word >> (in_run % 2 * 16 + in_run % 8 / 2 * 4) & 15u);
  const std::uint8_t* const group = brick + 4 * 2 * 32 * 16 + ((lane * 4 + tile) * 2 + half) * 2;
  return group[0] * q + (group[1] - 128);
}

template <class T>
struct Problem {
  Problem(GpuWeightFormat format_, int n, int k) : format(format_), w(format_, n, k, 3) {
    for (int row = 0; row < n; ++row) scale.push_back(0.01f + 0.003f * static_cast<float>(row % 17));
  }

  UnpackWeightsLaunch launch_into(Rows& out, bool has_scale) const {
    UnpackWeightsLaunch l;
    l.format = format;
    l.dtype = kDtypeOf<T>;
    l.w = w.packed.data();
    if (has_scale) l.scale = scale.data();
    l.out = out.out();
    l.n = w.n;
    l.k = w.k;
    return l;
  }

  // row_of(i): the row of w that row i of out is, -1 for none.
  template <class RowOf>
  void check(const Rows& out, int n_rows, bool has_scale, const std::string& name, const RowOf& row_of) const {
    for (int i = 0; i < n_rows; ++i) {
      const int row = row_of(i);
      for (int column = 0; column < w.k; ++column) {
        float want = 0.0f;
        if (row >= 0) {
          const auto value = static_cast<float>(w.values[at(row * w.k + column)]);
          want = out.rounded(has_scale ? value * scale[at(row)] : value);
        }
        if (out.get(i, column) != want) {
          check::fail(__FILE__, __LINE__, name_of(format), " ", w.n, " x ", w.k, ", ", name, ": row ", i, ", column ",
                      column, ": got ", out.get(i, column), ", want ", want);
        }
      }
    }
    CHECK(out.padding_is_whole());
  }

  void check_range(int begin, int n_rows, Dtype out_dtype, bool has_scale) const {
    Rows out(n_rows, w.k, out_dtype, w.k % 2 == 0 ? 8 : 3);
    UnpackWeightsLaunch l = launch_into(out, has_scale);
    l.begin = begin;
    l.n_rows = n_rows;
    unpack_weights(l, nullptr);
    check(out, n_rows, has_scale, concat("from ", begin, " as ", dtype_name(out_dtype)),
          [&](int i) { return begin + i; });
  }

  const GpuWeightFormat format;
  const PackedWeights<T> w;
  std::vector<float> scale;
};

struct Size {
  int n, k;
};

TEST(the_layout_is_as_it_is_drawn) {
  for (const GpuWeightFormat format : kFormats) {
    for (const Size& s : {Size{1, 8}, Size{67, 136}, Size{130, 264}}) {
      const Problem<Fp16> problem(format, s.n, s.k);
      for (int row = 0; row < s.n; ++row) {
        for (int i = 0; i < s.k; ++i) {
          CHECK_EQ(weight_as_drawn(problem.w, format, row, i), problem.w.values[at(row * s.k + i)]);
        }
      }
    }
  }
}

TEST(any_range_is_the_rows_that_were_packed) {
  for (const GpuWeightFormat format : kFormats) {
    for (const Size& s : {Size{1, 1}, Size{3, 31}, Size{33, 33}, Size{64, 64}, Size{127, 136}, Size{130, 520}}) {
      const Problem<Bf16> bf16(format, s.n, s.k);
      const Problem<Fp16> fp16(format, s.n, s.k);
      for (const bool has_scale : {false, true}) {
        bf16.check_range(0, s.n, Dtype::bf16, has_scale);
        bf16.check_range(0, s.n, Dtype::f32, has_scale);
        fp16.check_range(0, s.n, Dtype::f16, has_scale);
      }
      bf16.check_range(s.n - 1, 1, Dtype::bf16, true);
      bf16.check_range(s.n / 2, s.n / 4 + 1, Dtype::f32, true);
      fp16.check_range(s.n / 3, s.n - s.n / 3, Dtype::f16, true);
    }
  }
}

TEST(rows_by_id_are_those_of_the_table_and_zeros_for_ids_that_it_lacks) {
  const std::vector<std::int32_t> ids = {2, 0, 63, -1, 64, 2, 41, -2147483647 - 1, 2147483647, 15};
  for (const GpuWeightFormat format : kFormats) {
    for (const int k : {1, 31, 64, 136, 2056}) {
      for (const Dtype dtype : {Dtype::bf16, Dtype::f32}) {
        const Problem<Bf16> problem(format, 64, k);  // whole bricks: nothing behind them
        const auto n_rows = static_cast<int>(ids.size());
        Rows out(n_rows, k, dtype, 3, 1);
        UnpackWeightsLaunch l = problem.launch_into(out, format != GpuWeightFormat::half);
        l.ids = ids.data();
        l.n_rows = n_rows;
        unpack_weights(l, nullptr);
        problem.check(out, n_rows, format != GpuWeightFormat::half, concat("by id as ", dtype_name(dtype)), [&](int i) {
          const std::int32_t id = ids[at(i)];
          return id >= 0 && id < 64 ? id : -1;
        });
      }
    }
  }
}

TEST(no_order_of_threads_changes_a_bit) {
  for (const GpuWeightFormat format : kFormats) {
    const Problem<Bf16> problem(format, 100, 200);
    for (const Order& order : kOrders) {
      set_host_order(order);
      problem.check_range(3, 90, Dtype::bf16, true);
      set_host_order({});
    }
  }
}

TEST(no_rows_are_nothing_to_do) {
  const Problem<Bf16> problem(GpuWeightFormat::w8, 5, 8);
  Rows out(1, 8, Dtype::bf16, 0);
  UnpackWeightsLaunch l = problem.launch_into(out, true);
  l.begin = 5;
  unpack_weights(l, nullptr);
  CHECK(std::isnan(out.get(0, 0)));
}

TEST(what_no_kernel_takes_is_refused) {
  const Problem<Bf16> problem(GpuWeightFormat::half, 5, 8);
  Rows out(5, 8, Dtype::bf16, 0);
  const auto expect = [&](const char* part, const auto& spoil) {
    UnpackWeightsLaunch l = problem.launch_into(out, false);
    l.n_rows = 5;
    spoil(l);
    CHECK_THROWS(std::invalid_argument, part, unpack_weights(l, nullptr));
  };
  expect("n and k at least 1, got 5, 5 and 0", [](UnpackWeightsLaunch& l) { l.k = 0; });
  expect("rows must be within [0, 5), got 5 from 1 on", [](UnpackWeightsLaunch& l) { l.begin = 1; });
  expect("rows must be within [0, 5), got 5 from -1 on", [](UnpackWeightsLaunch& l) { l.begin = -1; });
  expect("aligned to 16 bytes", [](UnpackWeightsLaunch& l) { l.w += 8; });
  expect("half weights must be bfloat16 or float16, got float32", [](UnpackWeightsLaunch& l) { l.dtype = Dtype::f32; });
  expect("out must be float32 or bfloat16 like weights, got float16",
         [](UnpackWeightsLaunch& l) { l.out.dtype = Dtype::f16; });
  expect("out must be float32, bfloat16 or float16, got int8", [](UnpackWeightsLaunch& l) { l.out.dtype = Dtype::s8; });
}

}  // namespace
