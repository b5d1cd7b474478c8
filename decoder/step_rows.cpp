#include "step_rows.h"

#include <algorithm>
#include <string>

#include "llm_decoder/errors.h"

namespace llm_decoder {
namespace {

void check_cache(const char* place, const ModelConfig& config, const KvCacheConfig& cache) {
  const auto n_layers = static_cast<std::int32_t>(cache.layer_groups.size());
  check_arg(n_layers == config.n_layers && cache.n_kv_heads == config.n_kv_heads && cache.head_dim == config.head_dim,
            place, "the cache must have [n_layers, n_kv_heads, head_dim] = [", config.n_layers, ", ", config.n_kv_heads,
            ", ", config.head_dim, "], got [", n_layers, ", ", cache.n_kv_heads, ", ", cache.head_dim, "]");
  for (std::int32_t layer = 0; layer < n_layers; ++layer) {
    const std::int32_t seen = config.windows[static_cast<std::size_t>(layer)];
    const auto group = static_cast<std::size_t>(cache.layer_groups[static_cast<std::size_t>(layer)]);
    const std::int32_t kept = cache.groups[group].window;
    check_arg(kept == 0 || (seen != 0 && seen <= kept), place, "layer ", layer, " sees ",
              seen == 0 ? "every position" : "a window of ", seen == 0 ? "" : std::to_string(seen),
              ", but the cache keeps a window of ", kept);
  }
}

void check_sizes(const char* place, const StepBatch& batch, std::int32_t max_tokens) {
  const std::size_t n_seqs = batch.seq_ids.size;
  check_arg(batch.counts.size == n_seqs && batch.want.size == n_seqs, place,
            "counts and want must have one entry for each of ", n_seqs, " seq_ids, got ", batch.counts.size, " and ",
            batch.want.size);
  check_arg(n_seqs > 0, place, "needs at least one sequence, got none");
  std::int64_t n_tokens = 0;
  for (const std::int32_t count : batch.counts) {
    check_arg(count > 0, place, "counts must be positive, got ", count);
    n_tokens += count;
  }
  check_arg(static_cast<std::int64_t>(batch.tokens.size) == n_tokens, place, "counts add up to ", n_tokens,
            ", but there are ", batch.tokens.size, " tokens");
  check_arg(n_tokens <= max_tokens, place, "takes at most max_tokens_per_step = ", max_tokens, " tokens, got ",
            n_tokens);
}

}  // namespace

void StepRows::reserve(std::int32_t max_tokens) {
  const std::size_t n = static_cast<std::size_t>(max_tokens);
  tokens.reserve(n);
  logits_tokens.reserve(n);
  sequences.reserve(n);
  sorted_ids_.reserve(n);
}

void StepRows::clear(const KvCache& cache) {
  tokens.clear();
  logits_tokens.clear();
  sequences.clear();
  token_pages.assign(cache.config().groups.size(), {});
}

void StepRows::make(const char* place, const ModelConfig& config, const KvCache& cache, const StepBatch& batch,
                    std::int32_t max_tokens, std::int32_t n_drawn) {
  tokens.clear();
  logits_tokens.clear();
  sequences.clear();
  n_drawn_ = n_drawn;

  check_cache(place, config, cache.config());
  check_sizes(place, batch, max_tokens);
  check_distinct(place, batch);
  for (std::size_t i = 0; i < batch.seq_ids.size; ++i) add_sequence(place, config, cache, batch, i);
  token_pages.resize(cache.config().groups.size());
  for (std::size_t i = 0; i < token_pages.size(); ++i) add_pages(place, cache, static_cast<std::int32_t>(i));
}

void StepRows::check_distinct(const char* place, const StepBatch& batch) {
  sorted_ids_.assign(batch.seq_ids.begin(), batch.seq_ids.end());
  std::sort(sorted_ids_.begin(), sorted_ids_.end());
  const auto twice = std::adjacent_find(sorted_ids_.begin(), sorted_ids_.end());
  check_arg(twice == sorted_ids_.end(), place, "a sequence can be stepped once a step, got seq_id ",
            twice == sorted_ids_.end() ? 0 : *twice, " twice");
}

void StepRows::add_sequence(const char* place, const ModelConfig& config, const KvCache& cache, const StepBatch& batch,
                            std::size_t index) {
  const std::int64_t seq_id = batch.seq_ids[index];
  const std::int32_t count = batch.counts[index];
  const std::int32_t length = cache.length(seq_id);  // throws for an unknown id
  check_arg(batch.want[index] <= 2, place, "want must be 0, 1 or 2, got ", int{batch.want[index]});
  check_arg(count <= config.max_model_len - length, place,
            "positions must stay below max_model_len = ", config.max_model_len, "; sequence ", seq_id, " holds ",
            length, " tokens and got ", count, " more");
  const std::vector<std::int32_t>& table = cache.page_table(seq_id);  // as long as those of the other groups
  const std::int32_t page_size = cache.config().page_size;
  check_arg(static_cast<std::int64_t>(table.size()) * page_size >= std::int64_t{length} + count, place, "sequence ",
            seq_id, " needs room for ", length + count, " tokens, got pages for ",
            static_cast<std::int64_t>(table.size()) * page_size, "; reserve before the step");
  const auto want = static_cast<LogitRows>(batch.want[index]);
  const std::int32_t n_wanted = want == LogitRows::all ? count : want == LogitRows::last ? 1 : 0;
  sequences.push_back({seq_id, static_cast<std::int32_t>(tokens.size()), count, length, n_wanted});
  add_tokens(place, config, cache, batch, sequences.back());
}

void StepRows::add_tokens(const char* place, const ModelConfig& config, const KvCache& cache, const StepBatch& batch,
                          const Sequence& sequence) {
  const std::int32_t page_size = cache.config().page_size;
  for (std::int32_t i = 0; i < sequence.n_tokens; ++i) {
    const std::int32_t row = sequence.token_begin + i;
    const std::int32_t id = batch.tokens[static_cast<std::size_t>(row)];
    const std::int32_t position = sequence.position_begin + i;
    check_arg(id >= -n_drawn_ && id < config.vocab_size, place, "tokens must be in [", -n_drawn_, ", ",
              config.vocab_size, "), got ", id, " at index ", row);
    tokens.push_back({id, position, position % page_size});
    if (i >= sequence.n_skipped()) logits_tokens.push_back(row);
  }
}

void StepRows::add_pages(const char* place, const KvCache& cache, std::int32_t group) {
  std::vector<std::int32_t>& pages = token_pages[static_cast<std::size_t>(group)];
  pages.clear();
  for (const Sequence& sequence : sequences) {
    const std::int32_t* table = cache.page_table(sequence.id, group).data();
    for (std::int32_t position = sequence.position_begin; position < sequence.position_end(); ++position) {
      const std::int32_t page = table[position / cache.config().page_size];
      check_arg(page >= 0, place, "position ", position, " has no page; reserve before the step");
      pages.push_back(page);
    }
  }
}

}  // namespace llm_decoder
