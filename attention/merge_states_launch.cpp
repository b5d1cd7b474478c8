#include "merge_states_launch.h"

#include <limits>

#include "check_rows.h"
#include "dtype_tags.h"
#include "llm_decoder/errors.h"

namespace llm_decoder {
namespace gpu {
namespace {

constexpr char kPlace[] = "merge_states";
constexpr std::int64_t kVectorBytes = 16;

void check(const MergeStatesLaunch& l) {
  const MergePartsArgs& a = l.args;
  check_arg(a.n_parts > 0 && a.n_parts <= kMaxParts, kPlace, "there must be 1 to ", kMaxParts, " states, got ",
            a.n_parts);
  check_arg(a.head_dim > 0 && a.head_dim % kChunk == 0 && a.head_dim <= kMaxRowChannels, kPlace,
            "head_dim must be a multiple of ", kChunk, " up to ", kMaxRowChannels, ", got ", a.head_dim);
  constexpr std::int64_t kMaxRows = std::numeric_limits<int>::max() - kMergeThreads;
  check_arg(a.n_heads > 0 && a.n_tokens >= 0 && std::int64_t{a.n_tokens} * a.n_heads <= kMaxRows, kPlace,
            "n_tokens times n_heads must be 0 to ", kMaxRows, ", got ", a.n_tokens, " and ", a.n_heads);
  for (int i = 0; i < a.n_parts; ++i) {
    const StateRows& part = a.parts[i];
    check_rows(kPlace, "a state", part.values, kVectorBytes, {part.token_stride, part.head_stride}, l.dtype);
    check_arg(part.lse != nullptr, kPlace, "the log-sum-exp of a state must be there, got null");
  }
  check_rows(kPlace, "out", a.out, kVectorBytes, {a.out_token_stride, a.out_head_stride}, l.dtype);
}

}  // namespace

void merge_states(const MergeStatesLaunch& l, Stream stream) {
  with_activation(l.dtype, kPlace, "states and out", [&](auto tag) {
    if (l.args.n_tokens == 0) return;
    check(l);
    MergePartsArgs args = l.args;
    args.row_lanes = row_lanes_of(args.head_dim);
    const std::int64_t n_rows = std::int64_t{args.n_tokens} * args.n_heads;
    const auto n_blocks = static_cast<int>(ceil_div(n_rows * args.row_lanes, kMergeThreads));
    gpu::launch<merge_parts_kernel<typename decltype(tag)::type>>(stream, {{n_blocks, 1, 1}, kMergeThreads, 0}, args);
  });
}

void merge_planned_states(Dtype out_dtype, const MergeStatesArgs& args, Stream stream) {
  if (args.n_tokens == 0) return;
  const std::int64_t n_rows = std::int64_t{args.n_tokens} * args.n_heads;
  const auto n_blocks = static_cast<int>(ceil_div(n_rows, kMergeThreads / kWarpSize));
  with_half(out_dtype, kPlace, "out", [&](auto tag) {
    gpu::launch<merge_states_kernel<typename decltype(tag)::type>>(stream, {{n_blocks, 1, 1}, kMergeThreads, 0}, args);
  });
}

}  // namespace gpu
}  // namespace llm_decoder
