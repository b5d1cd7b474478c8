// Pages between the device and (pinned) host memory: plain host code over copy_memory, no kernel. The bus between them
// is far slower than either memory; what a copy costs by itself is kept small by joining pages that lie one after the
// other on both sides.
#pragma once

#include <cstdint>
#include <vector>

#include "llm_decoder/types.h"
#include "machine.h"

namespace llm_decoder {
namespace gpu {

// Pages [from, from + n) go to [to, to + n).
struct PageRun {
  std::int64_t from = 0, to = 0, n = 0;
};

// pairs: [n, 2], the source and destination page of each, in any order. The fewest runs, ascending by source.
std::vector<PageRun> join_pages(Span<const std::int64_t> pairs);

// One tensor of pages on each side; K and V of every layer, and their scales, are a call each. `pairs` is done with
// when the call returns, the pages when the stream gets there. A page that is the destination of one pair and has a
// part in another is the caller's bug: which copy comes first is not said.
struct SwapBlocksArgs {
  const void* from = nullptr;  // [n_from_pages, page_bytes]
  void* to = nullptr;          // [n_to_pages, page_bytes]
  std::int64_t n_from_pages = 0, n_to_pages = 0;
  std::int64_t page_bytes = 0;
  Span<const std::int64_t> pairs;  // [n, 2] on the host: source and destination page
};

// Throws std::invalid_argument, with nothing queued, for pages that are not there.
void swap_blocks(const SwapBlocksArgs& args, Stream stream);

}  // namespace gpu
}  // namespace llm_decoder
