#include "merge_states_launch.h"

#include "dtype_tags.h"
#include "llm_decoder/errors.h"

namespace llm_decoder {
namespace gpu {
namespace {

constexpr char kPlace[] = "merge_states";

template <auto kernel, class Args>
void run(const Args& args, Stream stream) {
  const std::int64_t n_pairs = std::int64_t{args.n_tokens} * args.n_heads;
  if (n_pairs == 0) return;
  const int n_blocks = static_cast<int>(ceil_div(n_pairs, kMergeThreads / kWarpSize));
  gpu::launch<kernel>(stream, {{n_blocks, 1, 1}, kMergeThreads, 0}, args);
}

}  // namespace

void merge_states(Dtype out_dtype, const MergeStatesArgs& args, Stream stream) {
  with_half(out_dtype, kPlace, "out",
            [&](auto tag) { run<merge_states_kernel<typename decltype(tag)::type>>(args, stream); });
}

void merge_parts(Dtype dtype, const MergePartsArgs& args, Stream stream) {
  check_arg(args.n_parts > 0 && args.n_parts <= kMaxParts, kPlace, "there must be 1 to ", kMaxParts, " parts, got ",
            args.n_parts);
  if (dtype == Dtype::f32) return run<merge_parts_kernel<float>>(args, stream);
  with_half(dtype, kPlace, "parts",
            [&](auto tag) { run<merge_parts_kernel<typename decltype(tag)::type>>(args, stream); });
}

}  // namespace gpu
}  // namespace llm_decoder
