// Products of any number of rows on the host machine, with weights that are held once: against the formula in double,
// as few rows and as many, in one slice and in several.
#include "gpu_products.h"

#include <cmath>
#include <cstdlib>
#include <string>

#include "check.h"
#include "gated_launch.h"
#include "packed_weights_rig.h"
#include "row_rig.h"

namespace {

using namespace rig;

struct Case {
  GpuWeightFormat format;
  int m, n, k;
  Dtype out_dtype;
  bool has_bias = true;
  GpuProductsOptions options = {};
};

// Rows past k are NaN, and so is out past n.
template <class T>
struct Problem {
  explicit Problem(const Case& c_)
      : c(c_),
        weights(c.format, c.n, c.k, 1),
        a(c.m, c.k, kDtypeOf<T>, 8),
        out(c.m, c.n, c.out_dtype, 8 + (8 - c.n % 8) % 8),
        products(kDtypeOf<T>, make_our_gemm(), nullptr, c.options) {
    a.fill_normal(2, 1.0f);
    for (int row = 0; row < c.n; ++row) {
      scale.push_back(c.format == GpuWeightFormat::half ? 1.0f : 0.01f + 0.001f * static_cast<float>(row % 7));
      bias.push_back(c.has_bias ? 0.5f * static_cast<float>(row % 11) - 2.0f : 0.0f);
    }
    matrix = products.load("matrix", source());
    products.finalize(c.m);
  }

  GpuMatrixSource source() const {
    GpuMatrixSource s;
    s.format = c.format;
    s.n = c.n;
    s.k = c.k;
    s.packed = weights.packed;
    if (c.format != GpuWeightFormat::half) s.scale = scale;
    if (c.has_bias) s.bias = bias;
    return s;
  }

  // weight_error: relative, of what weights became on their way
  void check(double weight_error) {
    const double unit = out.rounding();
    for (int row = 0; row < c.m; ++row) {
      for (int n = 0; n < c.n; ++n) {
        double sum = bias[at(n)], size = std::abs(sum);
        for (int i = 0; i < c.k; ++i) {
          const double term = double{a.get(row, i)} * weights.values[at(n * c.k + i)] * scale[at(n)];
          sum += term;
          size += std::abs(term);
        }
        const double got = out.get(row, n);
        if (!(std::abs(got - sum) <= 1.01 * unit * std::abs(sum) + (weight_error + 1e-6) * size)) {
          check::fail(__FILE__, __LINE__, name_of(c.format), ", ", c.m, " x ", c.n, " x ", c.k, " as ",
                      dtype_name(c.out_dtype), ": row ", row, ", output ", n, ": got ", got, ", want ", sum);
        }
      }
    }
    CHECK(out.padding_is_whole());
  }

  void multiply() { products.multiply(matrix, a.tensor(), out.out(), c.m); }

