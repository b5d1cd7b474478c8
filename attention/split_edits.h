// What a draw's own lists change in its logits: penalties, bias, bans, masks; part by part.
#pragma once

#include "logit_split.h"

namespace llm_decoder {
namespace gpu {

class SplitEdits {
 public:
  static constexpr int kSharedBytes = 2 * kSplitTokens * 4;

  GPU_FUNCTION SplitEdits(int byte_offset, const DrawParams& params, int draw, int split)
      : params_(params),
        draw_(draw),
        first_(split * kSplitTokens),
        marks_(shared_array<std::uint32_t>(byte_offset, kSplitTokens)),
        bias_(shared_array<float>(byte_offset + kSplitTokens * 4, kSplitTokens)) {}

  // Every thread must come.
  GPU_FUNCTION void apply(float (&x)[kTokensPerThread]) const {
    for (int i = thread_index(); i < kSplitTokens; i += kSampleThreads) {
      marks_.store(i, 0);
      bias_.store(i, 0.0f);
    }
    sync_block();
    const auto mark = [&](std::uint32_t bit) { return [this, bit](int i, std::int64_t) { marks_.atomic_or(i, bit); }; };
    for_each(params_.prompt, mark(kInPrompt));
    for_each(params_.banned, mark(kBanned));
    for_each(params_.allowed, mark(kAllowed));
    for_each(params_.output, [&](int i, std::int64_t) { marks_.atomic_add(i, 1); });
    for_each(params_.bias, [&](int i, std::int64_t at) { bias_.store(i, params_.bias_values[at]); });
    sync_block();
    const float repetition = param(params_.repetition_penalty, draw_, 1.0f);
    const float presence = param(params_.presence_penalty, draw_, 0.0f);
    const float frequency = param(params_.frequency_penalty, draw_, 0.0f);
    const bool allows_all = params_.allowed.is_empty(draw_), has_mask = params_.masks.has(draw_);
    GPU_UNROLL
    for (int i = 0; i < kTokensPerThread; ++i) {
      const int at = split_token(0, i);
      const std::uint32_t marks = marks_.load(at), n_used = marks & kCount;
      // Products are rounded by themselves, as on the CPU: made in float64 they cannot become part of an fma.
      if (repetition != 1.0f && (n_used > 0 || (marks & kInPrompt) != 0)) {
        x[i] = x[i] < 0.0f ? static_cast<float>(double{x[i]} * double{repetition}) : x[i] / repetition;
      }
      if (n_used > 0) x[i] -= static_cast<float>(static_cast<double>(n_used) * double{frequency}) + presence;
      x[i] += bias_.load(at);
      if ((marks & kBanned) != 0 || (!allows_all && (marks & kAllowed) == 0)) x[i] = -kInf;
      if (has_mask) {
        const int token = first_ + at;
        if ((params_.masks.word(draw_, token / 32) >> (token % 32) & 1u) == 0) x[i] = -kInf;
      }
    }
  }

 private:
  // How often a token is in the output, and whether it is in a list.
  static constexpr std::uint32_t kCount = (1u << 29) - 1, kInPrompt = 1u << 29, kBanned = 1u << 30, kAllowed = 1u << 31;

  template <class Fn>
  GPU_FUNCTION void for_each(const TokenLists& lists, const Fn& fn) const {
    const std::int64_t end = lists.end(draw_);
    for (std::int64_t at = lists.begin(draw_) + thread_index(); at < end; at += kSampleThreads) {
      const int i = lists.ids[at] - first_;
      if (i >= 0 && i < kSplitTokens) fn(i, at);
    }
  }

  const DrawParams& params_;
  const int draw_, first_;
  const Shared<std::uint32_t> marks_;
  const Shared<float> bias_;
};

}  // namespace gpu
}  // namespace llm_decoder
