#include "paged_attention_launch.h"

#include "dtype_tags.h"
#include "llm_decoder/errors.h"
#include "merge_states_launch.h"
#include "paged_attention_plan.h"
#include "paged_flash_attention.h"

namespace llm_decoder {
namespace gpu {
namespace {

constexpr char kPlace[] = "paged_attention";

// Heads of 256 leave registers and shared memory for half the keys where a warp has rows of its own.
template <class Q, class Kv, int head_dim>
using NarrowTile = FlashTile<Q, Kv, head_dim, 1, 1, 4, 64, 2>;
template <class Q, class Kv, int head_dim>
using WideTile = FlashTile<Q, Kv, head_dim, 1, kWideRows / 16, 1, head_dim <= 128 ? 64 : 32, 2>;

template <class Tile>
void run_items(PagedAttentionArgs args, const PagedAttentionItem* items, int n_items, Stream stream) {
  static_assert(kSplitUnit % Tile::kKeys == 0, "tiles do not cross splits");
  if (n_items == 0) return;
  args.items = items;
  gpu::launch<paged_flash_attention_kernel_fused<Tile>>(
      stream, {{n_items, args.n_kv_heads, 1}, Tile::kThreads, Tile::kSharedBytes}, args);
}

template <class Q, class Kv, int head_dim>
void run_class(const PagedAttentionLaunch& l, Stream stream) {
  static_assert(NarrowTile<Q, Kv, head_dim>::kRows == kNarrowRows && WideTile<Q, Kv, head_dim>::kRows == kWideRows,
                "as planned");
  run_items<NarrowTile<Q, Kv, head_dim>>(l.args, l.narrow, l.n_narrow, stream);
  run_items<WideTile<Q, Kv, head_dim>>(l.args, l.wide, l.n_wide, stream);
}

template <class Q, class Kv>
void run_head_dim(const PagedAttentionLaunch& l, Stream stream) {
  const int head_dim = l.args.head_dim;
  check_arg(head_dim > 0 && head_dim % 8 == 0 && head_dim <= kMaxHeadDim, kPlace,
            "head_dim must be a multiple of 8 up to ", kMaxHeadDim, ", got ", head_dim);
  if (head_dim <= 64) return run_class<Q, Kv, 64>(l, stream);
  if (head_dim <= 128) return run_class<Q, Kv, 128>(l, stream);
  if (head_dim <= 192) return run_class<Q, Kv, 192>(l, stream);
  run_class<Q, Kv, 256>(l, stream);
}

void merge(const PagedAttentionLaunch& l, Stream stream) {
  MergeStatesArgs args;
  args.states = l.args.states;
  args.state_lse = l.args.state_lse;
  args.tokens = l.merged_tokens;
  args.state_begin = l.args.state_begin;
  args.n_states = l.n_states;
  args.sinks = l.args.sinks;
  args.out = l.args.out;
  args.out_token_stride = l.args.out_token_stride;
  args.out_head_stride = l.args.out_head_stride;
  args.lse = l.args.lse;
  args.n_tokens = l.n_merged_tokens;
  args.n_heads = l.args.n_heads;
  args.head_dim = l.args.head_dim;
  merge_planned_states(l.q_dtype, args, stream);
}

}  // namespace

void paged_attention(const PagedAttentionLaunch& l, Stream stream) {
  check_arg(l.args.page_size > 0 && l.args.page_size % 16 == 0, kPlace, "page_size must be a multiple of 16, got ",
            l.args.page_size);
  with_half(l.q_dtype, kPlace, "q", [&](auto q_tag) {
    using Q = typename decltype(q_tag)::type;
    with_page_element<Q>(l.q_dtype, l.kv_dtype, kPlace, "k_cache and v_cache",
                         [&](auto kv_tag) { run_head_dim<Q, typename decltype(kv_tag)::type>(l, stream); });
  });
  merge(l, stream);
}

}  // namespace gpu
}  // namespace llm_decoder