  const Case c;
  PackedWeights<T> weights;
  std::vector<float> scale, bias;
  Rows a, out;
  GpuProducts products;
  GpuMatrix matrix;
};

constexpr double kHalfWeights[] = {0x1p-8, 0x1p-11};  // what a scaled weight loses as bf16, as fp16: half a last place

template <class T>
void check_case(const Case& c) {
  Problem<T> problem(c);
  problem.multiply();
  const bool is_exact = c.m <= c.options.few_rows || c.n % 8 != 0 || c.format == GpuWeightFormat::half;
  problem.check(is_exact ? 0 : kHalfWeights[std::is_same_v<T, Bf16> ? 0 : 1]);
}

GpuProductsOptions few(int rows) {
  GpuProductsOptions options;
  options.few_rows = rows;
  return options;
}

TEST(few_rows_and_many_are_the_same_product) {
  for (const GpuWeightFormat format : kFormats) {
    for (const Dtype out : {Dtype::bf16, Dtype::f32}) {
      for (const int m : {1, 4, 5, 70}) check_case<Bf16>({format, m, 72, 136, out, true, few(4)});
      check_case<Bf16>({format, 66, 40, 64, out, false});
    }
    check_case<Fp16>({format, 9, 136, 264, Dtype::f16, true, few(8)});
    check_case<Fp16>({format, 9, 136, 264, Dtype::f32, false, few(8)});
  }
}

TEST(outputs_that_no_dense_product_makes_are_made_of_few_rows) {
  for (const GpuWeightFormat format : kFormats) {
    check_case<Bf16>({format, 130, 67, 40, Dtype::f32, true});
    check_case<Fp16>({format, 65, 3, 72, Dtype::f16, false});
  }
}

TEST(weights_are_unpacked_in_slices) {
  for (const GpuWeightFormat format : kFormats) {
    GpuProductsOptions options = few(4);
    options.slice_bytes = 1;  // 64 rows at once
    for (const Dtype out : {Dtype::bf16, Dtype::f32}) {
      check_case<Bf16>({format, 7, 200, 72, out, true, options});
      check_case<Bf16>({format, 7, 128, 72, out, false, options});
    }
    options.slice_bytes = 3 * 64 * 72 * 2 - 1;  // 128 rows
    check_case<Bf16>({format, 7, 200, 72, Dtype::bf16, true, options});
  }
}

TEST(scratch_is_known_before_and_shared_by_all_matrices) {
  const int n = 512, k = 64;
  const PackedWeights<Bf16> large(GpuWeightFormat::half, n, k, 1), small(GpuWeightFormat::w8, 8, 8, 2);
  const std::vector<float> scale(8, 1.0f);
  GpuMatrixSource of_large, of_small;
  of_large.n = n;
  of_large.k = k;
  of_large.packed = large.packed;
  of_small.format = GpuWeightFormat::w8;
  of_small.n = of_small.k = 8;
  of_small.packed = small.packed;
  of_small.scale = scale;
  GpuProducts products(Dtype::bf16, make_our_gemm(), nullptr);
  const GpuMatrix matrix = products.load("large", of_large), other = products.load("small", of_small);
  CHECK_EQ(matrix.n_bytes(), packed_gpu_bytes(GpuWeightFormat::half, n, k));
  CHECK_EQ(other.n_bytes(), packed_gpu_bytes(GpuWeightFormat::w8, 8, 8) + 8 * 4);
  products.finalize(64);
  const std::int64_t of_few = products.scratch_bytes();
  CHECK_EQ(of_few, 4 * (small_product_partials(matrix.plan, 64, n) + small_product_counters(n)));
  products.finalize(65);
  CHECK_EQ(products.scratch_bytes(), of_few + 2 * n * k);
}

TEST(where_all_rows_are_few_a_row_gives_the_same_bits_in_any_company) {
  for (const GpuWeightFormat format : kFormats) {
    Problem<Bf16> all({format, 70, 72, 136, Dtype::f32, true, few(1 << 30)});
    all.multiply();
    Rows alone(1, 72, Dtype::f32, 8);
    for (const int row : {0, 63, 64, 69}) {
      RowTensor a = all.a.tensor();
      a.data = static_cast<const std::uint16_t*>(a.data) + row * a.stride;
      all.products.multiply(all.matrix, a, alone.out(), 1);
      for (int n = 0; n < 72; ++n) CHECK_EQ(alone.get(0, n), all.out.get(row, n));
    }
  }
}

// Where the halves are whole bricks few rows take one kernel, else two; many rows take a dense product before it.
TEST(gated_products_are_the_bits_of_a_product_and_its_activation) {
  for (const GpuWeightFormat format : kFormats) {
    for (const int n : {80, 256}) {
      for (const int few_rows : {2, 1 << 30}) {
        Problem<Bf16> problem({format, 5, n, 72, Dtype::bf16, true, few(few_rows)});
        problem.multiply();
        Rows want(5, n / 2, Dtype::bf16, 8), got(5, n, Dtype::bf16, 8);
        GatedLaunch l;
        l.x = problem.out.tensor();
        l.out = want.out();
        l.n_rows = 5;
        l.n_cols = n / 2;
        gated(l, nullptr);
        problem.products.multiply_gated(problem.matrix, problem.a.tensor(), got.out(), 5);
        CHECK(got.padding_is_whole());
        for (int row = 0; row < 5; ++row) {
          for (int i = 0; i < n / 2; ++i) CHECK_EQ(got.get(row, i), want.get(row, i));
          const bool is_one_kernel = n == 256 && few_rows > 2;
          CHECK_EQ(std::isnan(got.get(row, n - 1)), is_one_kernel);
        }
      }
    }
  }
}

TEST(an_embedding_is_rows_of_the_same_weights) {
  const std::vector<std::int32_t> ids = {4, 0, 71, -1, 72};
  for (const GpuWeightFormat format : kFormats) {
    for (const Dtype dtype : {Dtype::f32, Dtype::bf16}) {
      Problem<Bf16> problem({format, 1, 72, 40, Dtype::f32, false});
      Rows out(static_cast<int>(ids.size()), 40, dtype, 8);
      problem.products.embed(problem.matrix, ids.data(), static_cast<std::int64_t>(ids.size()), out.out());
      for (int i = 0; i < static_cast<int>(ids.size()); ++i) {
        const int id = ids[at(i)];
        for (int column = 0; column < 40; ++column) {
          const bool is_there = id >= 0 && id < 72;
          const float value = is_there ? static_cast<float>(problem.weights.values[at(id * 40 + column)]) : 0.0f;
          CHECK_EQ(out.get(i, column), out.rounded(is_there ? value * problem.scale[at(id)] : 0.0f));
        }
      }
    }
  }
}

TEST(weights_that_contradict_themselves_are_refused_by_name) {
  Problem<Bf16> problem({GpuWeightFormat::w8, 2, 64, 72, Dtype::f32});
  const auto expect = [&](const char* part, const auto& spoil) {
    GpuMatrixSource s = problem.source();
    spoil(s);
    CHECK_THROWS(std::invalid_argument, part, problem.products.load("layer_3/attn_o", s));
  };
  expect("[layer_3/attn_o] n must be positive and k a positive multiple of 8, got 64 and 71",
         [](GpuMatrixSource& s) { s.k = 71; });
  expect("packed weights of 64 x 72 must have 8192 bytes, got 8191", [](GpuMatrixSource& s) { --s.packed.size; });
  expect("scale must have 64 values", [](GpuMatrixSource& s) { s.scale = {}; });
  expect("bias must have 64 values or none, got 63", [](GpuMatrixSource& s) { --s.bias.size; });
}

TEST(rows_that_do_not_fit_are_refused) {
  Problem<Bf16> problem({GpuWeightFormat::half, 2, 64, 72, Dtype::f32});
  RowTensor a = problem.a.tensor();
  CHECK_THROWS(std::invalid_argument, "0 to 2 rows, as finalize was told, got 3",
               problem.products.multiply(problem.matrix, a, problem.out.out(), 3));
  a.dtype = Dtype::f16;
  CHECK_THROWS(std::invalid_argument, "rows must be bfloat16, got float16",
               problem.products.multiply(problem.matrix, a, problem.out.out(), 1));
  CHECK_THROWS(std::invalid_argument,
               "[GpuProducts.multiply_gated] gate and up must be of one size and become bfloat16, "
               "got 64 outputs and float32",
               problem.products.multiply_gated(problem.matrix, problem.a.tensor(), problem.out.out(), 2));
  CHECK_THROWS(std::invalid_argument, "rows must be bfloat16 or float16, got int8",
               GpuProducts(Dtype::s8, make_our_gemm(), nullptr));
}

HOST_TEST(the_library_of_dense_products_is_ours_or_named) {
  unsetenv("LLM_DECODER_GEMM");
  CHECK_EQ(std::string(make_gemm({})->name()), "ours");
  setenv("LLM_DECODER_GEMM", "ours", 1);
  CHECK_EQ(std::string(make_gemm({})->name()), "ours");
  setenv("LLM_DECODER_GEMM", "mkl", 1);
  CHECK_THROWS(std::invalid_argument, "[LLM_DECODER_GEMM] must be ours or cublaslt, got mkl", make_gemm({}));
  setenv("LLM_DECODER_GEMM", "cublaslt", 1);
  CHECK_THROWS(std::invalid_argument, "no device for cublaslt", make_gemm({}));
  unsetenv("LLM_DECODER_GEMM");
}

}  // namespace
