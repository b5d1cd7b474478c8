// A whole mixture of experts on the host machine, against the formula in double: every tile and dtype, expert maps, ids
// that are none, a workspace of exactly the size asked for and full of NaN.
#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "check.h"
#include "fused_moe_launch.h"
#include "moe_product_launch.h"

namespace {

using namespace llm_decoder;
using namespace llm_decoder::gpu;

struct Case {
  int n_tokens, top_k, n_experts, n, k;
  bool has_int8_weights = false;
  int n_ids = 0;  // more than n_experts: through a map
  bool has_bad_ids = false;
  int tile_rows = 0;
};

template <class T>
struct Problem {
  explicit Problem(const Case& c_) : c(c_) {
    if (c.n_ids == 0) c.n_ids = c.n_experts;
    const T nan{0x7fff};
    stride = c.k + 8;
    hidden.assign(size(c.n_tokens, stride), nan);
    out.assign(hidden.size(), nan);
    for (int t = 0; t < c.n_tokens; ++t) {
      for (int i = 0; i < c.k; ++i) hidden[size(t, stride) + size(i)] = from_float<T>(normal(random));
    }
    fill_weights(w1, bytes1, scale1, 2 * c.n, c.k);
    fill_weights(w2, bytes2, scale2, c.k, c.n);
    if (c.n_ids != c.n_experts) {
      map.assign(size(c.n_ids), kNotHere);
      for (int e = 0; e < c.n_experts; ++e) map[size(e)] = e;
      std::shuffle(map.begin(), map.end(), random);
    }
    std::vector<int> order(size(c.n_ids));
    for (int e = 0; e < c.n_ids; ++e) order[size(e)] = e;
    for (int t = 0; t < c.n_tokens; ++t) {
      std::shuffle(order.begin(), order.end(), random);
      for (int r = 0; r < c.top_k; ++r) {
        ids.push_back(c.has_bad_ids && (t + r) % 3 == 0 ? (t % 2 == 0 ? -1 : c.n_ids) : order[size(r)]);
        weights.push_back(std::abs(normal(random)) / static_cast<float>(c.top_k));
      }
    }
  }

  Case c;
  int stride = 0;
  std::mt19937_64 random{9};
  std::normal_distribution<float> normal;
  std::vector<T> hidden, out, w1, w2;
  std::vector<Int8> bytes1, bytes2;
  std::vector<float> scale1, scale2, weights;
  std::vector<int> ids, map;

  static std::size_t size(std::int64_t a, std::int64_t b = 1, std::int64_t d = 1) {
    return static_cast<std::size_t>(a * b * d);
  }

  void fill_weights(std::vector<T>& w, std::vector<Int8>& bytes, std::vector<float>& scales, int rows, int depth) {
    for (std::size_t i = 0; i < size(c.n_experts, rows, depth); ++i) {
      w.push_back(from_float<T>(normal(random) * 0.3f));
      bytes.push_back(Int8{static_cast<std::int8_t>(static_cast<int>(random() % 256) - 128)});
    }
    for (std::size_t i = 0; i < size(c.n_experts, rows); ++i) {
      scales.push_back(0.002f + 0.00001f * static_cast<float>(i % 300));
    }
  }

  FusedMoeLaunch make_launch() {
    FusedMoeLaunch l;
    l.dtype = std::is_same_v<T, Bf16> ? Dtype::bf16 : Dtype::f16;
    l.weight_dtype = c.has_int8_weights ? Dtype::s8 : l.dtype;
    l.hidden = hidden.data();
    l.hidden_stride = l.out_stride = stride;
    l.w1 = c.has_int8_weights ? static_cast<const void*>(bytes1.data()) : w1.data();
    l.w2 = c.has_int8_weights ? static_cast<const void*>(bytes2.data()) : w2.data();
    if (c.has_int8_weights) {
      l.w1_scale = scale1.data();
      l.w2_scale = scale2.data();
    }
    l.topk_weights = weights.data();
    l.topk_ids = ids.data();
    if (!map.empty()) l.expert_map = map.data();
    l.n_ids = c.n_ids;
    l.out = out.data();
    l.n_tokens = c.n_tokens;
    l.top_k = c.top_k;
    l.n_experts = c.n_experts;
    l.n = c.n;
    l.k = c.k;
    l.tile_rows = c.tile_rows;
    return l;
  }

  void run() { run(make_launch()); }

  void run(FusedMoeLaunch l) {
    struct alignas(16) Chunk {
      unsigned char bytes[16];
    };
    Chunk poison;
    std::fill(std::begin(poison.bytes), std::end(poison.bytes), static_cast<unsigned char>(0xff));
    std::vector<Chunk> workspace(size(fused_moe_workspace_bytes(l) / 16), poison);
    l.workspace = workspace.data();
    fused_moe(l, nullptr);
  }

