// Whole pages copied within their pools, K and V and scales of all layers in one launch: what a fork needs before it
// writes to a page that it shares.
//
// Memory bounds it, each byte read once and written once. A block takes a part of one page, kCopyVectors neighbouring
// runs of 16 bytes a thread, all on their way before the first is stored: 32 KB in flight a block.
#pragma once

#include "machine.h"
#include "page_pool.h"

namespace llm_decoder {
namespace gpu {

// A page that is the destination of one pair and has a part in another is the caller's bug: the copies run at once.
struct CopyBlocksArgs {
  const PagePool* pools = nullptr;      // [n_pools]
  const std::int64_t* pairs = nullptr;  // [n_pairs, 2]: source and destination page, the same in every pool
  int n_parts = 1;                      // blocks that share a page
};

constexpr int kCopyThreads = 256;
constexpr int kCopyVectors = 8;
constexpr std::int64_t kCopyBytes = 16;
constexpr std::int64_t kCopyPartBytes = kCopyThreads * kCopyVectors * kCopyBytes;

// grid.x: n_pairs * n_parts, the parts of a pair together; grid.y: n_pools.
GPU_KERNEL copy_blocks_kernel(const CopyBlocksArgs args) {
  using Word = Vec<std::uint32_t, 4>;
  const PagePool pool = args.pools[block_index().y];
  const int pair = block_index().x / args.n_parts, part = block_index().x % args.n_parts;
  const std::byte* from = pool.pages + args.pairs[2 * std::int64_t{pair}] * pool.page_bytes;
  std::byte* to = pool.pages + args.pairs[2 * std::int64_t{pair} + 1] * pool.page_bytes;
  for (std::int64_t begin = part * kCopyPartBytes; begin < pool.page_bytes; begin += args.n_parts * kCopyPartBytes) {
    Word words[kCopyVectors];
    GPU_UNROLL
    for (int i = 0; i < kCopyVectors; ++i) {
      const std::int64_t at = begin + (i * kCopyThreads + thread_index()) * kCopyBytes;
      if (at < pool.page_bytes) words[i] = load_vec<4>(reinterpret_cast<const std::uint32_t*>(from + at));
    }
    GPU_UNROLL
    for (int i = 0; i < kCopyVectors; ++i) {
      const std::int64_t at = begin + (i * kCopyThreads + thread_index()) * kCopyBytes;
      if (at < pool.page_bytes) store_vec(reinterpret_cast<std::uint32_t*>(to + at), words[i]);
    }
  }
}

}  // namespace gpu
}  // namespace llm_decoder
