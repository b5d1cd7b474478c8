#include "paged_attention_plan.h"

#include <algorithm>

#include "llm_decoder/errors.h"

namespace llm_decoder {
namespace gpu {
namespace {

constexpr char kPlace[] = "plan_attention";

// Tokens that are planned as one: those of a sequence, or of all sequences that share a prefix over that prefix.
struct Run {
  int token_begin = 0, n_tokens = 0;
  int sequence = 0;
  int first_position = 0, position_step = 1;
  int key_begin = 0, key_end = 0;  // keys that any of its tokens sees
  int first_split = 0;             // which of the tokens' states are this run's
};

int size_of(Span<const int> span) { return static_cast<int>(span.size); }

void check_request(const PlanRequest& r) {
  check_arg(r.n_kv_heads > 0 && r.n_heads > 0 && r.n_heads % r.n_kv_heads == 0, kPlace,
            "n_heads must be a multiple of n_kv_heads, got ", r.n_heads, " and ", r.n_kv_heads);
  check_arg(r.cu_seqlens_q.size == r.seq_lens.size + 1 && r.cu_seqlens_q[0] == 0, kPlace,
            "cu_seqlens_q must have an entry more than seq_lens and begin with 0, got ", r.cu_seqlens_q.size,
            " entries for ", r.seq_lens.size);
  for (int s = 0; s < size_of(r.seq_lens); ++s) {
    const auto i = static_cast<std::size_t>(s);
    const int n_queries = r.cu_seqlens_q[i + 1] - r.cu_seqlens_q[i];
    check_arg(n_queries >= 0, kPlace, "cu_seqlens_q must not fall, got ", r.cu_seqlens_q[i], " before ",
              r.cu_seqlens_q[i + 1]);
    check_arg(r.seq_lens[i] >= 0 && r.seq_lens[i] < kUnbounded, kPlace, "seq_lens must be 0 to ", kUnbounded - 1,
              ", got ", r.seq_lens[i], " for sequence ", s);
  }
  check_arg(r.fixed_split >= 0, kPlace, "fixed_split must not be negative, got ", r.fixed_split);
  check_arg(r.n_blocks > 0, kPlace, "n_blocks must be positive, got ", r.n_blocks);
  check_arg(r.wide_rows > 0 && r.wide_rows % kWideRows == 0, kPlace, "wide_rows must be a multiple of ", kWideRows,
            ", got ", r.wide_rows);
  if (r.prefixes.empty()) return;
  check_arg(r.is_causal && r.window_left == kUnbounded, kPlace,
            "shared prefixes need causal attention without a window");
}

// Prefixes in ascending order, none over another, no longer than what all their sequences have before their tokens.
void check_prefixes(const PlanRequest& r) {
  int end = 0;
  for (const SharedPrefix& prefix : r.prefixes) {
    check_arg(prefix.first >= end && prefix.n > 0 && prefix.first + prefix.n <= size_of(r.seq_lens), kPlace,
              "shared prefixes must follow each other within the batch, got ", prefix.n, " sequences from ",
              prefix.first);
    end = prefix.first + prefix.n;
    for (int s = prefix.first; s < end; ++s) {
      const auto i = static_cast<std::size_t>(s);
      const int n_before = r.seq_lens[i] - (r.cu_seqlens_q[i + 1] - r.cu_seqlens_q[i]);
      check_arg(prefix.n_keys > 0 && prefix.n_keys <= n_before, kPlace, "a shared prefix of ", prefix.n_keys,
                " keys, sequence ", s, " has ", n_before, " before its tokens");
    }
  }
}

// Keys that all sequences of the batch have in common with others, by sequence.
std::vector<int> prefix_keys(const PlanRequest& r) {
  std::vector<int> n_keys(r.seq_lens.size, 0);
  for (const SharedPrefix& prefix : r.prefixes) {
    std::fill_n(n_keys.begin() + prefix.first, prefix.n, prefix.n_keys);
  }
  return n_keys;
}

std::vector<Run> make_runs(const PlanRequest& r, const std::vector<int>& n_prefix_keys) {
  std::vector<Run> runs;
  for (const SharedPrefix& prefix : r.prefixes) {
    const auto first = static_cast<std::size_t>(prefix.first), end = static_cast<std::size_t>(prefix.first + prefix.n);
    const int token_begin = r.cu_seqlens_q[first], n_tokens = r.cu_seqlens_q[end] - token_begin;
    // Every one of these tokens comes after the prefix.
    if (n_tokens > 0) runs.push_back({token_begin, n_tokens, prefix.first, prefix.n_keys, 0, 0, prefix.n_keys, 0});
  }
  for (int s = 0; s < size_of(r.seq_lens); ++s) {
    const auto i = static_cast<std::size_t>(s);
    const int token_begin = r.cu_seqlens_q[i], n_tokens = r.cu_seqlens_q[i + 1] - token_begin;
    if (n_tokens == 0) continue;
    const int first = r.seq_lens[i] - n_tokens, last = r.seq_lens[i] - 1;
    const int after = r.is_causal ? 0 : r.window_right;
    const int key_begin = std::max({n_prefix_keys[i], first - r.window_left, 0});
    const int key_end = std::min(r.seq_lens[i], std::max(0, last + after + 1));
    runs.push_back({token_begin, n_tokens, s, first, 1, key_begin, std::max(key_begin, key_end), 0});
  }
  const int n_of_sequences = r.cu_seqlens_q[r.seq_lens.size];
  if (r.n_tokens > n_of_sequences) {
    runs.push_back({n_of_sequences, r.n_tokens - n_of_sequences, kNoSequence, 0, 0, 0, 0, 0});
  }
  return runs;
}

int n_splits(const Run& run, int split) {
  if (run.key_end <= run.key_begin) return 1;
  return (run.key_end - 1) / split - run.key_begin / split + 1;
}

bool is_narrow(const Run& run, const PlanRequest& r) {
  const bool is_prefix = run.sequence != kNoSequence && run.position_step == 0;
  const int narrow_rows = is_prefix ? r.narrow_prefix_rows : kNarrowRows;
  return !r.all_wide && run.n_tokens * (r.n_heads / r.n_kv_heads) <= narrow_rows;
}

// A block of more rows than kWideRows fills the place of several: splits do not depend on which kernel runs.
std::int64_t n_blocks_of(const std::vector<Run>& runs, const PlanRequest& r, int split) {
  const int group = r.n_heads / r.n_kv_heads;
  std::int64_t n = 0;
  for (const Run& run : runs) {
    const int block_rows = is_narrow(run, r) ? kNarrowRows : kWideRows;
    n += ceil_div(std::int64_t{run.n_tokens} * group, block_rows) * n_splits(run, split);
  }
  return n * r.n_kv_heads;
}

// Keys of a split: the fewest that keep all blocks in one wave; kUnbounded where the blocks fill the device anyway.
int choose_split(const std::vector<Run>& runs, const PlanRequest& r) {
  if (r.fixed_split > 0) return static_cast<int>(round_up(r.fixed_split, kSplitUnit));
  int longest = 0;
  for (const Run& run : runs) longest = std::max(longest, run.key_end - run.key_begin);
  if (n_blocks_of(runs, r, kUnbounded) >= r.n_blocks) return kUnbounded;
  int low = std::max(kMinSplit / kSplitUnit, static_cast<int>(ceil_div(longest, kSplitUnit * (kMaxSplits - 1))));
  int high = std::max(low, static_cast<int>(ceil_div(longest, kSplitUnit)) + 1);
  while (low < high) {
    const int middle = low + (high - low) / 2;
    if (n_blocks_of(runs, r, middle * kSplitUnit) <= r.n_blocks) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return low * kSplitUnit;
}

void add_items(const Run& run, const PlanRequest& r, int split, int block_rows,
               std::vector<PagedAttentionItem>& items) {
  const int n_rows = run.n_tokens * (r.n_heads / r.n_kv_heads);
  const int n = n_splits(run, split);
  for (int row = 0; row < n_rows; row += block_rows) {
    for (int i = 0; i < n; ++i) {
      PagedAttentionItem item;
      item.token_begin = run.token_begin;
      item.row_begin = row;
      item.n_rows = std::min(block_rows, n_rows - row);
      item.sequence = run.sequence;
      item.first_position = run.first_position;
      item.position_step = run.position_step;
      const std::int64_t begin = (std::int64_t{run.key_begin / split} + i) * split;
      item.key_begin = static_cast<int>(std::max<std::int64_t>(run.key_begin, begin));
      item.key_end = static_cast<int>(std::min<std::int64_t>(run.key_end, begin + split));
      item.split = run.first_split + i;
      items.push_back(item);
    }
  }
}

// Keys that any row of an item sees.
int n_seen_keys(const PagedAttentionItem& item, const PlanRequest& r) {
  const int group = r.n_heads / r.n_kv_heads, after = r.is_causal ? 0 : r.window_right;
  const auto position_of = [&](int row) { return item.first_position + item.position_step * (row / group); };
  const int begin = std::max(item.key_begin, position_of(item.row_begin) - r.window_left);
  const int end = std::min(item.key_end, position_of(item.row_begin + item.n_rows - 1) + after + 1);
  return std::max(0, end - begin);
}

void put_longest_first(std::vector<PagedAttentionItem>& items, const PlanRequest& r) {
  std::stable_sort(items.begin(), items.end(), [&r](const PagedAttentionItem& a, const PagedAttentionItem& b) {
    return n_seen_keys(a, r) > n_seen_keys(b, r);
  });
}

}  // namespace

PagedAttentionPlan plan_paged_attention(const PlanRequest& request) {
  check_request(request);
  check_prefixes(request);
  const std::vector<int> n_prefix_keys = prefix_keys(request);
  std::vector<Run> runs = make_runs(request, n_prefix_keys);
  const int split = choose_split(runs, request);
  const int n_tokens = std::max(request.n_tokens, request.cu_seqlens_q[request.seq_lens.size]);

  PagedAttentionPlan plan;
  plan.n_states.assign(static_cast<std::size_t>(n_tokens), 0);
  plan.state_begin.assign(static_cast<std::size_t>(n_tokens), kNoState);
  if (!request.prefixes.empty()) plan.prefix_states.assign(static_cast<std::size_t>(n_tokens), PrefixStates{});
  // Runs over prefixes come first, so their states are the first of a token, in the order of its keys.
  for (Run& run : runs) {
    const auto begin = plan.n_states.begin() + run.token_begin;
    run.first_split = *begin;
    std::for_each(begin, begin + run.n_tokens, [&](int& n) { n += n_splits(run, split); });
    if (run.first_split == 0) continue;
    const int n_before = run.first_position - n_prefix_keys[static_cast<std::size_t>(run.sequence)];
    for (int i = 0; i < run.n_tokens; ++i) {
      plan.prefix_states[static_cast<std::size_t>(run.token_begin + i)] = {run.first_split, n_before + i};
    }
  }
  for (int token = 0; token < n_tokens; ++token) {
    int& n = plan.n_states[static_cast<std::size_t>(token)];
    if (n > 1) {
      plan.state_begin[static_cast<std::size_t>(token)] = plan.n_all_states;
      plan.merged_tokens.push_back(token);
      plan.n_all_states += n;
    } else {
      n = 0;
    }
  }
  for (const Run& run : runs) {
    if (is_narrow(run, request)) {
      add_items(run, request, split, kNarrowRows, plan.narrow);
    } else {
      add_items(run, request, split, request.wide_rows, plan.wide);
    }
  }
  put_longest_first(plan.narrow, request);
  put_longest_first(plan.wide, request);
  plan.wide_rows = request.wide_rows;
  return plan;
}

}  // namespace gpu
}  // namespace llm_decoder
