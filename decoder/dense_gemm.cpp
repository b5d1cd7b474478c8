#include "dense_gemm.h"

#include <cstdlib>

#include "llm_decoder/errors.h"
#include "moe_product_launch.h"

namespace llm_decoder {
namespace gpu {
namespace {

class OurGemm : public DenseGemm {
 public:
  const char* name() const override { return "ours"; }

  bool takes(int n) const override { return n % 8 == 0; }  // rows of out leave in vectors

  std::int64_t workspace_bytes() const override { return 0; }

  void run(const GemmLaunch& l, void*, Stream stream) override {
    GroupedProductLaunch product;
    product.dtype = product.weight_dtype = l.a.dtype;
    GroupedProductArgs& args = product.args;
    args.a = l.a.data;
    args.a_stride = l.a.stride;
    args.w = l.w;
    args.out = l.out.data;
    args.out_stride = l.out.stride;
    args.out_is_float = l.out.dtype == Dtype::f32;
    args.bias = l.bias;
    args.n_rows = l.m;
    args.n = l.n;
    args.k = l.k;
    dense_product(product, stream);
  }
};

}  // namespace

std::unique_ptr<DenseGemm> make_our_gemm() { return std::make_unique<OurGemm>(); }

std::unique_ptr<DenseGemm> make_gemm(const std::vector<std::string>& libraries) {
  constexpr char kPlace[] = "LLM_DECODER_GEMM";
#if defined(LLM_DECODER_HOST_MACHINE)
  constexpr bool kHasDevice = false;
#else
  constexpr bool kHasDevice = true;
#endif
  const char* const chosen = std::getenv(kPlace);
  const std::string name = chosen != nullptr && *chosen != '\0' ? chosen : kHasDevice ? "cublaslt" : "ours";
  check_arg(name == "ours" || name == "cublaslt", kPlace, "must be ours or cublaslt, got ", name);
  if (name == "ours") return make_our_gemm();
#if defined(LLM_DECODER_HOST_MACHINE)
  (void)libraries;
  check_arg(false, kPlace, "the host machine has no device for cublaslt; unset it, or say ours");
  return nullptr;
#else
  return make_cublaslt_gemm(libraries);
#endif
}

}  // namespace gpu
}  // namespace llm_decoder
