#include "copy_blocks_launch.h"

#include <algorithm>
#include <limits>

#include "copy_blocks.h"
#include "llm_decoder/errors.h"

namespace llm_decoder {
namespace gpu {
namespace {

constexpr char kPlace[] = "copy_blocks";
constexpr int kMaxPools = 65535;

}  // namespace

void copy_blocks(const CopyBlocksLaunch& l, Stream stream) {
  check_arg(l.n_pools >= 0 && l.n_pools <= kMaxPools, kPlace, "n_pools must be 0 to ", kMaxPools, ", got ", l.n_pools,
            "; copy them in several calls");
  check_arg(l.n_pairs >= 0, kPlace, "n_pairs must not be negative, got ", l.n_pairs);
  check_arg(l.largest_page_bytes > 0 && l.largest_page_bytes % kCopyBytes == 0, kPlace,
            "largest_page_bytes must be a positive multiple of ", kCopyBytes, ", got ", l.largest_page_bytes);
  if (l.n_pools == 0 || l.n_pairs == 0) return;
  const std::int64_t most_parts = std::numeric_limits<int>::max() / l.n_pairs;
  CopyBlocksArgs args;
  args.pools = l.pools;
  args.pairs = l.pairs;
  args.n_parts = static_cast<int>(std::min(most_parts, ceil_div(l.largest_page_bytes, kCopyPartBytes)));
  gpu::launch<copy_blocks_kernel>(stream, {{l.n_pairs * args.n_parts, l.n_pools, 1}, kCopyThreads, 0}, args);
}

}  // namespace gpu
}  // namespace llm_decoder
