// Products with the weights of experts on the host machine, against the formula in double: every tile, dtype and kind,
// awkward sizes, rows found through pairs, NaN wherever nothing may look.
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "check.h"
#include "moe_product_launch.h"

namespace {

using namespace llm_decoder;
using namespace llm_decoder::gpu;

struct Case {
  std::vector<int> rows;  // of each expert; one entry and no pairs: a dense product
  int n, k;
  bool is_gated = false, has_int8_weights = false;
  enum Pairs { none, of_a, of_out } pairs = none;
  bool has_scales = true;  // of int8 weights
};

template <class T>
struct Problem {
  Problem(const Case& c_, int tile_rows_) : c(c_), tile_rows(tile_rows_) {
    n_rows = std::accumulate(c.rows.begin(), c.rows.end(), 0);
    make_pairs();
    const T nan{0x7fff};
    a_stride = c.k + 8;
    out_stride = c.n + 16;
    // Rows of a that no pair names and what lies between rows are NaN; so is out.
    a.assign(static_cast<std::size_t>((n_rows + 2) * a_stride), nan);
    out.assign(static_cast<std::size_t>((n_rows * 2 + 2) * out_stride), nan);
    for (int p = 0; p < n_rows; ++p) {
      for (int i = 0; i < c.k; ++i) a[at(a_row(p), a_stride, i)] = from_float<T>(normal(random));
    }
    const std::size_t n_weight_rows = c.rows.size() * static_cast<std::size_t>(c.is_gated ? 2 * c.n : c.n);
    for (std::size_t i = 0; i < n_weight_rows * static_cast<std::size_t>(c.k); ++i) {
      w.push_back(from_float<T>(normal(random) * 0.3f));
      bytes.push_back(Int8{static_cast<std::int8_t>(static_cast<int>(random() % 256) - 128)});
    }
    for (std::size_t i = 0; i < n_weight_rows; ++i) scales.push_back(0.001f + 0.00001f * static_cast<float>(i % 300));
    for (std::size_t i = 0; i < out.size() / static_cast<std::size_t>(out_stride); ++i) {
      weights.push_back(0.1f + 0.01f * static_cast<float>(i));
    }
    int begin = 0;
    for (std::size_t e = 0; e < c.rows.size(); ++e) {
      for (int done = 0; done < c.rows[e]; done += tile_rows) {
        tiles.push_back({static_cast<int>(e), begin + done, std::min(tile_rows, c.rows[e] - done)});
      }
      begin += c.rows[e];
    }
    n_tiles = static_cast<int>(tiles.size());
    tiles.resize(tiles.size() + 3, {1 << 30, 1 << 30, 1 << 30});
  }

  const Case c;
  int tile_rows, n_rows = 0, n_tiles = 0, a_stride = 0, out_stride = 0;
  std::mt19937_64 random{5};
  std::normal_distribution<float> normal;
  std::vector<T> a, w, out;
  std::vector<Int8> bytes;
  std::vector<float> scales, weights;
  std::vector<int> pairs;  // of sorted positions
  std::vector<MoeTile> tiles;

  static std::size_t at(std::int64_t row, int stride, int i) {
    return static_cast<std::size_t>(row) * static_cast<std::size_t>(stride) + static_cast<std::size_t>(i);
  }

  // Positions name pairs in a mixed order; of a they name rows 1 and on, two pairs a row.
  void make_pairs() {
    for (int p = 0; p < n_rows; ++p) pairs.push_back(2 + p);
    std::shuffle(pairs.begin(), pairs.end(), random);
  }
  int a_row(int position) const {
    return c.pairs == Case::of_a ? pairs[static_cast<std::size_t>(position)] / 2 : position;
  }
  int out_row(int position) const {
    return c.pairs == Case::of_out ? pairs[static_cast<std::size_t>(position)] : position;
  }
  bool is_dense() const { return c.rows.size() == 1 && c.pairs == Case::none; }

  GroupedProductLaunch make_launch() {
    GroupedProductLaunch l;
    l.dtype = std::is_same_v<T, Bf16> ? Dtype::bf16 : Dtype::f16;
    l.weight_dtype = c.has_int8_weights ? Dtype::s8 : l.dtype;
    l.is_gated = c.is_gated;
    l.tile_rows = tile_rows;
    l.args.a = a.data();
    l.args.a_stride = a_stride;
    if (c.has_int8_weights) {
      l.args.w = bytes.data();
      l.args.w_scale = scales.data();
    } else {
      l.args.w = w.data();
    }
    l.args.out = out.data();
    l.args.out_stride = out_stride;
    l.args.n = c.n;
    l.args.k = c.k;
    if (is_dense()) {
      l.args.n_rows = n_rows;
      return l;
    }
    if (c.pairs == Case::of_a) {
      l.args.a_pairs = pairs.data();
      l.args.pairs_per_a_row = 2;
    }
    if (c.pairs == Case::of_out) {
      l.args.out_pairs = pairs.data();
      l.args.weights = weights.data();
    }
    l.args.tiles = tiles.data();
    l.args.n_tiles = &n_tiles;
    l.args.max_tiles = static_cast<int>(tiles.size());  // as many as there could be, not as there are
    return l;
  }

