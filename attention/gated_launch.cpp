#include "gated_launch.h"

namespace llm_decoder {
namespace gpu {

void gated(const GatedLaunch& l, Stream stream) {
  constexpr char kPlace[] = "gated";
  check_arg((l.out.data != nullptr) != (l.quantized.q != nullptr), kPlace,
            "the result must have one place to go, out or quantized, got ", l.out.data != nullptr ? "both" : "neither");
  check_arg(l.n_rows >= 0 && l.n_rows < std::int64_t{1} << 31 && l.n_cols >= 1, kPlace,
            "n_rows must be 0 to 2^31 - 1 and n_cols at least 1, got ", l.n_rows, " and ", l.n_cols);
  const LaunchShape held = l.out.data == nullptr ? checked_held_row_shape(l.n_rows, l.n_cols, kPlace) : LaunchShape{};
  with_half_among({{"x", l.x.dtype}, {"out", l.out.dtype}}, kPlace, [&](auto tag) {
    using H = typename decltype(tag)::type;
    if (l.n_rows == 0) return;
    GatedArgs args;
    args.x = row_array(l.x);
    args.is_gated = l.is_gated;
    args.activation = l.activation;
    args.out = row_array(l.out);
    args.quantized = quantized_rows(l.quantized);
    args.n_rows = l.n_rows;
    args.n_cols = l.n_cols;
    if (l.is_gated) {
      const auto* const up = static_cast<const std::byte*>(l.x.data) + l.n_cols * element_bytes(l.x.dtype);
      args.up = row_array(RowTensor{up, l.x.dtype, l.x.stride});
    }
    if (l.out.data == nullptr) return gpu::launch<gated_quantized_rows_kernel<H>>(stream, held, args);
    const auto n_chunks = static_cast<int>(ceil_div(l.n_cols, kEight * kGatedThreads));
    gpu::launch<gated_rows_kernel<H>>(stream, {{static_cast<int>(l.n_rows), n_chunks, 1}, kGatedThreads, 0}, args);
  });
}

}  // namespace gpu
}  // namespace llm_decoder
