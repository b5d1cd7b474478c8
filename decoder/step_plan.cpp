#include "step_plan.h"

#include <algorithm>

#include "llm_decoder/errors.h"

namespace llm_decoder {
namespace {

constexpr char kPlace[] = "INT8Decoder.step";
// The attention kernel reads keys and values once for this many rows (a query head of a token each), so a run of tokens
// has no fewer; and not many more, so that every thread gets several items.
constexpr std::int32_t kMinRunRows = 32;
constexpr std::int32_t kMaxRunRows = 192;
constexpr std::int64_t kItemsPerThread = 6;

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

// Query-position pairs of tokens at [begin, end) of a sequence that see everything before them.
std::int64_t n_visible(std::int64_t begin, std::int64_t end) { return (end * (end + 1) - begin * (begin + 1)) / 2; }

// Cuts tokens into runs, the dearest (latest) first, so that the cheap ones fill the gaps at the end.
void add_items(StepPlan::Attention& attention, const ModelConfig& config, const AttentionItem& all,
               std::int32_t max_run) {
  for (std::int32_t head = 0; head < config.n_kv_heads; ++head) {
    for (std::int32_t end = all.n_tokens; end > 0;) {
      const std::int32_t begin = (end - 1) / max_run * max_run;
      AttentionItem item = all;
      item.kv_head = head;
      item.token_begin += begin;
      item.position_begin += begin;
      item.n_tokens = end - begin;
      attention.items.push_back(item);
      end = begin;
    }
  }
  const std::int64_t begin = all.position_begin;
  attention.n_pairs += config.n_heads * n_visible(begin, begin + all.n_tokens);
}

// Tokens of an item.
std::int32_t run_length(std::int64_t n_tokens, const ModelConfig& config, int n_threads) {
  const std::int64_t group = config.n_heads / config.n_kv_heads;
  const std::int64_t smallest = ceil_div(kMinRunRows, group);
  const std::int64_t largest = std::max<std::int64_t>(smallest, kMaxRunRows / group);
  const std::int64_t even = ceil_div(n_tokens * config.n_kv_heads, kItemsPerThread * n_threads);
  return static_cast<std::int32_t>(std::clamp(round_up(even, smallest), smallest, largest));
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
  group.attention.items.clear();
  group.last_attention.items.clear();
  group.attention.n_pairs = group.last_attention.n_pairs = 0;
  const std::int32_t max_run = run_length(static_cast<std::int64_t>(tokens.size()), config, n_threads);
  const std::int32_t last_run = run_length(static_cast<std::int64_t>(logits_tokens.size()), config, n_threads);
  for (const Sequence& s : sequences_) {
    const std::int32_t* pages = cache.page_table(s.id, number).data();
    for (std::int32_t position = s.position_begin; position < s.position_begin + s.n_tokens; ++position) {
      const std::int32_t page = pages[position / cache.config().page_size];
      check_arg(page >= 0, kPlace, "position ", position, " has no page; reserve before the step");
      group.token_pages.push_back(page);
    }
    const AttentionItem all{pages, 0, s.token_begin, s.n_tokens, s.position_begin};
    add_items(group.attention, config, all, max_run);
    if (s.want == LogitRows::none) continue;
    const std::int32_t skipped = s.want == LogitRows::last ? s.n_tokens - 1 : 0;
    const AttentionItem wanted{pages, 0, s.token_begin + skipped, s.n_tokens - skipped, s.position_begin + skipped};
    add_items(group.last_attention, config, wanted, last_run);
  }
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