  void run() {
    if (is_dense()) {
      dense_product(make_launch(), nullptr);
    } else {
      grouped_product(make_launch(), nullptr);
    }
  }

  struct Sum {
    double value = 0, size = 0;
  };
  Sum product(int position, std::size_t expert, int weight_row) const {
    const std::size_t row =
        expert * static_cast<std::size_t>(c.is_gated ? 2 * c.n : c.n) + static_cast<std::size_t>(weight_row);
    Sum sum;
    for (int i = 0; i < c.k; ++i) {
      const std::size_t from = row * static_cast<std::size_t>(c.k) + static_cast<std::size_t>(i);
      const double weight = c.has_int8_weights ? double{to_float(bytes[from])} * scales[row] : to_float(w[from]);
      const double term = to_float(a[at(a_row(position), a_stride, i)]) * weight;
      sum.value += term;
      sum.size += std::abs(term);
    }
    return sum;
  }

  void check(const std::string& name) const {
    const double unit = std::is_same_v<T, Bf16> ? 1.0 / 256 : 1.0 / 2048;  // of rounding out
    std::vector<bool> is_written(out.size(), false);
    int position = 0;
    for (std::size_t e = 0; e < c.rows.size(); ++e) {
      for (int r = 0; r < c.rows[e]; ++r, ++position) {
        for (int column = 0; column < c.n; ++column) {
          const Sum own = product(position, e, column);
          double want = own.value, size = own.size;
          if (c.is_gated) {
            const Sum up = product(position, e, c.n + column);
            want = own.value / (1 + std::exp(-own.value)) * up.value;
            size = own.size * up.size;
          }
          if (c.pairs == Case::of_out) want *= weights[static_cast<std::size_t>(out_row(position))];
          const std::size_t i = at(out_row(position), out_stride, column);
          is_written[i] = true;
          const double got = to_float(out[i]);
          if (!(std::abs(got - want) <= 1.01 * unit * std::abs(want) + 1e-6 * size + 1e-7)) {
            check::fail(__FILE__, __LINE__, name, ": position ", position, " of expert ", e, ", column ", column,
                        ": got ", got, ", want ", want);
          }
        }
      }
    }
    for (std::size_t i = 0; i < out.size(); ++i) {
      if (!is_written[i] && out[i].bits != 0x7fff) {
        check::fail(__FILE__, __LINE__, name, ": wrote where nothing belongs, row ",
                    i / static_cast<std::size_t>(out_stride), ", element ", i % static_cast<std::size_t>(out_stride));
      }
    }
  }
};

template <class T>
void check_case(const Case& c, int tile_rows, const std::string& name) {
  Problem<T> problem(c, tile_rows);
  problem.run();
  problem.check(concat(name, ", tiles of ", tile_rows));
}

// Every dtype and kind.
void check_kinds(Case c, const std::string& name) {
  for (const int tile_rows : kProductTileRows) {
    for (const bool is_gated : {false, true}) {
      for (const bool has_int8_weights : {false, true}) {
        c.is_gated = is_gated;
        c.has_int8_weights = has_int8_weights;
        const std::string kind = concat(name, is_gated ? ", gated" : "", has_int8_weights ? ", int8" : "");
        check_case<Bf16>(c, tile_rows, kind + ", bf16");
        if (tile_rows <= 32) check_case<Fp16>(c, tile_rows, kind + ", fp16");
      }
    }
  }
}

TEST(rows_of_several_experts_gathered_through_their_pairs) {
  check_kinds({{3, 0, 1, 9}, 24, 72, false, false, Case::of_a}, "gathered");
}

TEST(rows_go_where_their_pairs_say_and_are_weighed) {
  check_kinds({{5, 2, 0, 8}, 24, 40, false, false, Case::of_out}, "scattered");
}

TEST(a_dense_product_is_the_case_of_one_expert) { check_kinds({{19}, 40, 72}, "dense"); }

template <class Out, class T>
void check_dense(int tile_rows, bool has_int8_weights, bool has_bias) {
  constexpr bool kIsFloat = std::is_same_v<Out, float>;
  const Case c{{19}, 40, 72, false, has_int8_weights};
  Problem<T> problem(c, tile_rows);
  std::vector<Out> bias, out(problem.out.size(), from_float<Out>(77.0f));
  for (int n = 0; n < c.n; ++n) bias.push_back(from_float<Out>(static_cast<float>(n) * 0.37f - 5.0f));
  GroupedProductLaunch l = problem.make_launch();
  l.args.out = out.data();
  l.args.out_is_float = kIsFloat;
  if (has_bias) l.args.bias = bias.data();
  dense_product(l, nullptr);
  const double unit = kIsFloat ? 0 : std::is_same_v<T, Bf16> ? 1.0 / 256 : 1.0 / 2048;
  for (std::size_t i = 0; i < out.size(); ++i) {
    const auto stride = static_cast<std::size_t>(problem.out_stride);
    const int row = static_cast<int>(i / stride), column = static_cast<int>(i % stride);
    const double got = to_float(out[i]);
    if (row >= 19 || column >= c.n) {
      CHECK_EQ(got, 77.0);
      continue;
    }
    const auto sum = problem.product(row, 0, column);
    const double b = has_bias ? to_float(bias[static_cast<std::size_t>(column)]) : 0.0, want = sum.value + b;
    if (!(std::abs(got - want) <= 1.01 * unit * std::abs(want) + 1e-6 * (sum.size + std::abs(b)))) {
      check::fail(__FILE__, __LINE__, "tiles of ", tile_rows, has_int8_weights ? ", int8" : "",
                  kIsFloat ? ", floats" : "", has_bias ? ", bias" : "", ": row ", row, ", column ", column, ": got ",
                  got, ", want ", want);
    }
  }
}

TEST(a_dense_product_adds_a_bias_and_gives_what_is_asked_for) {
  for (const int tile_rows : kProductTileRows) {
    for (const bool has_int8_weights : {false, true}) {
      check_dense<Bf16, Bf16>(tile_rows, has_int8_weights, true);
      check_dense<Fp16, Fp16>(tile_rows, has_int8_weights, true);
      check_dense<float, Bf16>(tile_rows, has_int8_weights, false);
      check_dense<float, Fp16>(tile_rows, has_int8_weights, true);
    }
  }
}

TEST(any_n_and_k_that_are_multiples_of_8) {
  for (const int tile_rows : {8, 32}) {
    for (const int n : {8, 16, 56, 136, 264}) {
      for (const int k : {8, 64, 136}) {
        Case c{{2}, n, k};
        for (const bool is_gated : {false, true}) {
          c.is_gated = is_gated;
          c.has_int8_weights = false;
          check_case<Bf16>(c, tile_rows, concat(n, " x ", k));
          c.has_int8_weights = true;
          check_case<Bf16>(c, tile_rows, concat(n, " x ", k, ", int8"));
        }
      }
    }
  }
}

TEST(rings_that_come_round_several_times) {
  for (const int tile_rows : kProductTileRows) {
    Case c{{3, 2}, 16, tile_rows == 8 ? 2056 : 456, true, false, Case::of_a};
    check_case<Bf16>(c, tile_rows, "deep");
    c.has_int8_weights = true;
    check_case<Bf16>(c, tile_rows, "deep, int8");
  }
}

TEST(experts_with_more_rows_than_a_tile) {
  check_case<Bf16>({{20, 9, 1}, 16, 40, true, false, Case::of_a}, 8, "three tiles, two and one");
  check_case<Bf16>({{70, 33}, 136, 24, false, false, Case::of_out}, 32, "three tiles and two");
  check_case<Bf16>({{130, 65}, 72, 24, true, false, Case::of_a}, 64, "three tiles and two");
  check_case<Bf16>({{130, 1}, 136, 24, false, true, Case::of_out}, 128, "two tiles and one");
}

TEST(more_tiles_than_share_their_operands) {
  check_case<Bf16>({{300}, 264, 8}, 32, "ten tiles, three columns");
  check_case<Bf16>({std::vector<int>(19, 1), 136, 8, true, false, Case::of_a}, 32, "nineteen experts, three columns");
}

// The pointers that a launch would have if its rows and its expert were far behind others.
template <class P>
const P* moved_back(const P* pointer, std::int64_t n) {
  return reinterpret_cast<const P*>(reinterpret_cast<std::uintptr_t>(pointer) -
                                    static_cast<std::uintptr_t>(n) * sizeof(P));
}

TEST(offsets_above_32_bits) {
  constexpr int kFar = 1 << 28;
  for (const int tile_rows : {8, 32}) {
    for (const bool has_int8_weights : {false, true}) {
      Case c{{2, 3}, 24, 72, true, has_int8_weights};
      Problem<Bf16> problem(c, tile_rows);
      GroupedProductLaunch l = problem.make_launch();
      for (MoeTile& tile : problem.tiles) tile.expert += kFar;
      const std::int64_t n_skipped = std::int64_t{kFar} * 2 * c.n;
      l.args.w = has_int8_weights ? static_cast<const void*>(moved_back(problem.bytes.data(), n_skipped * c.k))
                                  : moved_back(problem.w.data(), n_skipped * c.k);
      if (has_int8_weights) l.args.w_scale = moved_back(problem.scales.data(), n_skipped);
      std::vector<int> far_rows;
      for (int p = 0; p < problem.n_rows; ++p) far_rows.push_back(kFar + p);
      l.args.a_pairs = l.args.out_pairs = far_rows.data();
      l.args.a = moved_back(problem.a.data(), std::int64_t{kFar} * problem.a_stride);
      l.args.out = const_cast<Bf16*>(moved_back(problem.out.data(), std::int64_t{kFar} * problem.out_stride));
      grouped_product(l, nullptr);
      problem.check("far");
    }
  }
}

TEST(a_row_gives_the_same_bits_in_every_tile_and_company) {
  Case c{{37}, 40, 136, true};
  Problem<Bf16> first(c, 32);
  first.run();
  for (const int tile_rows : {64, 128}) {
    Problem<Bf16> other(c, tile_rows);
    other.run();
    for (std::size_t i = 0; i < first.out.size(); ++i) CHECK_EQ(other.out[i].bits, first.out[i].bits);
  }
  for (const int tile_rows : {8, 32}) {
    Problem<Bf16> together(c, tile_rows), alone(c, tile_rows);
    together.run();
    GroupedProductLaunch l = alone.make_launch();
    l.args.n_rows = 1;
    l.args.a = alone.a.data() + 30 * alone.a_stride;
    dense_product(l, nullptr);
    for (std::size_t i = 0; i < 40; ++i)
      CHECK_EQ(alone.out[i].bits, together.out[together.at(30, together.out_stride, 0) + i].bits);
  }
}

TEST(no_order_of_threads_changes_a_bit) {
  for (const int tile_rows : kProductTileRows) {
    for (const bool has_int8_weights : {false, true}) {
      const Case c{{7, 3}, 24, 200, true, has_int8_weights, Case::of_a};
      Problem<Bf16> first(c, tile_rows);
      first.run();
      for (const Order& order : {Order{Order::Kind::descending, 0}, Order{Order::Kind::shuffled, 5}}) {
        set_host_order(order);
        Problem<Bf16> again(c, tile_rows);
        again.run();
        set_host_order({});
        for (std::size_t i = 0; i < first.out.size(); ++i) CHECK_EQ(again.out[i].bits, first.out[i].bits);
      }
    }
  }
}

TEST(tiles_fit_the_rows_that_experts_have) {
  CHECK_EQ(choose_tile_rows(8, 256), 8);
  CHECK_EQ(choose_tile_rows(4 * 256, 256), 8);
  CHECK_EQ(choose_tile_rows(4 * 256 + 1, 256), 32);
  CHECK_EQ(choose_tile_rows(64, 1), 64);
  CHECK_EQ(choose_tile_rows(65536, 128), 128);
}

TEST(what_no_kernel_was_compiled_for_is_refused) {
  const Case c{{3}, 16, 16};
  const auto refused = [&](const char* part, const auto& change) {
    Problem<Bf16> problem(c, 32);
    GroupedProductLaunch l = problem.make_launch();
    change(l);
    CHECK_THROWS(std::invalid_argument, part, dense_product(l, nullptr));
  };
  refused("n must be a positive multiple of 8, got 12", [](auto& l) { l.args.n = 12; });
  refused("k must be a positive multiple of 8, got 0", [](auto& l) { l.args.k = 0; });
  refused("8 elements apart, got 20 and", [](auto& l) { l.args.a_stride = 20; });
  refused("aligned to 16 bytes", [](auto& l) { l.args.a = static_cast<const Bf16*>(l.args.a) + 1; });
  refused("tile_rows must be 8, 32, 64 or 128, got 16", [](auto& l) { l.tile_rows = 16; });
  refused("rows must be bfloat16 or float16, got float32", [](auto& l) { l.dtype = l.weight_dtype = Dtype::f32; });
  refused("weights must be bfloat16 like the rows, or int8, got float16", [](auto& l) { l.weight_dtype = Dtype::f16; });
  refused("int8 weights need scales", [](auto& l) { l.weight_dtype = Dtype::s8; });
  refused("n_rows must not be negative, got -1", [](auto& l) { l.args.n_rows = -1; });
  refused("a float32 out are of dense products that are not gated",
          [](auto& l) { l.is_gated = l.args.out_is_float = true; });
}

TEST(no_rows_are_nothing_to_do) {
  Problem<Bf16> problem({{0}, 16, 16}, 0);
  problem.run();
  problem.check("no rows");
}

}  // namespace
