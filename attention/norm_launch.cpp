#include "norm_launch.h"

#include "norm.h"

namespace llm_decoder {
namespace gpu {
namespace {

template <bool subtracts_mean>
void run_norm(const NormLaunch& l, const char* place, Stream stream) {
  const LaunchShape shape = checked_held_row_shape(l.n_rows, l.n_cols, place);
  check_arg((l.out.data != nullptr) != (l.quantized.q != nullptr), place,
            "the result must have one place to go, out or quantized, got ", l.out.data != nullptr ? "both" : "neither");
  with_half_among({{"x", l.x.dtype},
                   {"residual", l.residual.dtype},
                   {"weight", l.weight.dtype},
                   {"bias", l.bias.dtype},
                   {"out", l.out.dtype}},
                  place, [&](auto tag) {
                    using H = typename decltype(tag)::type;
                    if (l.n_rows == 0) return;
                    NormArgs args;
                    args.x = row_array(l.x);
                    args.residual = row_array(l.residual);
                    args.weight = row_array(l.weight);
                    args.bias = row_array(l.bias);
                    args.out = row_array(l.out);
                    args.quantized = quantized_rows(l.quantized);
                    args.n_rows = l.n_rows;
                    args.n_cols = l.n_cols;
                    args.eps = l.eps;
                    gpu::launch<norm_rows_kernel<H, subtracts_mean>>(stream, shape, args);
                  });
}

}  // namespace

void rms_norm(const NormLaunch& launch, Stream stream) { run_norm<false>(launch, "rms_norm", stream); }
void layer_norm(const NormLaunch& launch, Stream stream) { run_norm<true>(launch, "layer_norm", stream); }

}  // namespace gpu
}  // namespace llm_decoder
