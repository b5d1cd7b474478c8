// Tokens of a step that a draw on the device has chosen: the host says which draw, and need not know the token.
#pragma once

#include "machine.h"

namespace llm_decoder {
namespace gpu {

struct FeedTokensArgs {
  std::int32_t* ids = nullptr;          // [n]; t < 0 becomes drawn[-1 - t], or 0 where that draw gave no token
  const std::int32_t* drawn = nullptr;  // negative: no token
  int n = 0;
};

constexpr int kFeedThreads = 128;

// grid.x: ceil(n / kFeedThreads)
GPU_KERNEL feed_tokens_kernel(const FeedTokensArgs args) {
  const int i = block_index().x * kFeedThreads + thread_index();
  if (i >= args.n) return;
  const std::int32_t id = args.ids[i];
  if (id >= 0) return;
  const std::int32_t token = args.drawn[-1 - id];
  args.ids[i] = token < 0 ? 0 : token;
}

}  // namespace gpu
}  // namespace llm_decoder
