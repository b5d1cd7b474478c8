// The CPU kernels as one table of function pointers an ISA. Kernels are plain: pointers and sizes in, results out; the
// caller owns memory, threads and choice. No kernel's result depends on how its rows, panels or items are split.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "llm_decoder/paged_kv.h"
#include "llm_decoder/types.h"

namespace llm_decoder {

// Packed weights. Output channels lie in panels of 16; inside a panel the input channels follow each other:
//   w8   uint8 [n_panels][k_padded / 4][16][4], q + 128, k padded to 4 with q = 0, channels past n with q = 0
//   w4   blocks of 64 input channels, [n_panels][ceil(k / 64)] of kBlockBytes each. It is w8 compressed: within a group
//        of 32 input channels the int8 weight is group_scale * q + group_min, q in 0..15, and lies within +-127. A
//        block:
//          uint8 [2 groups][16]{group_scale, group_min + 128}
//          uint8 [2 groups][4][16][4], q of input 8 j + i in the low nibble of [j][channel][i], of 8 j + 4 + i in the
//          high
//        What is past n or k is 0.
//   f32  float [n_panels][k][16], channels past n are 0
//   bf16 Bf16 [n_panels][k][16], the same
constexpr std::int32_t kPanelWidth = 16;
constexpr std::int32_t kDotWidth = 4;
constexpr std::int32_t kGroupWidth = 32;
constexpr std::int32_t kBlockWidth = 2 * kGroupWidth;
constexpr std::int64_t kBlockBytes = kPanelWidth * (kBlockWidth / 2 + 2 * 2);

constexpr std::int64_t n_panels(std::int64_t n) { return ceil_div(n, kPanelWidth); }
constexpr std::int64_t k_padded(std::int64_t k) { return round_up(k, kDotWidth); }
constexpr std::int64_t packed_w8_bytes(std::int64_t n, std::int64_t k) {
  return n_panels(n) * kPanelWidth * k_padded(k);
}
constexpr std::int64_t n_groups(std::int64_t k) { return ceil_div(k, kGroupWidth); }
constexpr std::int64_t n_blocks(std::int64_t k) { return ceil_div(k, kBlockWidth); }
constexpr std::int64_t packed_w4_bytes(std::int64_t n, std::int64_t k) {
  return n_panels(n) * n_blocks(k) * kBlockBytes;
}
constexpr std::int64_t packed_f32_bytes(std::int64_t n, std::int64_t k) { return n_panels(n) * kPanelWidth * k * 4; }
constexpr std::int64_t packed_bf16_bytes(std::int64_t n, std::int64_t k) { return n_panels(n) * kPanelWidth * k * 2; }

// out[m, n] (+)= a[m, k] . w[n, k] + bias[n], for the columns of panels [panel_begin, panel_end). Bf16 weights give bit
// for bit what the floats that they stand for give.
template <class Weight>
struct GemmFloatArgs {
  const float* a = nullptr;  // [m, k]
  std::int64_t a_stride = 0;
  const Weight* w = nullptr;    // packed f32 or bf16
  const float* bias = nullptr;  // [n] or null
  float* out = nullptr;         // [m, n]
  std::int64_t out_stride = 0;
  std::int32_t m = 0, n = 0, k = 0;
  bool accumulate = false;  // add to what out holds
};
using GemmF32Args = GemmFloatArgs<float>;
using GemmBf16Args = GemmFloatArgs<Bf16>;

// The same on int8: out = (sum_k a_q * w_q) * a_scale * w_scale + bias. The int32 sum is exact and equal on every ISA.
// Weights are w8, or w4, which gives bit for bit what the w8 weights that it stands for give.
struct GemmW8Args {
  const std::int8_t* a = nullptr;  // [m, k_padded(k)], zeros past k
  std::int64_t a_stride = 0;
  const float* a_scale = nullptr;       // [m]
  const std::int32_t* a_sum = nullptr;  // [m], sum of the row's int8 values, which undoes the bias of the weights
  const std::uint8_t* w = nullptr;      // packed w8 or w4
  const float* w_scale = nullptr;       // [n]
  const float* bias = nullptr;          // [n] or null
  float* out = nullptr;                 // [m, n]
  std::int64_t out_stride = 0;
  std::int32_t m = 0, n = 0, k = 0;
  bool accumulate = false;
};

// Rows quantised for GemmW8Args: symmetric, +-127, one scale a row; an all-zero row has scale 1.
struct QuantizedRows {
  std::int8_t* q = nullptr;  // [n_rows, k_padded(n_cols)]
  std::int64_t q_stride = 0;
  float* scale = nullptr;       // [n_rows]
  std::int32_t* sum = nullptr;  // [n_rows]
};

// Attention goes over a sequence in spans: a fixed run of positions each, whole pages. Every row has a state of its own
// over each span that it sees, and these merge in ascending order; so nothing depends on where work is cut or shared.
constexpr std::int32_t kSpanPositions = 256;

constexpr std::int32_t pages_of_span(std::int32_t page_size) {
  return page_size >= kSpanPositions ? 1 : kSpanPositions / page_size;
}
// Floats of a state: out [head_dim_padded], max, sum, and padding to a cache line.
constexpr std::int64_t state_floats(std::int32_t head_dim_padded) { return head_dim_padded + 16; }

constexpr std::int64_t kNoStates = -1;

// Consecutive tokens of one sequence that ask together.
struct QueryRun {
  std::int32_t token_begin = 0;  // row of q and out
  std::int32_t n_tokens = 0;
  std::int32_t position_begin = 0;  // of the first of these tokens in its sequence
  // Where several items share the run's spans: states [n_tokens][n_spans][n_heads] from state_begin * n_heads on, for
  // merge_states. kNoStates where one item goes over all spans and finishes.
  std::int64_t state_begin = kNoStates;
  std::int32_t first_span = 0, n_spans = 0;
  std::int32_t n_positions = INT32_MAX;  // of the sequence: where a token that sees beyond its own position stops
};

struct AttentionArgs {
  PagedKvView kv;
  const float* q = nullptr;   // [n_tokens, n_heads, head_dim], after rope
  std::int64_t q_stride = 0;  // floats between tokens
  float* out = nullptr;       // [n_tokens, n_heads, head_dim]
  std::int64_t out_stride = 0;
  std::int32_t n_heads = 0;
  float scale = 0.0f;              // multiplies q . k
  std::int32_t window = 0;         // position p sees positions (p - window, p]; 0 = all up to p
  std::int32_t window_right = 0;   // and so many after p
  const QueryRun* runs = nullptr;  // what items name
  float* states = nullptr;         // 64-byte aligned
  // A score s becomes softcap * tanh(s / softcap) - alibi_slopes[head] * |p - position of the key|.
  float softcap = 0.0f;                 // 0: none
  const float* alibi_slopes = nullptr;  // [n_heads] or null
  const float* sinks = nullptr;         // [n_heads] or null: a score that takes part in the sum only
  float* lse = nullptr;                 // [n_tokens, n_heads] or null: log of the sum of exp(score), sinks included
};

// One unit of attention: runs of tokens against the same pages of one KV head, for all query heads that share it.
struct AttentionItem {
  // Page ids of the sequence of any of the runs: they agree over the spans of the item. Entries that no run sees are
  // dead.
  const std::int32_t* block_table = nullptr;
  std::int32_t kv_head = 0;
  std::int32_t run_begin = 0, n_runs = 0;
  std::int32_t span_begin = 0, span_end = 0;
};

// Of a feed-forward layer, on one number: x / (1 + exp(-x)); x (1 + erf(x / sqrt(2))) / 2;
// x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2; max(x, 0); x.
enum class Activation : std::uint8_t { silu, gelu, gelu_tanh, relu, identity };

struct CpuKernels {
  const char* name;  // "generic", "avx2", "avx512vnni"

