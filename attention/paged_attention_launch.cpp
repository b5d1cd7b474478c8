#include "paged_attention_launch.h"

#include <cstdlib>
#include <map>
#include <mutex>
#include <string>

#include "dtype_tags.h"
#include "hopper_attention_launch.h"
#include "llm_decoder/errors.h"
#include "merge_states_launch.h"
#include "paged_flash_attention.h"

namespace llm_decoder {
namespace gpu {
namespace {

constexpr char kPlace[] = "paged_attention";

// Heads of 256 leave registers and shared memory for half the keys where a warp has rows of its own.
// Where few rows meet many bytes a key, two warps and half the keys leave a block's shared memory to be had everywhere.
template <class Kv, int head_dim>
constexpr int kNarrowWarps = head_dim * sizeof(Kv) <= 256 ? 4 : 2;
template <class Q, class Kv, int head_dim>
using NarrowTile = FlashTile<Q, Kv, head_dim, 1, 1, kNarrowWarps<Kv, head_dim>, 16 * kNarrowWarps<Kv, head_dim>, 2>;
template <class Q, class Kv, int head_dim>
using WideTile = FlashTile<Q, Kv, head_dim, 1, kWideRows / 16, 1, head_dim <= 128 ? 64 : 32, 2>;

template <class Tile>
void run_items(PagedAttentionArgs args, const PagedAttentionItem* items, int n_items, int item_rows, Stream stream) {
  static_assert(kSplitUnit % Tile::kKeys == 0, "tiles do not cross splits");
  static_assert(Tile::kSharedBytes <= kPortableSharedBytes, "runs on every device");
  if (n_items == 0) return;
  args.items = items;
  args.blocks_per_item = item_rows / Tile::kRows;
  gpu::launch<paged_flash_attention_kernel_fused<Tile>>(
      stream, {{n_items * args.blocks_per_item, args.n_kv_heads, 1}, Tile::kThreads, Tile::kSharedBytes}, args);
}

template <class Q, class Kv, int head_dim>
void run_class(const PagedAttentionLaunch& l, bool takes_hopper, Stream stream) {
  static_assert(NarrowTile<Q, Kv, head_dim>::kRows == kNarrowRows && WideTile<Q, Kv, head_dim>::kRows == kWideRows,
                "as planned");
  run_items<NarrowTile<Q, Kv, head_dim>>(l.args, l.narrow, l.n_narrow, kNarrowRows, stream);
  if (!takes_hopper) run_items<WideTile<Q, Kv, head_dim>>(l.args, l.wide, l.n_wide, l.wide_rows, stream);
}

template <class Q, class Kv>
void run_head_dim(const PagedAttentionLaunch& l, bool takes_hopper, Stream stream) {
  const int head_dim = l.args.head_dim;
  check_arg(head_dim > 0 && head_dim % 8 == 0 && head_dim <= kMaxHeadDim, kPlace,
            "head_dim must be a multiple of 8 up to ", kMaxHeadDim, ", got ", head_dim);
  if (head_dim <= 64) return run_class<Q, Kv, 64>(l, takes_hopper, stream);
  if (head_dim <= 128) return run_class<Q, Kv, 128>(l, takes_hopper, stream);
  if (head_dim <= 192) return run_class<Q, Kv, 192>(l, takes_hopper, stream);
  run_class<Q, Kv, 256>(l, takes_hopper, stream);
}

void merge(const PagedAttentionLaunch& l, Stream stream) {
  MergeStatesArgs args;
  args.states = l.args.states;
  args.state_lse = l.args.state_lse;
  args.tokens = l.merged_tokens;
  args.state_begin = l.args.state_begin;
  args.n_states = l.n_states;
  args.prefix_states = l.prefix_states;
  args.alibi_slopes = l.args.alibi_slopes;
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

// Asked for once: the runtime takes its time.
const DeviceProperties& properties_of_current() {
  static std::mutex mutex;
  static std::map<int, DeviceProperties> known;
  const int device = current_device();
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = known.find(device);
  return found != known.end() ? found->second : known[device] = device_properties(device);
}

AttentionPath path_of_environment() {
  const char* const name = std::getenv("LLM_DECODER_ATTENTION_PATH");
  if (name == nullptr || *name == '\0') return AttentionPath::chosen;
  if (std::string(name) == "mma_sync") return AttentionPath::mma_sync;
  check_arg(std::string(name) == "wgmma", kPlace, "LLM_DECODER_ATTENTION_PATH must be mma_sync or wgmma, got ", name);
  return AttentionPath::wgmma;
}

// The host machine plays a device of compute capability 8.0, and takes wgmma where it is told to.
bool prefers_hopper(const DeviceProperties& device) { return device.compute_major == 9 && device.has_warpgroups; }

bool takes_hopper(const PagedAttentionLaunch& l) {
  if (l.n_wide == 0) return false;
  const AttentionPath path = l.path == AttentionPath::chosen ? path_of_environment() : l.path;
  if (path == AttentionPath::mma_sync) return false;
  const DeviceProperties& device = properties_of_current();
  const std::string reason = why_not_hopper(l, device);
  check_arg(path == AttentionPath::chosen || reason.empty(), kPlace, "wgmma was asked for, but ", reason);
  return reason.empty() && (path == AttentionPath::wgmma || prefers_hopper(device));
}

}  // namespace

int wide_rows_for(const DeviceProperties& device) {
  const AttentionPath path = path_of_environment();
  const bool is_forced = path == AttentionPath::wgmma && device.has_warpgroups;
  return is_forced || (path == AttentionPath::chosen && prefers_hopper(device)) ? kHopperRows : kWideRows;
}

void paged_attention(const PagedAttentionLaunch& l, Stream stream) {
  check_arg(l.args.page_size > 0 && l.args.page_size % 16 == 0, kPlace, "page_size must be a multiple of 16, got ",
            l.args.page_size);
  check_arg(l.wide_rows > 0 && l.wide_rows % kWideRows == 0, kPlace, "wide_rows must be a multiple of ", kWideRows,
            ", got ", l.wide_rows);
  const bool is_hopper = takes_hopper(l);
  with_half(l.q_dtype, kPlace, "q", [&](auto q_tag) {
    using Q = typename decltype(q_tag)::type;
    with_page_element<Q>(l.q_dtype, l.kv_dtype, kPlace, "k_cache and v_cache",
                         [&](auto kv_tag) { run_head_dim<Q, typename decltype(kv_tag)::type>(l, is_hopper, stream); });
  });
  if (is_hopper) hopper_attention(l, properties_of_current(), stream);
  merge(l, stream);
}

}  // namespace gpu
}  // namespace llm_decoder
