#include "fused_moe_launch.h"

#include <limits>

#include "dtype_tags.h"
#include "llm_decoder/errors.h"
#include "moe_product_launch.h"
#include "moe_reduce.h"
#include "moe_sort_launch.h"

namespace llm_decoder {
namespace gpu {
namespace {

constexpr char kPlace[] = "fused_moe";

int n_pairs_of(const FusedMoeLaunch& l) { return l.n_tokens * l.top_k; }

int tile_rows_of(const FusedMoeLaunch& l) {
  if (l.tile_rows != 0) return l.tile_rows;
  const bool has_few_tokens = l.n_tokens <= kProductTileRows[0];  // so no expert has more rows
  return has_few_tokens ? kProductTileRows[0] : choose_tile_rows(n_pairs_of(l), l.n_ids);
}

// Where the parts of the workspace begin, in bytes.
struct Workspace {
  std::int64_t sorted_pairs, tiles, n_tiles, chunk_begin, expert_begin, activations, rows, end;

  explicit Workspace(const FusedMoeLaunch& l) {
    const std::int64_t n_pairs = n_pairs_of(l);
    std::int64_t at = 0;
    const auto take = [&at](std::int64_t n_bytes) {
      const std::int64_t begin = at;
      at = round_up(at + n_bytes, 16);
      return begin;
    };
    constexpr std::int64_t kIntBytes = sizeof(int);
    const std::int64_t n_tiles_at_most = max_moe_tiles(n_pairs_of(l), l.n_experts, tile_rows_of(l));
    sorted_pairs = take(n_pairs * kIntBytes);
    tiles = take(n_tiles_at_most * static_cast<std::int64_t>(sizeof(MoeTile)));
    n_tiles = take(kIntBytes);
    chunk_begin = take(std::int64_t{n_sort_chunks(n_pairs_of(l))} * l.n_experts * kIntBytes);
    expert_begin = take(l.n_experts * kIntBytes);
    activations = take(n_pairs * l.n * element_bytes(l.dtype));
    rows = take(n_pairs * l.k * element_bytes(l.dtype));
    end = at;
  }
};

void check(const FusedMoeLaunch& l) {
  check_arg(l.n_tokens >= 0, kPlace, "n_tokens must not be negative, got ", l.n_tokens);
  check_arg(l.top_k >= 1, kPlace, "top_k must be positive, got ", l.top_k);
  check_arg(std::int64_t{l.n_tokens} * l.top_k <= std::numeric_limits<int>::max(), kPlace,
            "tokens times choices must be below 2^31, got ", l.n_tokens, " times ", l.top_k,
            "; pass fewer tokens at once");
  check_arg(l.n_experts >= 1 && l.n_experts <= kMaxLocalExperts, kPlace, "n_experts must be 1 to ", kMaxLocalExperts,
            ", got ", l.n_experts);
  check_arg(l.n_ids >= 1, kPlace, "n_ids must be positive, got ", l.n_ids);
  check_arg(l.expert_map != nullptr || l.n_ids == l.n_experts, kPlace, "without an expert_map n_ids must be the ",
            l.n_experts, " experts, got ", l.n_ids);
  check_arg(l.n > 0 && l.n % 8 == 0 && l.k > 0 && l.k % 8 == 0, kPlace, "n and k must be positive multiples of 8, got ",
            l.n, " and ", l.k);
  check_arg(l.tile_rows >= 0, kPlace, "tile_rows must not be negative, got ", l.tile_rows);
}

MoePairs pairs_of(const FusedMoeLaunch& l) {
  MoePairs pairs;
  pairs.ids = l.topk_ids;
  pairs.expert_map = l.expert_map;
  pairs.n_pairs = n_pairs_of(l);
  pairs.n_ids = l.n_ids;
  pairs.n_experts = l.n_experts;
  return pairs;
}

// The pairs of one token are the tiles of a decode as they are.
bool needs_sort(const FusedMoeLaunch& l) { return l.n_tokens > 1 || tile_rows_of(l) != kProductTileRows[0]; }

MoeSortArgs sort_args(const FusedMoeLaunch& l) {
  const Workspace at(l);
  auto* const workspace = static_cast<unsigned char*>(l.workspace);
  MoeSortArgs args;
  args.pairs = pairs_of(l);
  args.tile_rows = tile_rows_of(l);
  args.sorted_pairs = reinterpret_cast<int*>(workspace + at.sorted_pairs);
  args.tiles = reinterpret_cast<MoeTile*>(workspace + at.tiles);
  args.n_tiles = reinterpret_cast<int*>(workspace + at.n_tiles);
  args.chunk_begin = reinterpret_cast<int*>(workspace + at.chunk_begin);
  args.expert_begin = reinterpret_cast<int*>(workspace + at.expert_begin);
  return args;
}

GroupedProductLaunch product(const FusedMoeLaunch& l, const MoeSortArgs& sorted) {
  GroupedProductLaunch p;
  p.dtype = l.dtype;
  p.weight_dtype = l.weight_dtype;
  p.tile_rows = sorted.tile_rows;
  if (needs_sort(l)) {
    p.args.tiles = sorted.tiles;
    p.args.n_tiles = sorted.n_tiles;
    p.args.max_tiles = max_moe_tiles(sorted.pairs.n_pairs, l.n_experts, sorted.tile_rows);
  } else {
    p.args.pairs = sorted.pairs;
    p.args.max_tiles = sorted.pairs.n_pairs;
  }
  return p;
}

// silu(gate) * up of every sorted pair, from the token's row of hidden.
GroupedProductLaunch up_product(const FusedMoeLaunch& l, const MoeSortArgs& sorted, void* activations) {
  GroupedProductLaunch p = product(l, sorted);
  p.is_gated = true;
  p.args.a = l.hidden;
  p.args.a_stride = l.hidden_stride;
  if (needs_sort(l)) p.args.a_pairs = sorted.sorted_pairs;
  p.args.pairs_per_a_row = l.top_k;
  p.args.w = l.w1;
  p.args.w_scale = l.w1_scale;
  p.args.out = activations;
  p.args.out_stride = p.args.n = l.n;
  p.args.k = l.k;
  return p;
}

// Back to rows of hidden's size, one a pair, weighed.
GroupedProductLaunch down_product(const FusedMoeLaunch& l, const MoeSortArgs& sorted, const void* activations,
                                  void* rows) {
  GroupedProductLaunch p = product(l, sorted);
  p.args.a = activations;
  p.args.a_stride = p.args.k = l.n;
  p.args.w = l.w2;
  p.args.w_scale = l.w2_scale;
  p.args.out = rows;
  p.args.out_stride = p.args.n = l.k;
  if (needs_sort(l)) p.args.out_pairs = sorted.sorted_pairs;
  p.args.weights = l.topk_weights;
  return p;
}

void reduce(const FusedMoeLaunch& l, const void* rows, Stream stream) {
  MoeReduceArgs args;
  args.pairs = pairs_of(l);
  args.rows = rows;
  args.out = l.out;
  args.out_stride = l.out_stride;
  args.n_tokens = l.n_tokens;
  args.top_k = l.top_k;
  args.n = l.k;
  const std::int64_t n_blocks = ceil_div(std::int64_t{l.n_tokens} * (l.k / 8), kReduceThreads);
  check_arg(n_blocks <= std::numeric_limits<int>::max(), kPlace, "tokens times k must be below 2^42, got ", l.n_tokens,
            " times ", l.k, "; pass fewer tokens at once");
  with_half(l.dtype, kPlace, "hidden", [&](auto tag) {
    launch<moe_reduce_kernel<typename decltype(tag)::type>>(
        stream, {{static_cast<int>(n_blocks), 1, 1}, kReduceThreads, 0}, args);
  });
}

}  // namespace

std::int64_t fused_moe_workspace_bytes(const FusedMoeLaunch& l) {
  check(l);
  return Workspace(l).end;
}

void fused_moe(const FusedMoeLaunch& l, Stream stream) {
  check(l);
  check_arg(l.out_stride % 8 == 0 && reinterpret_cast<std::uintptr_t>(l.out) % 16 == 0, kPlace,
            "out must be aligned to 16 bytes, with rows multiples of 8 elements apart, got rows ", l.out_stride,
            " apart");
  check_arg(reinterpret_cast<std::uintptr_t>(l.workspace) % 16 == 0, kPlace, "workspace must be aligned to 16 bytes");
  if (l.n_tokens == 0) return;
  const Workspace at(l);
  auto* const workspace = static_cast<unsigned char*>(l.workspace);
  const MoeSortArgs sorted = sort_args(l);
  const GroupedProductLaunch up = up_product(l, sorted, workspace + at.activations);
  const GroupedProductLaunch down = down_product(l, sorted, workspace + at.activations, workspace + at.rows);
  check_product(up);
  check_product(down);
  if (needs_sort(l)) moe_sort(sorted, stream);
  grouped_product(up, stream);
  grouped_product(down, stream);
  reduce(l, workspace + at.rows, stream);
}

}  // namespace gpu
}  // namespace llm_decoder