  // Products.
  void (*gemm_f32)(const GemmF32Args&, std::int32_t panel_begin, std::int32_t panel_end);
  void (*gemm_bf16)(const GemmBf16Args&, std::int32_t panel_begin, std::int32_t panel_end);
  void (*gemm_w8)(const GemmW8Args&, std::int32_t panel_begin, std::int32_t panel_end);
  // scratch: gemm_w4_scratch_bytes(k) bytes of the calling thread, 64-byte aligned.
  void (*gemm_w4)(const GemmW8Args&, std::int32_t panel_begin, std::int32_t panel_end, std::byte* scratch);
  std::size_t (*gemm_w4_scratch_bytes)(std::int32_t k);

  // Rows in, rows out. x: float32 [n_rows, n_cols], strides in floats.
  void (*quantize_rows)(const float* x, std::int64_t x_stride, std::int32_t n_rows, std::int32_t n_cols,
                        QuantizedRows out);
  void (*rms_norm)(const float* x, std::int64_t x_stride, const float* weight, float eps, std::int32_t n_rows,
                   std::int32_t n_cols, float* out, std::int64_t out_stride);
  // gate_up: [n_rows, 2 * n_cols], gate first. out[r, c] = silu(gate[r, c]) * up[r, c].
  void (*silu_mul)(const float* gate_up, std::int64_t stride, std::int32_t n_rows, std::int32_t n_cols, float* out,
                   std::int64_t out_stride);
  // out = (x - mean(x)) / sqrt(variance(x) + eps) * weight + bias, which may be null.
  void (*layer_norm)(const float* x, std::int64_t x_stride, const float* weight, const float* bias, float eps,
                     std::int32_t n_rows, std::int32_t n_cols, float* out, std::int64_t out_stride);
  // x: [n_rows, n_cols], or where is_gated [n_rows, 2 * n_cols] and out[r, c] = activation(x[r, c]) * x[r, n_cols + c].
  void (*activate)(Activation activation, bool is_gated, const float* x, std::int64_t x_stride, std::int32_t n_rows,
                   std::int32_t n_cols, float* out, std::int64_t out_stride);
  // Rotates the first 2 * half channels of each head in place, halves apart (x[i], x[i + half]), as Llama checkpoints
  // in the HF layout want it. x: one token's [n_heads, head_dim]; cos, sin: [half] of that token's position.
  void (*rope)(float* x, std::int32_t n_heads, std::int32_t head_dim, std::int32_t half, const float* cos,
               const float* sin);

