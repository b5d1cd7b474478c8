#include "step_plan.h"

#include <algorithm>

#include "llm_decoder/errors.h"

namespace llm_decoder {
namespace {

constexpr char kPlace[] = "INT8Decoder.step";
void check_cache(const ModelConfig& config, const KvCacheConfig& cache) {
  const auto n_layers = static_cast<std::int32_t>(cache.layer_groups.size());
  check_arg(n_layers == config.n_layers && cache.n_kv_heads == config.n_kv_heads && cache.head_dim == config.head_dim,
            kPlace, "the cache must have [n_layers, n_kv_heads, head_dim] = [", config.n_layers, ", ",
            config.n_kv_heads, ", ", config.head_dim, "], got [", n_layers, ", ", cache.n_kv_heads, ", ",
            cache.head_dim, "]");
  for (std::int32_t layer = 0; layer < n_layers; ++layer) {
    const std::int32_t seen = config.windows[static_cast<std::size_t>(layer)];
    const auto group = static_cast<std::size_t>(cache.layer_groups[static_cast<std::size_t>(layer)]);
    const std::int32_t kept = cache.groups[group].window;
    check_arg(kept == 0 || (seen != 0 && seen <= kept), kPlace, "layer ", layer, " sees ",
              seen == 0 ? "every position" : "a window of ", seen == 0 ? "" : std::to_string(seen),
              ", but the cache keeps a window of ", kept);
  }
}

void check_sizes(const StepBatch& batch, std::int32_t max_tokens) {
  const std::size_t n_seqs = batch.seq_ids.size;
  check_arg(batch.counts.size == n_seqs && batch.want.size == n_seqs, kPlace,
            "counts and want must have one entry for each of ", n_seqs, " seq_ids, got ", batch.counts.size, " and ",
            batch.want.size);
  check_arg(n_seqs > 0, kPlace, "needs at least one sequence, got none");
  std::int64_t n_tokens = 0;
  for (const std::int32_t count : batch.counts) {
    check_arg(count > 0, kPlace, "counts must be positive, got ", count);
    n_tokens += count;
  }
  check_arg(static_cast<std::int64_t>(batch.tokens.size) == n_tokens, kPlace, "counts add up to ", n_tokens,
            ", but there are ", batch.tokens.size, " tokens");
  check_arg(n_tokens <= max_tokens, kPlace, "takes at most max_tokens_per_step = ", max_tokens, " tokens, got ",
            n_tokens);
}

}  // namespace

void StepPlan::reserve(std::int32_t max_tokens) {
  const std::size_t n = static_cast<std::size_t>(max_tokens);
  tokens.reserve(n);
  logits_tokens.reserve(n);
  sequences_.reserve(n);
  sorted_ids_.reserve(n);
}

void StepPlan::make(const ModelConfig& config, const KvCache& cache, const StepBatch& batch, std::int32_t max_tokens,
                    int n_threads) {
  tokens.clear();
  logits_tokens.clear();
  sequences_.clear();

  check_cache(config, cache.config());
  check_sizes(batch, max_tokens);
  check_distinct(batch);
  for (std::size_t i = 0; i < batch.seq_ids.size; ++i) add_sequence(config, cache, batch, i);
  groups.resize(cache.config().groups.size());
  for (std::size_t i = 0; i < groups.size(); ++i) make_group(config, cache, static_cast<std::int32_t>(i), n_threads);
}

void StepPlan::make_group(const ModelConfig& config, const KvCache& cache, std::int32_t number, int n_threads) {
  Group& group = groups[static_cast<std::size_t>(number)];
  group.token_pages.clear();
  asking_.clear();
  asking_last_.clear();
  for (const Sequence& s : sequences_) {
    const std::int32_t* pages = cache.page_table(s.id, number).data();
    for (std::int32_t position = s.position_begin; position < s.position_begin + s.n_tokens; ++position) {
      const std::int32_t page = pages[position / cache.config().page_size];
      check_arg(page >= 0, kPlace, "position ", position, " has no page; reserve before the step");
      group.token_pages.push_back(page);
    }
    asking_.push_back({pages, s.token_begin, s.n_tokens, s.position_begin});
    if (s.want == LogitRows::none) continue;
    const std::int32_t skipped = s.want == LogitRows::last ? s.n_tokens - 1 : 0;
    asking_last_.push_back({pages, s.token_begin + skipped, s.n_tokens - skipped, s.position_begin + skipped});
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

void StepPlan::check_distinct(const StepBatch& batch) {
  sorted_ids_.assign(batch.seq_ids.begin(), batch.seq_ids.end());
  std::sort(sorted_ids_.begin(), sorted_ids_.end());
  const auto twice = std::adjacent_find(sorted_ids_.begin(), sorted_ids_.end());
  check_arg(twice == sorted_ids_.end(), kPlace, "a sequence can be stepped once a step, got seq_id ",
            twice == sorted_ids_.end() ? 0 : *twice, " twice");
}

void StepPlan::add_sequence(const ModelConfig& config, const KvCache& cache, const StepBatch& batch,
                            std::size_t index) {
  const std::int64_t seq_id = batch.seq_ids[index];
  const std::int32_t count = batch.counts[index];
  const std::int32_t length = cache.length(seq_id);  // throws for an unknown id
  check_arg(batch.want[index] <= 2, kPlace, "want must be 0, 1 or 2, got ", int{batch.want[index]});
  check_arg(count <= config.max_model_len - length, kPlace,
            "positions must stay below max_model_len = ", config.max_model_len, "; sequence ", seq_id, " holds ",
            length, " tokens and got ", count, " more");
  const std::vector<std::int32_t>& table = cache.page_table(seq_id);  // as long as those of the other groups
  const std::int32_t page_size = cache.config().page_size;
  check_arg(static_cast<std::int64_t>(table.size()) * page_size >= std::int64_t{length} + count, kPlace, "sequence ",
            seq_id, " needs room for ", length + count, " tokens, got pages for ",
            static_cast<std::int64_t>(table.size()) * page_size, "; reserve before the step");
  const Sequence sequence{seq_id, static_cast<std::int32_t>(tokens.size()), count, length,
                          static_cast<LogitRows>(batch.want[index])};
  sequences_.push_back(sequence);
  add_tokens(config, cache, batch, sequence);
}

void StepPlan::add_tokens(const ModelConfig& config, const KvCache& cache, const StepBatch& batch,
                          const Sequence& sequence) {
  const std::int32_t page_size = cache.config().page_size;
  const std::int32_t first_wanted = sequence.want == LogitRows::all    ? 0
                                    : sequence.want == LogitRows::last ? sequence.n_tokens - 1
                                                                       : sequence.n_tokens;
  for (std::int32_t i = 0; i < sequence.n_tokens; ++i) {
    const std::int32_t row = sequence.token_begin + i;
    const std::int32_t id = batch.tokens[static_cast<std::size_t>(row)];
    const std::int32_t position = sequence.position_begin + i;
    check_arg(id >= 0 && id < config.vocab_size, kPlace, "tokens must be in [0, ", config.vocab_size, "), got ", id,
              " at index ", row);
    tokens.push_back({id, position, position % page_size});
    if (i >= first_wanted) logits_tokens.push_back(row);
  }
}

}  // namespace llm_decoder
