#include "moe_routing_launch.h"

#include "dtype_tags.h"
#include "llm_decoder/errors.h"

namespace llm_decoder {
namespace gpu {
namespace {

constexpr char kPlace[] = "moe_routing";

template <class T>
void run_class(const MoeRoutingArgs& args, Stream stream) {
  const int n_blocks = static_cast<int>(ceil_div(args.n_tokens, kRoutingThreads / kWarpSize));
  const LaunchShape shape{{n_blocks, 1, 1}, kRoutingThreads, 0};
  if (args.n_experts <= 2 * kWarpSize) return launch<moe_routing_kernel<T, 2>>(stream, shape, args);
  if (args.n_experts <= 8 * kWarpSize) return launch<moe_routing_kernel<T, 8>>(stream, shape, args);
  launch<moe_routing_kernel<T, kMaxRoutedExperts / kWarpSize>>(stream, shape, args);
}

void check(const MoeRoutingArgs& a) {
  check_arg(a.n_tokens >= 0, kPlace, "n_tokens must not be negative, got ", a.n_tokens);
  check_arg(a.n_experts >= 1 && a.n_experts <= kMaxRoutedExperts, kPlace, "n_experts must be 1 to ", kMaxRoutedExperts,
            ", got ", a.n_experts);
  check_arg(a.n_groups >= 1 && a.n_groups <= kMaxExpertGroups && a.n_experts % a.n_groups == 0, kPlace,
            "n_groups must be 1 to ", kMaxExpertGroups, " and divide the ", a.n_experts, " experts, got ", a.n_groups);
  check_arg(a.top_k_groups >= 1 && a.top_k_groups <= a.n_groups, kPlace, "top_k_groups must be 1 to n_groups (",
            a.n_groups, "), got ", a.top_k_groups);
  const int group_size = a.n_experts / a.n_groups;
  check_arg(a.group_best == 1 || (a.group_best == 2 && group_size >= 2), kPlace,
            "group_best must be 1, or 2 where a group has two experts, got ", a.group_best, " with groups of ",
            group_size);
  const int n_available = group_size * a.top_k_groups;
  check_arg(a.top_k >= 1 && a.top_k <= kMaxTopK && a.top_k <= n_available, kPlace, "top_k must be 1 to ", kMaxTopK,
            " and at most the ", n_available, " experts of ", a.top_k_groups, " groups, got ", a.top_k);
}

}  // namespace

void moe_routing(Dtype logits_dtype, const MoeRoutingArgs& args, Stream stream) {
  check(args);
  if (args.n_tokens == 0) return;
  if (logits_dtype == Dtype::f32) return run_class<float>(args, stream);
  check_arg(logits_dtype == Dtype::bf16 || logits_dtype == Dtype::f16, kPlace,
            "logits must be float32, bfloat16 or float16, got ", dtype_name(logits_dtype));
  with_half(logits_dtype, kPlace, "logits", [&](auto tag) { run_class<typename decltype(tag)::type>(args, stream); });
}

}  // namespace gpu
}  // namespace llm_decoder