  // Embedding rows out of the packed matrices, so that tied weights exist once. out: [hidden].
  void (*embed_f32)(const float* w, std::int32_t token, std::int32_t hidden, float* out);
  void (*embed_bf16)(const Bf16* w, std::int32_t token, std::int32_t hidden, float* out);
  void (*embed_w8)(const std::uint8_t* w, const float* w_scale, std::int32_t token, std::int32_t hidden, float* out);

  // Pages. key, value: one token's [n_kv_heads, head_dim], written at `slot` of `page`, quantised when the view is s8.
  void (*append_kv)(const PagedKvView&, std::int32_t page, std::int32_t slot, const float* key, const float* value);
  // next: what the thread will probably take next, asked for from memory meanwhile, or null.
  // scratch: attention_scratch_bytes(view, n_heads) bytes of the calling thread, 64-byte aligned.
  void (*paged_attention)(const AttentionArgs&, const AttentionItem&, const AttentionItem* next, std::byte* scratch);
  // Finishes a run of one token that has states, after all items over its spans.
  void (*merge_states)(const AttentionArgs&, const QueryRun&, std::byte* scratch);
  std::size_t (*attention_scratch_bytes)(const PagedKvView&, std::int32_t n_heads);

  // Reductions over one row of logits [n].
  // log(sum(exp(x))) in a fixed order; *max receives the largest value, *is_finite false if any is NaN or +inf.
  float (*log_sum_exp)(const float* x, std::int32_t n, float* max, bool* is_finite);
  // The lowest index of `max`, the row's largest value.
  std::int32_t (*index_of_max)(const float* x, std::int32_t n, float max);

