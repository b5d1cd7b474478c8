#include "unpack_weights_launch.h"

#include "unpack_weights.h"

namespace llm_decoder {
namespace gpu {
namespace {

constexpr char kPlace[] = "unpack_weights";

void check(const UnpackWeightsLaunch& l) {
  check_arg(l.n_rows >= 0 && l.n_rows < std::int64_t{1} << 31 && l.n >= 1 && l.k >= 1, kPlace,
            "n_rows must be 0 to 2^31 - 1, n and k at least 1, got ", l.n_rows, ", ", l.n, " and ", l.k);
  check_arg(l.ids != nullptr || (l.begin >= 0 && l.begin + l.n_rows <= l.n), kPlace, "rows must be within [0, ", l.n,
            "), got ", l.n_rows, " from ", l.begin, " on");
  check_arg(reinterpret_cast<std::uintptr_t>(l.w) % 16 == 0, kPlace,
            "packed weights must be aligned to 16 bytes; place them so");
}

template <class H, GpuWeightFormat format>
void run(const UnpackWeightsLaunch& l, Stream stream) {
  if (l.n_rows == 0) return;
  UnpackWeightsArgs args;
  args.w = static_cast<const std::uint32_t*>(static_cast<const void*>(l.w));
  args.scale = l.scale;
  args.ids = l.ids;
  args.begin = l.begin;
  args.out = row_array(l.out);
  args.n_rows = static_cast<int>(l.n_rows);
  args.n = l.n;
  args.k = l.k;
  LaunchShape shape;
  shape.n_threads = kUnpackThreads;
  if (l.ids != nullptr) {
    shape.grid = {args.n_rows, static_cast<int>(ceil_div(l.k, kEight * kUnpackThreads)), 1};
  } else {
    const std::int64_t first = l.begin / kUnpackTile, end = ceil_div(l.begin + l.n_rows, kUnpackTile);
    shape.grid = {static_cast<int>(end - first),
                  static_cast<int>(ceil_div(n_brick_columns(format, l.k), unpack_bricks(format))), 1};
  }
  launch<unpack_weights_kernel<H, format>>(stream, shape, args);
}

}  // namespace

void unpack_weights(const UnpackWeightsLaunch& l, Stream stream) {
  check(l);
  const bool is_half = l.format == GpuWeightFormat::half;
  if (is_half) with_half(l.dtype, kPlace, "half weights", [](auto) {});
  with_half_among({{"weights", is_half ? l.dtype : Dtype::f32}, {"out", l.out.dtype}}, kPlace, [&](auto tag) {
    using H = typename decltype(tag)::type;
    switch (l.format) {
      case GpuWeightFormat::half:
        return run<H, GpuWeightFormat::half>(l, stream);
      case GpuWeightFormat::w8:
        return run<H, GpuWeightFormat::w8>(l, stream);
      case GpuWeightFormat::w4:
        return run<H, GpuWeightFormat::w4>(l, stream);
      case GpuWeightFormat::f8:
        return run<H, GpuWeightFormat::f8>(l, stream);
    }
  });
}

}  // namespace gpu
}  // namespace llm_decoder
