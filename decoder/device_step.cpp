#include "device_step.h"

#include <algorithm>

#include "llm_decoder/errors.h"
#include "shared_prefixes.h"

namespace llm_decoder {
namespace gpu {
namespace {

// Waves of blocks that a graph has room for where splits have a length of their own. A longer step spends far more time
// on its keys than on its launches.
constexpr int kFixedSplitWaves = 4;

// Of steps of single tokens: more rows are worth the blocks for many, and a step that goes without a graph.
constexpr int kDecodePrefixRows = 64;

// Lengths of a step's sequences as attention is planned from them.
struct Lengths {
  std::vector<int> seq_lens, cu_seqlens_q{0};
};

Lengths lengths_of(const StepRows& rows, bool wanted_only) {
  Lengths lengths;
  for (const StepRows::Sequence& s : rows.sequences) {
    lengths.seq_lens.push_back(s.position_end());
    lengths.cu_seqlens_q.push_back(lengths.cu_seqlens_q.back() + (wanted_only ? s.n_wanted : s.n_tokens));
  }
  return lengths;
}

PlanRequest request_for(const ModelConfig& config, const AttentionCut& cut, std::int32_t window,
                        const Lengths& lengths) {
  PlanRequest request;
  request.seq_lens = lengths.seq_lens;
  request.cu_seqlens_q = lengths.cu_seqlens_q;
  request.n_tokens = lengths.cu_seqlens_q.back();
  request.n_heads = config.n_heads;
  request.n_kv_heads = config.n_kv_heads;
  request.window_left = window == 0 ? kUnbounded : window - 1;
  request.n_blocks = cut.n_blocks;
  request.wide_rows = cut.wide_rows;
  request.fixed_split = cut.fixed_split;
  request.all_wide = cut.fixed_split > 0;
  return request;
}

std::vector<SharedPrefix> prefixes_of(const KvCache& cache, const StepRows& rows, std::int32_t group) {
  std::vector<PrefixOwner> owners;
  for (const StepRows::Sequence& s : rows.sequences) {
    owners.push_back({Span<const std::int32_t>(cache.page_table(s.id, group)), s.position_begin});
  }
  return find_shared_prefixes(owners, cache.config().page_size);
}

}  // namespace

StepPlans plan_step(const ModelConfig& config, const AttentionCut& cut, const KvCache& cache, const StepRows& rows) {
  const Lengths all = lengths_of(rows, false), wanted = lengths_of(rows, true);
  StepPlans plans;
  std::map<std::int32_t, std::vector<SharedPrefix>> prefixes;  // by group
  for (std::int32_t layer = 0; layer < config.n_layers; ++layer) {
    const std::int32_t window = config.windows[static_cast<std::size_t>(layer)];
    const std::int32_t group = cache.config().layer_groups[static_cast<std::size_t>(layer)];
    const bool is_last = layer == config.n_layers - 1 && !rows.all_get_logits();
    if (!is_last && plans.all.count({group, window}) > 0) continue;
    PlanRequest request = request_for(config, cut, window, is_last ? wanted : all);
    if (window == 0 && cut.fixed_split == 0) {
      if (prefixes.count(group) == 0) prefixes[group] = prefixes_of(cache, rows, group);
      request.prefixes = prefixes[group];
      if (rows.tokens.size() == rows.sequences.size()) request.narrow_prefix_rows = kDecodePrefixRows;
    }
    (is_last ? plans.last : plans.all[{group, window}]) = plan_paged_attention(request);
  }
  return plans;
}

bool StepRoom::holds(const StepRows& rows, const StepPlans& plans) const {
  const auto is_one_token = [](const StepRows::Sequence& s) { return s.n_tokens == 1 && s.n_wanted == 1; };
  const auto fits = [this](const auto& of_layers) { return plan.holds(of_layers.second); };
  return static_cast<int>(rows.tokens.size()) <= n_tokens &&
         std::all_of(rows.sequences.begin(), rows.sequences.end(), is_one_token) &&
         std::all_of(plans.all.begin(), plans.all.end(), fits);
}

// Every token has an item, and tokens that share a prefix have some for it: n_items without splits. Where these fill
// the device there are no splits; where they do not, splits fill it once, or are two a token, where the end of one lies
// between its keys. Splits of a fixed length are as many as there are keys for.
StepRoom room_for(const ModelConfig& config, const AttentionCut& cut, const KvCacheConfig& cache, int n_tokens) {
  const int group = config.n_heads / config.n_kv_heads;
  const auto one_wave = static_cast<int>(ceil_div(cut.n_blocks, config.n_kv_heads));
  const int n_items = n_tokens + static_cast<int>(ceil_div(n_tokens * group, kNarrowRows)) + n_tokens / 2;
  StepRoom room;
  room.n_tokens = room.plan.n_tokens = room.plan.n_merged_tokens = n_tokens;
  room.table_width = static_cast<int>(ceil_div(config.max_model_len, cache.page_size));
  if (cut.fixed_split == 0) {
    room.plan.n_narrow = std::max({n_items, one_wave, 2 * std::min(n_items, one_wave)});
    room.plan.has_prefixes = true;
  } else {
    room.plan.n_wide = std::max(kFixedSplitWaves * one_wave, 2 * n_tokens);
  }
  room.plan.n_states = room.plan.n_narrow + room.plan.n_wide;
  return room;
}

std::string why_no_room(const ModelConfig& config, const AttentionCut& cut) {
  if (cut.fixed_split > 0 && cut.wide_rows != kWideRows) {
    return "a deterministic decoder attends by wgmma on this device, whose launches a graph does not hold";
  }
  const int group = config.n_heads / config.n_kv_heads, most = cut.fixed_split > 0 ? kWideRows : kNarrowRows;
  if (group <= most) return {};
  return concat(group, " query heads of a KV head are more than the ", most, " of a graph");
}

void DeviceStep::stage(const ModelConfig& config, const KvCache& cache, const StepRows& rows, const StepPlans& plans,
                       const StepRoom* room, RopeTable& rope) {
  n_tokens_ = room != nullptr ? room->n_tokens : static_cast<std::int32_t>(rows.tokens.size());
  arrays_.begin();
  stage_rows(config, rows, rope);
  groups_.resize(cache.config().groups.size());
  for (std::size_t i = 0; i < groups_.size(); ++i) stage_group(cache, rows, static_cast<std::int32_t>(i), room);
  n_state_floats_ = 0;
  plans_.clear();
  for (const auto& [layers, plan] : plans.all) stage_plan(plan, room, config, plans_[layers]);
  if (!rows.all_get_logits()) stage_plan(plans.last, nullptr, config, last_plan_);
}

void DeviceStep::stage_rows(const ModelConfig& config, const StepRows& rows, RopeTable& rope) {
  const auto half = static_cast<std::int64_t>(config.rope_inv_freq.size());
  for (const StepRows::Sequence& s : rows.sequences) rope.reach(config, s.position_end());
  ids_ = arrays_.make<std::int32_t>(n_tokens_);
  std::int32_t* const ids = arrays_.host(ids_);
  const auto id_of = [](const StepRows::Token& token) { return token.id; };
  std::fill(std::transform(rows.tokens.begin(), rows.tokens.end(), ids, id_of), ids + n_tokens_, 0);
  const auto add_angles = [&](const float* table) {
    const StagedArray<float> array = arrays_.make<float>(n_tokens_ * half);
    float* at = arrays_.host(array);
    for (const StepRows::Token& token : rows.tokens) at = std::copy_n(table + token.position * half, half, at);
    std::fill(at, arrays_.host(array) + n_tokens_ * half, 0.0f);
    return array;
  };
  cos_ = add_angles(rope.cos());
  sin_ = add_angles(rope.sin());
  wanted_ = {};
  if (!rows.all_get_logits()) wanted_ = arrays_.add<std::int32_t>(Span<const std::int32_t>(rows.logits_tokens));
}

void DeviceStep::stage_group(const KvCache& cache, const StepRows& rows, std::int32_t number, const StepRoom* room) {
  const std::vector<std::int32_t>& pages = rows.token_pages[static_cast<std::size_t>(number)];
  GroupArrays& group = groups_[static_cast<std::size_t>(number)];
  group.slot_mapping = arrays_.make<std::int64_t>(n_tokens_);
  std::int64_t* const slots = arrays_.host(group.slot_mapping);
  for (std::size_t i = 0; i < pages.size(); ++i) {
    slots[i] = std::int64_t{pages[i]} * cache.config().page_size + rows.tokens[i].slot;
  }
  std::fill(slots + pages.size(), slots + n_tokens_, -1);
  std::size_t width = room != nullptr ? static_cast<std::size_t>(room->table_width) : 0;
  std::size_t n_sequences = room != nullptr ? static_cast<std::size_t>(n_tokens_) : rows.sequences.size();
  for (const StepRows::Sequence& s : rows.sequences) {
    if (room == nullptr) width = std::max(width, cache.page_table(s.id, number).size());
  }
  group.block_table_stride = static_cast<std::int64_t>(width);
  group.block_table = arrays_.make<std::int32_t>(static_cast<std::int64_t>(n_sequences * width));
  std::int32_t* row = arrays_.host(group.block_table);
  for (const StepRows::Sequence& s : rows.sequences) {  // what follows a sequence's pages may be anything
    const std::vector<std::int32_t>& table = cache.page_table(s.id, number);
    std::copy_n(table.begin(), std::min(table.size(), width), row);
    row += width;
  }
}

void DeviceStep::stage_plan(const PagedAttentionPlan& plan, const StepRoom* room, const ModelConfig& config,
                            StagedPlan& staged) {
  staged.stage(plan, room != nullptr ? room->plan : room_of(plan), arrays_);
  n_state_floats_ = std::max(n_state_floats_, staged.room().n_state_floats(config.n_heads, config.head_dim));
}

std::int64_t DeviceStep::n_upload_bytes() const {
  return arrays_.n_upload_bytes() + n_state_floats_ * static_cast<std::int64_t>(sizeof(float));
}

void DeviceStep::upload(Stream stream) {
  arrays_.upload(stream);
  grow(states_, n_state_floats_, stream);
}

DeviceGroup DeviceStep::group(std::int32_t number) const {
  const GroupArrays& group = groups_[static_cast<std::size_t>(number)];
  return {arrays_.device(group.slot_mapping), arrays_.device(group.block_table), group.block_table_stride};
}

void DeviceStep::fill(GroupAndWindow layers, PagedAttentionLaunch& launch) const {
  plans_.at(layers).fill(arrays_, states_.data(), launch);
}

void DeviceStep::fill_last(PagedAttentionLaunch& launch) const { last_plan_.fill(arrays_, states_.data(), launch); }

}  // namespace gpu
}  // namespace llm_decoder