  // What this machine can do at most with these instructions; decoder/machine_limits.h times them.
  // n_rounds rounds of multiply-adds on registers alone. Returns how many operations that were, two a multiply-add.
  std::int64_t (*peak_int8)(std::int64_t n_rounds);
  std::int64_t (*peak_f32)(std::int64_t n_rounds);
  // Reads n_floats, a multiple of 64, of any finite values, and does nothing with them. Returns a number to be ignored.
  std::int32_t (*read_memory)(const float* memory, std::int64_t n_floats);

  // A row of quantize_weight_groups.
  void (*quantize_groups)(const float* row, std::int64_t k, float scale, std::uint8_t* q, std::uint8_t* group_scale,
                          std::int8_t* group_min);
};

// The tables this machine can run, best first. "generic" is always last.
const std::vector<const CpuKernels*>& cpu_kernels();

// The table named `isa`, or the best one for "" or "auto". The environment's LLM_DECODER_CPU_ISA overrides "auto".
// Throws std::invalid_argument naming the choices when this machine cannot run it or no such table exists.
const CpuKernels& select_cpu_kernels(const char* isa);

// n elements of any dtype as floats, and floats as elements, x / scale to the nearest, ties to even: in float16
// infinity from 65520 on, in fp8 and int8 at most 448 and 127 of either sign, in int8 a NaN as 0. Baseline flags.
void widen_row(Dtype dtype, const std::byte* from, std::int64_t n, float* to);
void narrow_row(Dtype dtype, const float* from, std::int64_t n, float scale, std::byte* to);

// Packing, once at load, baseline flags. w: [n, k] rows; `row_stride` in elements.
void pack_f32(const float* w, std::int64_t row_stride, std::int64_t n, std::int64_t k, float* out);
// Rounds to the nearest, ties to even.
void pack_bf16(const float* w, std::int64_t row_stride, std::int64_t n, std::int64_t k, Bf16* out);
// Already quantised rows (symmetric int8) into the w8 layout.
void pack_w8(const std::int8_t* q, std::int64_t row_stride, std::int64_t n, std::int64_t k, std::uint8_t* out);
// The inverse: rows [n, k] of int8 out of the packed form.
void unpack_w8(const std::uint8_t* packed, std::int64_t n, std::int64_t k, std::int8_t* q, std::int64_t row_stride);
// Rows as quantize_weight_groups makes them into the w4 layout.
void pack_w4(const std::uint8_t* q, const std::uint8_t* group_scale, const std::int8_t* group_min, std::int64_t n,
             std::int64_t k, std::uint8_t* out);
// The int8 rows [n, k] that a w4 matrix stands for.
void expand_w4(const std::uint8_t* packed, std::int64_t n, std::int64_t k, std::int8_t* q);
// float rows -> int8 and scale [n]: scale = max|w| / 127, round half to even; an all-zero row has scale 1.
void quantize_weight_rows(const float* w, std::int64_t row_stride, std::int64_t n, std::int64_t k, std::int8_t* q,
                          std::int64_t q_stride, float* scale);
// float rows [n, k] -> q in 0..15 [n, k], group_scale in 1..16 and group_min [n, n_groups(k)], scale [n] as
// quantize_weight_rows gives it: w ~ (group_scale * q + group_min) * scale, scale and minimum of each group searched
// for the least squared error. The same bits whatever the kernels.
void quantize_weight_groups(const CpuKernels& kernels, const float* w, std::int64_t n, std::int64_t k, std::uint8_t* q,
                            std::uint8_t* group_scale, std::int8_t* group_min, float* scale);

}  // namespace llm_decoder
