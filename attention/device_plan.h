// Plans of attention with their arrays on the device: made once a step, used by the launches of every layer.
#pragma once

#include "device_memory.h"
#include "paged_attention_launch.h"
#include "paged_attention_plan.h"
#include "staged_arrays.h"

namespace llm_decoder {
namespace gpu {

// Sizes of a plan's arrays. Launches are as large as the room, and do nothing where the plan has less.
struct PlanRoom {
  int n_tokens = 0, n_narrow = 0, n_wide = 0, n_merged_tokens = 0, n_states = 0;
  bool has_prefixes = false;

  bool holds(const PagedAttentionPlan& plan) const;
  std::int64_t n_state_floats(int n_heads, int head_dim) const {
    return std::int64_t{n_states} * n_heads * (head_dim + 1);
  }
};

// As much as the plan needs.
PlanRoom room_of(const PagedAttentionPlan& plan);

// A plan's arrays among others of a step.
class StagedPlan {
 public:
  // The room must hold the plan.
  void stage(const PagedAttentionPlan& plan, const PlanRoom& room, StagedArrays& arrays);

  // Sets all that a launch takes from its plan, once the arrays are on the device. launch.args must have its heads.
  // states: room.n_state_floats, of launches that follow each other on one stream.
  void fill(const StagedArrays& arrays, float* states, PagedAttentionLaunch& launch) const;

  const PlanRoom& room() const { return room_; }

 private:
  PlanRoom room_;
  int wide_rows_ = kWideRows;
  StagedArray<PagedAttentionItem> narrow_, wide_;
  StagedArray<int> state_begin_, n_states_, merged_tokens_;
  StagedArray<PrefixStates> prefix_states_;
};

// A plan with arrays of its own. Its launches follow each other on one stream, for they share the states between
// attention and merge.
class DevicePlan {
 public:
  // Plans, and queues the copy of the arrays. They stay where they are while they fit, so that launches that were
  // recorded with them can be repeated. Throws std::invalid_argument for lengths that cannot be, OutOfMemory.
  void update(const PlanRequest& request, int head_dim, Stream stream);

  // Sets all that a launch takes from its plan.
  void fill(PagedAttentionLaunch& launch) const;

  int n_tokens() const { return plan_.room().n_tokens; }

 private:
  StagedArrays arrays_;
  DeviceArray<float> states_;
  StagedPlan plan_;
  int n_heads_ = 0, n_kv_heads_ = 0, head_dim_ = 0;
  bool is_causal_ = true;
  int window_left_ = kUnbounded, window_right_ = kUnbounded;
};

}  // namespace gpu
}  // namespace llm_decoder
