#include "attention_ops.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "attention_plan.h"
#include "llm_decoder/errors.h"
#include "op_rows.h"
#include "workspace.h"

namespace llm_decoder {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr std::int32_t kMaxInt32 = std::numeric_limits<std::int32_t>::max();

// Windows as kernels know them.
std::int32_t left_window(const PagedAttentionCall& call) {
  return call.window_left < 0 ? 0 : std::min(call.window_left, kMaxInt32 - 1) + 1;
}

std::int32_t right_window(const PagedAttentionCall& call) {
  if (call.is_causal) return 0;
  return call.window_right < 0 ? kMaxInt32 : call.window_right;
}

void check_lengths(const PagedAttentionCall& call) {
  const char* place = "ops.paged_attention";
  check_arg(call.cu_seqlens_q[0] == 0, place, "cu_seqlens_q must begin with 0, got ", call.cu_seqlens_q[0]);
  for (std::int32_t i = 0; i < call.n_sequences; ++i) {
    const std::int32_t begin = call.cu_seqlens_q[i], end = call.cu_seqlens_q[i + 1];
    check_arg(begin <= end && end <= call.n_tokens, place, "cu_seqlens_q must not fall and end at most at ",
              call.n_tokens, ", the tokens of q; got ", end, " after ", begin);
    const std::int64_t capacity = std::int64_t{call.table_width} * call.pool.page_size;
    check_arg(call.seq_lens[i] >= 0 && call.seq_lens[i] <= capacity, place, "seq_lens[", i, "] must be in [0, ",
              capacity, "], what ", call.table_width, " pages of block_table hold; got ", call.seq_lens[i]);
  }
}

// The tokens of a sequence that see something; the others are its first.
QuerySequence seeing_tokens(const PagedAttentionCall& call, std::int32_t sequence) {
  const std::int32_t begin = call.cu_seqlens_q[sequence], n_tokens = call.cu_seqlens_q[sequence + 1] - begin;
  const std::int32_t seq_len = call.seq_lens[sequence], position = seq_len - n_tokens;
  const std::int64_t first_that_sees = std::max<std::int64_t>(0, -(std::int64_t{position} + right_window(call)));
  const auto n_blind =
      seq_len == 0 ? n_tokens : static_cast<std::int32_t>(std::min<std::int64_t>(n_tokens, first_that_sees));
  return {call.block_table + std::int64_t{sequence} * call.table_width, begin + n_blind, n_tokens - n_blind,
          position + n_blind, seq_len};
}

void check_pages(const PagedAttentionCall& call, const QuerySequence& sequence, std::int32_t number) {
  const std::int32_t page_size = call.pool.page_size;
  const std::int64_t first = call.window_left < 0 ? 0 : std::int64_t{sequence.position_begin} - call.window_left;
  const std::int64_t last = std::min<std::int64_t>(
      sequence.n_positions - 1, std::int64_t{sequence.position_begin} + sequence.n_tokens - 1 + right_window(call));
  for (std::int64_t i = std::max<std::int64_t>(first, 0) / page_size; i <= last / page_size; ++i) {
    const std::int32_t page = sequence.block_table[i];
    check_arg(page >= 0 && page < call.pool.n_pages, "ops.paged_attention", "block_table[", number, ", ", i,
              "] must be in [0, ", call.pool.n_pages, "), for a token sees that page; got ", page);
  }
}

std::vector<QuerySequence> check_sequences(const PagedAttentionCall& call) {
  check_lengths(call);
  std::vector<QuerySequence> sequences;
  for (std::int32_t i = 0; i < call.n_sequences; ++i) {
    const QuerySequence sequence = seeing_tokens(call, i);
    if (sequence.n_tokens == 0) continue;
    check_pages(call, sequence, i);
    sequences.push_back(sequence);
  }
  return sequences;
}

// What stays where nothing is seen.
void clear_rows(const PagedAttentionCall& call, float* out) {
  std::fill_n(out, std::int64_t{call.n_tokens} * call.n_heads * call.pool.head_dim, 0.0f);
  if (call.lse == nullptr) return;
  std::fill_n(call.lse, std::int64_t{call.n_tokens} * call.n_heads, -kInfinity);
  if (call.sinks == nullptr) return;
  for (std::int64_t token = 0; token < call.cu_seqlens_q[call.n_sequences]; ++token) {
    std::copy_n(call.sinks, call.n_heads, call.lse + token * call.n_heads);
  }
}

}  // namespace

