#include "feed_tokens_launch.h"

#include "feed_tokens.h"

namespace llm_decoder {
namespace gpu {

void feed_tokens(std::int32_t* ids, const std::int32_t* drawn, int n, Stream stream) {
  if (n == 0) return;
  const FeedTokensArgs args{ids, drawn, n};
  launch<feed_tokens_kernel>(stream, {{static_cast<int>(ceil_div(n, kFeedThreads)), 1, 1}, kFeedThreads, 0}, args);
}

}  // namespace gpu
}  // namespace llm_decoder
