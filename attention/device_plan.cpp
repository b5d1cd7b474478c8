#include "device_plan.h"

#include "llm_decoder/errors.h"

namespace llm_decoder {
namespace gpu {
namespace {

int size_of(std::size_t n) { return static_cast<int>(n); }

}  // namespace

bool PlanRoom::holds(const PagedAttentionPlan& plan) const {
  const PlanRoom needed = room_of(plan);
  return needed.n_tokens <= n_tokens && needed.n_narrow <= n_narrow && needed.n_wide <= n_wide &&
         needed.n_merged_tokens <= n_merged_tokens && needed.n_states <= n_states &&
         (has_prefixes || !needed.has_prefixes);
}

PlanRoom room_of(const PagedAttentionPlan& plan) {
  return {size_of(plan.state_begin.size()),   size_of(plan.narrow.size()), size_of(plan.wide.size()),
          size_of(plan.merged_tokens.size()), plan.n_all_states,           !plan.prefix_states.empty()};
}

void StagedPlan::stage(const PagedAttentionPlan& plan, const PlanRoom& room, StagedArrays& arrays) {
  check_state(room.holds(plan), "StagedPlan", "a plan of ", plan.narrow.size() + plan.wide.size(),
              " items does not fit its room");
  room_ = room;
  wide_rows_ = plan.wide_rows;
  narrow_ = arrays.add_padded<PagedAttentionItem>(plan.narrow, room.n_narrow, {});
  wide_ = arrays.add_padded<PagedAttentionItem>(plan.wide, room.n_wide, {});
  state_begin_ = arrays.add_padded<int>(plan.state_begin, room.n_tokens, kNoState);
  n_states_ = arrays.add_padded<int>(plan.n_states, room.n_tokens, 0);
  merged_tokens_ = arrays.add_padded<int>(plan.merged_tokens, room.n_merged_tokens, kNoToken);
  prefix_states_ = arrays.add_padded<PrefixStates>(plan.prefix_states, room.has_prefixes ? room.n_tokens : 0, {});
}

void StagedPlan::fill(const StagedArrays& arrays, float* states, PagedAttentionLaunch& launch) const {
  launch.narrow = arrays.device(narrow_);
  launch.wide = arrays.device(wide_);
  launch.n_narrow = room_.n_narrow;
  launch.n_wide = room_.n_wide;
  launch.wide_rows = wide_rows_;
  launch.merged_tokens = arrays.device(merged_tokens_);
  launch.n_states = arrays.device(n_states_);
  launch.prefix_states = room_.has_prefixes ? arrays.device(prefix_states_) : nullptr;
  launch.n_merged_tokens = room_.n_merged_tokens;
  launch.args.state_begin = arrays.device(state_begin_);
  launch.args.states = states;
  launch.args.state_lse = states + std::int64_t{room_.n_states} * launch.args.n_heads * launch.args.head_dim;
}

void DevicePlan::update(const PlanRequest& request, int head_dim, Stream stream) {
  const PagedAttentionPlan plan = plan_paged_attention(request);
  const PlanRoom room = room_of(plan);
  n_heads_ = request.n_heads;
  n_kv_heads_ = request.n_kv_heads;
  head_dim_ = head_dim;
  is_causal_ = request.is_causal;
  window_left_ = request.window_left;
  window_right_ = request.window_right;
  arrays_.begin();
  plan_.stage(plan, room, arrays_);
  arrays_.upload(stream);
  grow(states_, room.n_state_floats(n_heads_, head_dim_), stream);
}

void DevicePlan::fill(PagedAttentionLaunch& launch) const {
  launch.args.n_heads = n_heads_;
  launch.args.n_kv_heads = n_kv_heads_;
  launch.args.head_dim = head_dim_;
  launch.args.is_causal = is_causal_;
  launch.args.window_left = window_left_;
  launch.args.window_right = window_right_;
  plan_.fill(arrays_, states_.data(), launch);
}

}  // namespace gpu
}  // namespace llm_decoder