void paged_attention_op(const PagedAttentionCall& call, const CpuKernels& kernels, ThreadPool& pool) {
  const std::int32_t head_dim = call.pool.head_dim;
  const std::vector<QuerySequence> sequences = check_sequences(call);
  const std::int64_t token_floats = std::int64_t{call.n_heads} * head_dim;
  const std::size_t n_bytes = static_cast<std::size_t>(call.n_tokens * token_floats) * sizeof(float);
  const AlignedBuffer q(n_bytes), out(n_bytes);
  clear_rows(call, out.as<float>());
  const auto for_heads = [&](const auto& fn) {
    for_rows(pool, call.n_tokens, [&](std::int64_t token, int) {
      for (std::int32_t head = 0; head < call.n_heads; ++head) fn(token, head, token * token_floats + head * head_dim);
    });
  };
  for_heads([&](std::int64_t token, std::int32_t head, std::int64_t begin) {
    widen_row(call.q.dtype, call.q.row(token, head), head_dim, q.as<float>() + begin);
  });

  AttentionArgs args;
  args.kv = view_of_nhd(call.pool.pages, call.pool.page_size, call.pool.n_kv_heads, head_dim);
  args.q = q.as<float>();
  args.out = out.as<float>();
  args.q_stride = args.out_stride = token_floats;
  args.n_heads = call.n_heads;
  args.scale = call.scale;
  args.window = left_window(call);
  args.window_right = right_window(call);
  args.softcap = call.softcap;
  args.alibi_slopes = call.alibi_slopes;
  args.sinks = call.sinks;
  args.lse = call.lse;
  AttentionPlan plan;
  plan.make({args.n_heads, args.kv.n_kv_heads, args.kv.page_size, args.window, pool.n_threads(), args.window_right},
            sequences);
  args.runs = plan.runs.data();
  const std::size_t scratch_stride = kernels.attention_scratch_bytes(args.kv, args.n_heads);
  const AlignedBuffer scratch(scratch_stride * static_cast<std::size_t>(pool.n_threads()));
  const AlignedBuffer states(static_cast<std::size_t>(plan.n_states * args.n_heads) *
                             static_cast<std::size_t>(state_floats(args.kv.head_dim_padded)) * sizeof(float));
  args.states = states.as<float>();
  const auto scratch_of = [&](int thread) {
    return scratch.as<std::byte>() + static_cast<std::size_t>(thread) * scratch_stride;
  };
  pool.parallel_for(static_cast<std::int64_t>(plan.items.size()), [&](std::int64_t i, int thread) {
    kernels.paged_attention(args, plan.items[static_cast<std::size_t>(i)], nullptr, scratch_of(thread));
  });
  pool.parallel_for(static_cast<std::int64_t>(plan.merges.size()), [&](std::int64_t i, int thread) {
    kernels.merge_states(args, plan.merges[static_cast<std::size_t>(i)], scratch_of(thread));
  });
  for_heads([&](std::int64_t token, std::int32_t head, std::int64_t begin) {
    narrow_row(call.out.dtype, out.as<float>() + begin, head_dim, 1.0f, call.out.row(token, head));
  });
}

void merge_states_op(const PartialAttention* parts, std::int32_t n_parts, std::int64_t n_tokens, std::int32_t n_heads,
                     std::int32_t head_dim, const HeadRows& out, float* lse, ThreadPool& pool) {
  std::vector<float> rows(static_cast<std::size_t>(pool.n_threads()) * static_cast<std::size_t>(2 * head_dim));
  for_rows(pool, n_tokens, [&](std::int64_t token, int thread) {
    float *sum = rows.data() + std::int64_t{thread} * 2 * head_dim, *row = sum + head_dim;
    for (std::int32_t head = 0; head < n_heads; ++head) {
      const std::int64_t at = token * n_heads + head;
      float largest = -kInfinity, total = 0.0f;
      for (std::int32_t i = 0; i < n_parts; ++i) largest = std::max(largest, parts[i].lse[at]);
      std::fill_n(sum, head_dim, 0.0f);
      for (std::int32_t i = 0; i < n_parts; ++i) {
        if (parts[i].lse[at] == -kInfinity) continue;
        const float weight = std::exp(parts[i].lse[at] - largest);
        total += weight;
        widen_row(parts[i].out.dtype, parts[i].out.row(token, head), head_dim, row);
        for (std::int32_t channel = 0; channel < head_dim; ++channel) sum[channel] += weight * row[channel];
      }
      narrow_row(out.dtype, sum, head_dim, total == 0.0f ? 1.0f : total, out.row(token, head));
      if (lse != nullptr) lse[at] = total == 0.0f ? -kInfinity : largest + std::log(total);
    }
  });
}

}  // namespace llm_decoder
