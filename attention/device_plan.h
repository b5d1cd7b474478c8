// A plan of attention with its arrays on the device: made once a step, used by the launches of every layer.
#pragma once

#include "device_memory.h"
#include "paged_attention_launch.h"
#include "paged_attention_plan.h"

namespace llm_decoder {
namespace gpu {

// Its launches follow each other on one stream, for they share the states between attention and merge.
class DevicePlan {
 public:
  // Plans, and queues the copy of the arrays. They stay where they are while they fit, so that launches that were
  // recorded with them can be repeated. Throws std::invalid_argument for lengths that cannot be, OutOfMemory.
  void update(const PlanRequest& request, int head_dim, Stream stream);

  // Sets all that a launch takes from its plan.
  void fill(PagedAttentionLaunch& launch) const;

  int n_tokens() const { return n_tokens_; }

 private:
  // Where each array begins in arrays_, in bytes.
  struct Offsets {
    std::int64_t narrow = 0, wide = 0, state_begin = 0, n_states = 0, merged_tokens = 0, prefix_states = 0;
  };

  DeviceArray<std::byte> arrays_;
  DeviceArray<float> states_;  // [n_all_states, n_heads, head_dim], then the log-sum-exp [n_all_states, n_heads]
  Offsets at_;
  std::int64_t n_state_values_ = 0;
  int n_tokens_ = 0, n_narrow_ = 0, n_wide_ = 0, wide_rows_ = kWideRows, n_merged_tokens_ = 0;
  int n_heads_ = 0, n_kv_heads_ = 0, head_dim_ = 0;
  bool is_causal_ = true, has_prefixes_ = false;
  int window_left_ = kUnbounded, window_right_ = kUnbounded;
};

}  // namespace gpu
}  // namespace llm_decoder
