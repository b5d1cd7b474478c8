#include "device_plan.h"

#include <cstring>
#include <vector>

namespace llm_decoder {
namespace gpu {
namespace {

constexpr std::int64_t kArrayAlign = 16;

// Appends the elements of `array`; returns where they begin.
template <class T>
std::int64_t append(std::vector<std::byte>& bytes, const std::vector<T>& array) {
  const auto begin = static_cast<std::size_t>(round_up(static_cast<std::int64_t>(bytes.size()), kArrayAlign));
  bytes.resize(begin + array.size() * sizeof(T));
  if (!array.empty()) std::memcpy(&bytes[begin], array.data(), array.size() * sizeof(T));
  return static_cast<std::int64_t>(begin);
}

template <class T>
void grow(DeviceArray<T>& array, std::int64_t n, Stream stream) {
  if (n <= array.size()) return;
  synchronize(stream);
  array = {};  // before there are two
  array = DeviceArray<T>(n);
}

}  // namespace

void DevicePlan::update(const PlanRequest& request, int head_dim, Stream stream) {
  const PagedAttentionPlan plan = plan_paged_attention(request);
  std::vector<std::byte> bytes;
  at_.narrow = append(bytes, plan.narrow);
  at_.wide = append(bytes, plan.wide);
  at_.state_begin = append(bytes, plan.state_begin);
  at_.n_states = append(bytes, plan.n_states);
  at_.merged_tokens = append(bytes, plan.merged_tokens);
  at_.prefix_states = append(bytes, plan.prefix_states);

  n_tokens_ = static_cast<int>(plan.state_begin.size());
  n_narrow_ = static_cast<int>(plan.narrow.size());
  n_wide_ = static_cast<int>(plan.wide.size());
  wide_rows_ = plan.wide_rows;
  n_merged_tokens_ = static_cast<int>(plan.merged_tokens.size());
  n_heads_ = request.n_heads;
  n_kv_heads_ = request.n_kv_heads;
  head_dim_ = head_dim;
  has_prefixes_ = !plan.prefix_states.empty();
  is_causal_ = request.is_causal;
  window_left_ = request.window_left;
  window_right_ = request.window_right;
  n_state_values_ = std::int64_t{plan.n_all_states} * n_heads_ * head_dim_;

  grow(arrays_, static_cast<std::int64_t>(bytes.size()), stream);
  grow(states_, n_state_values_ + std::int64_t{plan.n_all_states} * n_heads_, stream);
  if (!bytes.empty()) copy_memory(arrays_.data(), bytes.data(), static_cast<std::int64_t>(bytes.size()), stream);
}

void DevicePlan::fill(PagedAttentionLaunch& launch) const {
  const auto at = [this](std::int64_t offset) { return arrays_.data() + offset; };
  launch.narrow = reinterpret_cast<const PagedAttentionItem*>(at(at_.narrow));
  launch.wide = reinterpret_cast<const PagedAttentionItem*>(at(at_.wide));
  launch.n_narrow = n_narrow_;
  launch.n_wide = n_wide_;
  launch.wide_rows = wide_rows_;
  launch.merged_tokens = reinterpret_cast<const int*>(at(at_.merged_tokens));
  launch.n_states = reinterpret_cast<const int*>(at(at_.n_states));
  launch.prefix_states = has_prefixes_ ? reinterpret_cast<const PrefixStates*>(at(at_.prefix_states)) : nullptr;
  launch.n_merged_tokens = n_merged_tokens_;
  launch.args.state_begin = reinterpret_cast<const int*>(at(at_.state_begin));
  launch.args.states = states_.data();
  launch.args.state_lse = states_.data() + n_state_values_;
  launch.args.n_heads = n_heads_;
  launch.args.n_kv_heads = n_kv_heads_;
  launch.args.head_dim = head_dim_;
  launch.args.is_causal = is_causal_;
  launch.args.window_left = window_left_;
  launch.args.window_right = window_right_;
}

}  // namespace gpu
}  // namespace llm_decoder