  double weight_of(const std::vector<T>& w, const std::vector<Int8>& bytes, const std::vector<float>& scales,
                   std::size_t row, int depth, int i) const {
    const std::size_t at = row * size(depth) + size(i);
    return c.has_int8_weights ? double{to_float(bytes[at])} * scales[row] : double{to_float(w[at])};
  }

  void check(const std::string& name) const {
    const double unit = std::is_same_v<T, Bf16> ? 1.0 / 256 : 1.0 / 2048;
    for (int t = 0; t < c.n_tokens; ++t) {
      std::vector<double> want(size(c.k)), bound(size(c.k));
      for (int r = 0; r < c.top_k; ++r) {
        const std::size_t pair = size(t, c.top_k) + size(r);
        const int id = ids[pair];
        if (id < 0 || id >= c.n_ids) continue;
        const int expert = map.empty() ? id : map[size(id)];
        if (expert == kNotHere) continue;
        std::vector<double> activations;
        for (int j = 0; j < c.n; ++j) {
          double gate = 0, up = 0;
          for (int i = 0; i < c.k; ++i) {
            const double x = to_float(hidden[size(t, stride) + size(i)]);
            gate += x * weight_of(w1, bytes1, scale1, size(expert, 2 * c.n) + size(j), c.k, i);
            up += x * weight_of(w1, bytes1, scale1, size(expert, 2 * c.n) + size(c.n + j), c.k, i);
          }
          activations.push_back(gate / (1 + std::exp(-gate)) * up);
        }
        for (int i = 0; i < c.k; ++i) {
          double sum = 0, sum_size = 0;
          for (int j = 0; j < c.n; ++j) {
            const double term =
                activations[size(j)] * weight_of(w2, bytes2, scale2, size(expert, c.k) + size(i), c.n, j);
            sum += term;
            sum_size += std::abs(term);
          }
          want[size(i)] += weights[pair] * sum;
          // Activations are rounded, then each choice's row.
          bound[size(i)] += std::abs(weights[pair]) * (sum_size + std::abs(sum)) * unit;
        }
      }
      for (int i = 0; i < stride; ++i) {
        const T got = out[size(t, stride) + size(i)];
        if (i >= c.k) {
          CHECK_EQ(got.bits, 0x7fff);
          continue;
        }
        const double error = std::abs(to_float(got) - want[size(i)]);
        if (!(error <= bound[size(i)] * 1.02 + std::abs(want[size(i)]) * unit + 1e-6)) {
          check::fail(__FILE__, __LINE__, name, ": token ", t, ", channel ", i, ": got ", to_float(got), ", want ",
                      want[size(i)], " within ", bound[size(i)]);
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

TEST(a_mixture_is_the_weighed_sum_of_its_experts) {
  for (const int tile_rows : {0, 8, 32, 64, 128}) {
    for (const bool has_int8_weights : {false, true}) {
      Case c{11, 3, 5, 24, 40, has_int8_weights};
      c.tile_rows = tile_rows;
      check_case<Bf16>(c, concat("bf16, tiles of ", tile_rows, has_int8_weights ? ", int8" : ""));
      check_case<Fp16>(c, concat("fp16, tiles of ", tile_rows, has_int8_weights ? ", int8" : ""));
    }
  }
}

TEST(any_number_of_tokens) {
  for (const int n_tokens : {1, 2, 7, 8, 9, 33, 100}) {
    check_case<Bf16>({n_tokens, 2, 4, 16, 24}, concat(n_tokens, " tokens"));
    check_case<Bf16>({n_tokens, 1, 60, 8, 16, true}, concat(n_tokens, " tokens of one choice, 60 experts"));
  }
  check_case<Bf16>({700, 6, 8, 8, 8}, "more pairs than one block sorts");
}

TEST(experts_that_are_elsewhere_add_nothing) {
  for (const int tile_rows : {8, 32}) {
    Case c{20, 4, 6, 16, 24, false, 24};
    c.tile_rows = tile_rows;
    check_case<Bf16>(c, "6 of 24 experts");
    c.has_bad_ids = true;
    check_case<Bf16>(c, "6 of 24 experts, ids that are none");
    c.n_ids = 0;
    check_case<Bf16>(c, "ids that are none");
  }
}

TEST(tokens_without_an_expert_are_zero) {
  Problem<Bf16> problem({3, 2, 4, 16, 24});
  std::fill(problem.ids.begin(), problem.ids.end(), -1);
  problem.run();
  problem.check("nobody");
  for (std::size_t i = 0; i < 24; ++i) CHECK_EQ(problem.out[i].bits, 0);
}

TEST(a_token_alone_needs_no_sort) {
  Case c{1, 4, 6, 16, 24, false, 24};
  check_case<Bf16>(c, "6 of 24 experts");
  c.has_bad_ids = true;
  check_case<Bf16>(c, "6 of 24 experts, ids that are none");
  Problem<Bf16> problem({1, 3, 4, 16, 24, true});
  problem.ids = {2, 2, 1};
  problem.run();
  problem.check("an expert twice");
}

TEST(all_tokens_may_choose_the_same_experts) {
  Problem<Bf16> problem({70, 2, 9, 16, 24});
  for (std::size_t i = 0; i < problem.ids.size(); ++i) problem.ids[i] = i % 2 == 0 ? 7 : 2;
  problem.run();
  problem.check("two experts");
}

TEST(with_a_chosen_tile_a_token_gives_the_same_bits_alone_and_in_a_batch) {
  for (const int tile_rows : kProductTileRows) {
    Case c{21, 3, 5, 16, 72};
    c.tile_rows = tile_rows;
    Problem<Bf16> batch(c), alone(c);
    batch.run();
    const std::size_t token = 13, row = token * static_cast<std::size_t>(batch.stride);
    alone.c.n_tokens = 1;
    alone.hidden.erase(alone.hidden.begin(), alone.hidden.begin() + static_cast<std::ptrdiff_t>(row));
    alone.ids.erase(alone.ids.begin(), alone.ids.begin() + token * 3);
    alone.weights.erase(alone.weights.begin(), alone.weights.begin() + token * 3);
    alone.run();
    for (std::size_t i = 0; i < 72; ++i) CHECK_EQ(alone.out[i].bits, batch.out[row + i].bits);
  }
}

TEST(no_order_of_threads_changes_a_bit) {
  for (const int tile_rows : {8, 64}) {
    Case c{19, 3, 4, 16, 72};
    c.tile_rows = tile_rows;
    Problem<Bf16> first(c);
    first.run();
    for (const Order& order : {Order{Order::Kind::descending, 0}, Order{Order::Kind::shuffled, 5}}) {
      set_host_order(order);
      Problem<Bf16> again(c);
      again.run();
      set_host_order({});
      for (std::size_t i = 0; i < first.out.size(); ++i) CHECK_EQ(again.out[i].bits, first.out[i].bits);
    }
  }
}

TEST(the_result_may_take_the_place_of_what_went_in) {
  Problem<Bf16> problem({20, 3, 5, 16, 24}), in_place({20, 3, 5, 16, 24});
  problem.run();
  FusedMoeLaunch l = in_place.make_launch();
  l.out = in_place.hidden.data();
  in_place.run(l);
  for (std::size_t i = 0; i < problem.out.size(); ++i) CHECK_EQ(in_place.hidden[i].bits, problem.out[i].bits);
}

TEST(no_tokens_are_nothing_to_do) {
  Problem<Bf16> problem({0, 2, 4, 16, 24});
  problem.run();
}

TEST(what_no_kernel_was_compiled_for_is_refused) {
  const auto refused = [](const char* part, const auto& change) {
    Problem<Bf16> problem({3, 2, 4, 16, 24});
    FusedMoeLaunch l = problem.make_launch();
    change(l);
    CHECK_THROWS(std::invalid_argument, part, fused_moe(l, nullptr));
  };
  refused("n and k must be positive multiples of 8, got 20 and 24", [](auto& l) { l.n = 20; });
  refused("top_k must be positive, got 0", [](auto& l) { l.top_k = 0; });
  refused("below 2^31, got 2000000000 times 2", [](auto& l) { l.n_tokens = 2000000000; });
  refused("n_experts must be 1 to 1024, got 0", [](auto& l) { l.n_experts = 0; });
  refused("without an expert_map n_ids must be the 4 experts, got 8", [](auto& l) { l.n_ids = 8; });
  refused("tile_rows must be 8, 32, 64 or 128, got 5", [](auto& l) { l.tile_rows = 5; });
  refused("rows must be bfloat16 or float16, got int8", [](auto& l) { l.dtype = Dtype::s8; });
  refused("weights must be bfloat16 like the rows, or int8, got fp8", [](auto& l) { l.weight_dtype = Dtype::fp8; });
  refused("int8 weights need scales", [](auto& l) { l.weight_dtype = Dtype::s8; });
  refused("8 elements apart, got rows 30 apart", [](auto& l) { l.out_stride = 30; });
  refused("8 elements apart, got 30 and", [](auto& l) { l.hidden_stride = 30; });
  refused("workspace must be aligned to 16 bytes", [](auto& l) { l.workspace = reinterpret_cast<void*>(8); });
}

}  // namespace
