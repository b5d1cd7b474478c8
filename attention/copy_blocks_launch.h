// Copies whole pages in all pools in one launch.
#pragma once

#include "machine.h"
#include "page_pool.h"

namespace llm_decoder {
namespace gpu {

struct CopyBlocksLaunch {
  const PagePool* pools = nullptr;      // [n_pools] on the device
  const std::int64_t* pairs = nullptr;  // [n_pairs, 2] on the device: source and destination page
  int n_pools = 0, n_pairs = 0;
  std::int64_t largest_page_bytes = 0;  // of any pool: decides how many blocks share a page
};

// Throws std::invalid_argument for sizes that no page has. What lies on the device is trusted: page ids, and that no
// page is the destination of one pair and has a part in another.
void copy_blocks(const CopyBlocksLaunch& launch, Stream stream);

}  // namespace gpu
}  // namespace llm_decoder
