// Dense products behind their seam, ours and cuBLASLt's, against the formula in double. Without a device the library's
// place is taken by cublaslt_double.cpp.
#include "dense_gemm.h"

#include <cmath>
#include <string>

#include "check.h"
#include "cuda_errors.h"
#include "row_rig.h"

namespace {

using namespace rig;

std::unique_ptr<DenseGemm> make_library() {
#if defined(LLM_DECODER_ON_DEVICE)
  return make_cublaslt_gemm({});
#else
  return make_cublaslt_gemm({LLM_DECODER_CUBLASLT_DOUBLE});
#endif
}

struct Case {
  int m, n, k;
  Dtype dtype, out_dtype;
  bool has_bias;
};

// bias_offset: where the bias begins in its memory.
void check_case(DenseGemm& gemm, const Case& c, int bias_offset = 0) {
  Rows a(c.m, c.k, c.dtype, 8), w(c.n, c.k, c.dtype, 0), bias(1, c.n, c.out_dtype, 0, bias_offset);
  Rows out(c.m, c.n, c.out_dtype, 8 + (8 - c.n % 8) % 8);
  a.fill_normal(1, 1.0f);
  w.fill_normal(2, 0.3f);
  bias.fill_normal(3, 2.0f);
  GemmLaunch l;
  l.a = a.tensor();
  l.w = w.tensor().data;
  if (c.has_bias) l.bias = bias.tensor().data;
  l.out = out.out();
  l.m = c.m;
  l.n = c.n;
  l.k = c.k;
  std::vector<std::uint8_t> workspace(index(gemm.workspace_bytes()));
  gemm.run(l, workspace.data(), nullptr);
  for (int row = 0; row < c.m; ++row) {
    for (int n = 0; n < c.n; ++n) {
      double want = c.has_bias ? bias.get(0, n) : 0.0, size = std::abs(want);
      for (int i = 0; i < c.k; ++i) {
        const double term = double{a.get(row, i)} * w.get(n, i);
        want += term;
        size += std::abs(term);
      }
      const double got = out.get(row, n);
      if (!(std::abs(got - want) <= 1.01 * out.rounding() * std::abs(want) + 1e-6 * size)) {
        check::fail(__FILE__, __LINE__, gemm.name(), ", ", c.m, " x ", c.n, " x ", c.k, " in ", dtype_name(c.dtype),
                    " to ", dtype_name(c.out_dtype), ": row ", row, ", output ", n, ": got ", got, ", want ", want);
      }
    }
  }
  CHECK(out.padding_is_whole());
}

void check_all(DenseGemm& gemm, int n) {
  for (const Dtype dtype : {Dtype::bf16, Dtype::f16}) {
    for (const bool has_bias : {false, true}) {
      for (const Dtype out_dtype : {dtype, Dtype::f32}) check_case(gemm, {70, n, 136, dtype, out_dtype, has_bias});
    }
  }
}

TEST(ours_is_the_formula_for_outputs_in_eights) {
  const auto gemm = make_our_gemm();
  CHECK_EQ(gemm->workspace_bytes(), 0);
  CHECK(gemm->takes(72) && !gemm->takes(67));
  check_all(*gemm, 72);
}

TEST(cublaslt_is_asked_for_the_same) {
  const auto gemm = make_library();
  CHECK_EQ(std::string(gemm->name()), "cublaslt");
  CHECK(gemm->takes(67));
  check_all(*gemm, 72);
  check_all(*gemm, 67);
}

TEST(what_is_chosen_for_sizes_serves_other_rows_and_biases) {
  const auto gemm = make_library();
  for (int i = 0; i < 3; ++i) check_case(*gemm, {9, 24, 40, Dtype::bf16, Dtype::bf16, true}, 8 * i);
  check_case(*gemm, {9, 24, 40, Dtype::bf16, Dtype::bf16, false});
  check_case(*gemm, {10, 24, 40, Dtype::bf16, Dtype::bf16, false});
}

HOST_TEST(what_the_library_cannot_is_said_with_what_can) {
  const auto gemm = make_library();
  CHECK_THROWS(std::runtime_error,
               "[cuBLASLt] it has no algorithm for 13 x 24 x 40 in bfloat16 to float32; LLM_DECODER_GEMM=ours",
               check_case(*gemm, {13, 24, 40, Dtype::bf16, Dtype::f32, false}));
}

#if !defined(LLM_DECODER_ON_DEVICE)  // which is not lost when it is told to
TEST(a_device_that_is_lost_where_the_library_notices_it_first_is_lost) {
  const auto gemm = make_library();
  const Case failing{14, 24, 40, Dtype::bf16, Dtype::bf16, false};
  CHECK_THROWS(std::runtime_error, "[cuBLASLt] cublasLtMatmul: CUBLAS_STATUS_EXECUTION_FAILED",
               check_case(*gemm, failing));
  set_host_fault(700);
  CHECK_THROWS(DeviceLost, "[cuBLASLt] cudaError", check_case(*gemm, failing));
  set_host_fault(0);
}
#endif

TEST(a_library_that_is_not_there_is_said_with_how_to_get_it) {
  CHECK_THROWS(std::runtime_error, "`pip install 'llm_decoder[cuda]'` brings it",
               make_cublaslt_gemm({"/nowhere/at.all"}));
  CHECK_THROWS(std::runtime_error, "/nowhere/at.all", make_cublaslt_gemm({"/nowhere/at.all"}));
}

}  // namespace
