#include "step_plan.h"

#include <algorithm>

namespace llm_decoder {

void StepPlan::make(const ModelConfig& config, const KvCache& cache, const StepBatch& batch, std::int32_t max_tokens,
                    int n_threads) {
  rows.make("INT8Decoder.step", config, cache, batch, max_tokens);
  groups.resize(cache.config().groups.size());
  for (std::size_t i = 0; i < groups.size(); ++i) make_group(config, cache, static_cast<std::int32_t>(i), n_threads);
}

void StepPlan::make_group(const ModelConfig& config, const KvCache& cache, std::int32_t number, int n_threads) {
  Group& group = groups[static_cast<std::size_t>(number)];
  asking_.clear();
  asking_last_.clear();
  for (const StepRows::Sequence& s : rows.sequences) {
    const std::int32_t* pages = cache.page_table(s.id, number).data();
    asking_.push_back({pages, s.token_begin, s.n_tokens, s.position_begin});
    if (s.n_wanted == 0) continue;
    asking_last_.push_back({pages, s.token_begin + s.n_skipped(), s.n_wanted, s.position_begin + s.n_skipped()});
  }
  const AttentionShape shape{config.n_heads, config.n_kv_heads, cache.config().page_size,
                             cache.config().groups[static_cast<std::size_t>(number)].window, n_threads};
  group.attention.make(shape, asking_);
  group.last_attention.make(shape, asking_last_);
}

std::int64_t StepPlan::n_states() const {
  std::int64_t most = 0;
  for (const Group& group : groups) most = std::max({most, group.attention.n_states, group.last_attention.n_states});
  return most;
}

}  // namespace llm_decoder
