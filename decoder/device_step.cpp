#include "device_step.h"

#include <algorithm>

#include "rope_rows.h"

namespace llm_decoder {
namespace gpu {
namespace {

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
  return request;
}

}  // namespace

void DeviceStep::update(const ModelConfig& config, const KvCache& cache, const StepRows& rows, Stream stream) {
  arrays_.begin(stream);
  add_rows(config, rows);
  groups_.resize(cache.config().groups.size());
  for (std::size_t i = 0; i < groups_.size(); ++i) add_group(cache, rows, static_cast<std::int32_t>(i));
  arrays_.upload(stream);
  plan_attention(config, cache, rows, stream);
}

void DeviceStep::add_rows(const ModelConfig& config, const StepRows& rows) {
  const auto n_tokens = static_cast<std::int64_t>(rows.tokens.size());
  const auto half = static_cast<std::int64_t>(config.rope_inv_freq.size());
  ids_ = arrays_.make<std::int32_t>(n_tokens);
  cos_ = arrays_.make<float>(n_tokens * half);
  sin_ = arrays_.make<float>(n_tokens * half);
  std::int32_t* ids = arrays_.host(ids_);
  float *cos = arrays_.host(cos_), *sin = arrays_.host(sin_);
  for (const StepRows::Token& token : rows.tokens) {
    *ids++ = token.id;
    fill_rope_row(config, token.position, cos, sin);
    cos += half;
    sin += half;
  }
  wanted_ = arrays_.add<std::int32_t>(Span<const std::int32_t>(rows.logits_tokens));
}

void DeviceStep::add_group(const KvCache& cache, const StepRows& rows, std::int32_t number) {
  const std::vector<std::int32_t>& pages = rows.token_pages[static_cast<std::size_t>(number)];
  GroupArrays& group = groups_[static_cast<std::size_t>(number)];
  group.slot_mapping = arrays_.make<std::int64_t>(static_cast<std::int64_t>(pages.size()));
  std::int64_t* slots = arrays_.host(group.slot_mapping);
  for (std::size_t i = 0; i < pages.size(); ++i) {
    slots[i] = std::int64_t{pages[i]} * cache.config().page_size + rows.tokens[i].slot;
  }
  std::size_t longest = 0;
  for (const StepRows::Sequence& s : rows.sequences) {
    longest = std::max(longest, cache.page_table(s.id, number).size());
  }
  group.block_table_stride = static_cast<std::int64_t>(longest);
  group.block_table = arrays_.make<std::int32_t>(static_cast<std::int64_t>(rows.sequences.size() * longest));
  std::int32_t* row = arrays_.host(group.block_table);
  for (const StepRows::Sequence& s : rows.sequences) {
    const std::vector<std::int32_t>& table = cache.page_table(s.id, number);
    std::fill(std::copy(table.begin(), table.end(), row), row + longest, -1);
    row += longest;
  }
}

std::vector<SharedPrefix> DeviceStep::prefixes_of(const KvCache& cache, const StepRows& rows,
                                                  std::int32_t group) const {
  std::vector<PrefixOwner> owners;
  for (const StepRows::Sequence& s : rows.sequences) {
    owners.push_back({Span<const std::int32_t>(cache.page_table(s.id, group)), s.position_begin});
  }
  return find_shared_prefixes(owners, cache.config().page_size);
}

void DeviceStep::plan_attention(const ModelConfig& config, const KvCache& cache, const StepRows& rows, Stream stream) {
  const Lengths all = lengths_of(rows, false), wanted = lengths_of(rows, true);
  for (auto& [key, kept] : plans_) kept.is_of_this_step = false;
  std::map<std::int32_t, std::vector<SharedPrefix>> prefixes;  // by group
  for (std::int32_t layer = 0; layer < config.n_layers; ++layer) {
    const std::int32_t window = config.windows[static_cast<std::size_t>(layer)];
    const std::int32_t group = cache.config().layer_groups[static_cast<std::size_t>(layer)];
    const bool shares = window == 0 && cut_.fixed_split == 0;
    if (shares && prefixes.count(group) == 0) prefixes[group] = prefixes_of(cache, rows, group);
    const auto update = [&](DevicePlan& plan, const Lengths& lengths) {
      PlanRequest request = request_for(config, cut_, window, lengths);
      if (shares) request.prefixes = prefixes[group];
      plan.update(request, config.head_dim, stream);
    };
    if (layer == config.n_layers - 1) {
      update(last_plan_, wanted);
      continue;
    }
    KeptPlan& kept = plans_[{group, window}];
    if (!kept.is_of_this_step) update(kept.plan, all);
    kept.is_of_this_step = true;
  }
}

DeviceGroup DeviceStep::group(std::int32_t number) const {
  const GroupArrays& group = groups_[static_cast<std::size_t>(number)];
  return {arrays_.device(group.slot_mapping), arrays_.device(group.block_table), group.block_table_stride};
}

}  // namespace gpu
}  // namespace llm_decoder
