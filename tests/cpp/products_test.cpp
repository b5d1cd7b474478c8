#include "products.h"

#include <algorithm>
#include <array>
#include <string>
#include <vector>

#include "check.h"

namespace {

using namespace llm_decoder;

// Rows and weights of any bytes; `out` of multiply() over a pool, and of one call of the kernel for all panels.
struct Problem {
  std::int32_t m, n, k;
  std::vector<std::int8_t> a;
  std::vector<float> a_scale, w_scale;
  std::vector<std::int32_t> a_sum;
  std::vector<std::uint8_t> w_store;
  std::uint8_t* w;

  Problem(std::int32_t m_, std::int32_t n_, std::int32_t k_)
      : m(m_),
        n(n_),
        k(k_),
        a(size(m, k_padded(k))),
        a_scale(size(m, 1), 0.5f),
        w_scale(size(n, 1), 0.25f),
        a_sum(size(m, 1)),
        w_store(static_cast<std::size_t>(packed_w8_bytes(n, k)) + 64) {
    std::uint32_t state = 1;
    const auto next = [&] { return (state = state * 1664525u + 1013904223u) >> 24; };
    w = w_store.data() + (64 - reinterpret_cast<std::uintptr_t>(w_store.data()) % 64) % 64;
    std::generate_n(w, packed_w8_bytes(n, k), [&] { return static_cast<std::uint8_t>(std::max(1u, next())); });
    for (std::int32_t row = 0; row < m; ++row) {
      for (std::int32_t i = 0; i < k; ++i) {
        std::int8_t& q = a[size(row, k_padded(k)) + static_cast<std::size_t>(i)];
        q = static_cast<std::int8_t>(static_cast<int>(next() % 255) - 127);
        a_sum[static_cast<std::size_t>(row)] += q;
      }
    }
  }

  static std::size_t size(std::int64_t rows, std::int64_t columns) { return static_cast<std::size_t>(rows * columns); }

  std::vector<float> over(ThreadPool& pool, const CpuKernels& kernels) {
    std::vector<float> out(size(m, n), -1.0f);
    Matrix matrix;
    matrix.layout = WeightView::Layout::w8;
    matrix.data = w;
    matrix.scales = w_scale.data();
    matrix.n = n;
    matrix.k = k;
    Operand in;
    in.quantized = {a.data(), k_padded(k), a_scale.data(), a_sum.data()};
    multiply(kernels, pool, matrix, in, m, {out.data(), n, false}, {});
    return out;
  }

  std::vector<float> at_once(const CpuKernels& kernels) {
    std::vector<float> out(size(m, n), -2.0f);
    GemmW8Args args;
    args.a = a.data();
    args.a_stride = k_padded(k);
    args.a_scale = a_scale.data();
    args.a_sum = a_sum.data();
    args.w = w;
    args.w_scale = w_scale.data();
    args.out = out.data();
    args.out_stride = n;
    args.m = m;
    args.n = n;
    args.k = k;
    kernels.gemm_w8(args, 0, static_cast<std::int32_t>(n_panels(n)));
    return out;
  }
};

// The rows of the last problem are more than one block of them.
TEST(a_product_split_among_threads_is_the_product_of_one_call) {
  for (const char* isa : {"generic", "auto"}) {
    const CpuKernels& kernels = select_cpu_kernels(isa);
    for (int n_threads : {1, 2, 3, 5}) {
      ThreadPool pool(n_threads);
      for (auto [m, n, k] :
           {std::array{1, 3, 5}, {1, 1000, 64}, {8, 576, 36}, {28, 300, 40}, {29, 17, 40}, {530, 70, 2050}}) {
        if (kernels.name == std::string("generic") && m > 100) continue;
        Problem problem(m, n, k);
        CHECK(problem.over(pool, kernels) == problem.at_once(kernels));
      }
    }
  }
}

}  // namespace
