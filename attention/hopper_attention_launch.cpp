#include "hopper_attention_launch.h"

#include <algorithm>

#include "dtype_tags.h"
#include "hopper_attention.h"
#include "llm_decoder/errors.h"

namespace llm_decoder {
namespace gpu {
namespace {

constexpr char kPlace[] = "paged_attention";

template <class T, int head_dim>
void run_tile(const HopperAttentionArgs& args, int n_sms, Stream stream) {
  using Tile = HopperTile<T, head_dim>;
  static_assert(Tile::kGroups * Tile::kGroupRows == kHopperRows, "as planned");
  const int n_work = args.n_items * args.attention.n_kv_heads;
  gpu::launch<paged_flash_attention_kernel_hopper<Tile>>(
      stream, {{std::min(n_work, n_sms), 1, 1}, Tile::kThreads, Tile::kSharedBytes}, args);
}

template <class T>
void run_head_dim(const HopperAttentionArgs& args, int n_sms, Stream stream) {
  const int head_dim = args.attention.head_dim;
  if (head_dim <= 64) return run_tile<T, 64>(args, n_sms, stream);
  if (head_dim <= 128) return run_tile<T, 128>(args, n_sms, stream);
  if (head_dim <= 192) return run_tile<T, 192>(args, n_sms, stream);
  run_tile<T, 256>(args, n_sms, stream);
}

// Pages of other sizes, and pools that no map describes, are copied key by key.
void make_maps(HopperAttentionArgs& args) {
  const PagedAttentionArgs& a = args.attention;
  const TensorBoxes k = boxes_of(a.k, a.n_kv_heads, a.head_dim, a.page_size);
  const TensorBoxes v = boxes_of(a.v, a.n_kv_heads, a.head_dim, a.page_size);
  args.has_maps = a.page_size % kBoxKeys == 0 && can_be_mapped(k) && can_be_mapped(v);
  if (!args.has_maps) return;
  args.k_heads_within = heads_within_slots(a.k, a.n_kv_heads);
  args.v_heads_within = heads_within_slots(a.v, a.n_kv_heads);
  args.k_map = make_tensor_map(k);
  args.v_map = make_tensor_map(v);
}

}  // namespace

std::string why_not_hopper(const PagedAttentionLaunch& l, const DeviceProperties& device) {
  if (!device.has_warpgroups) {
    return concat("it needs a device of compute capability 9.0 and kernels compiled for sm_90a; this is a ",
                  device.name, " of ", device.compute_major, ".", device.compute_minor);
  }
  if (l.kv_dtype != l.q_dtype) {
    return concat("pages must be of the queries' dtype, ", dtype_name(l.q_dtype), ", got ", dtype_name(l.kv_dtype));
  }
  if (l.args.k_scale.per_slot != nullptr || l.args.v_scale.per_slot != nullptr) {
    return "pages must have one scale or one a head, got one a slot";
  }
  if (l.wide_rows > kHopperRows) return concat("items must have up to ", kHopperRows, " rows, got ", l.wide_rows);
  return {};
}

void hopper_attention(const PagedAttentionLaunch& l, const DeviceProperties& device, Stream stream) {
  HopperAttentionArgs args;
  args.attention = l.args;
  args.attention.items = l.wide;
  args.n_items = l.n_wide;
  make_maps(args);
  with_half(l.q_dtype, kPlace, "q",
            [&](auto tag) { run_head_dim<typename decltype(tag)::type>(args, device.n_sms, stream); });
}

}  // namespace gpu
}  // namespace llm_decoder
