#include "int8_decoder.h"

#include <algorithm>
#include <limits>

#include "check_config.h"
#include "llm_decoder/errors.h"
#include "rope_rows.h"

namespace llm_decoder {
namespace {

// Work below this is done sooner by the calling thread than by waking up others.
constexpr std::int64_t kInlineElements = 2 << 10;  // values of rows
constexpr std::int64_t kInlinePairs = 512;         // (query head, position) pairs of attention
constexpr std::int64_t kRowItemsPerThread = 4;
// What a block of rows has in `wide` leaves half of an L2 cache to the weights that pass, and the weights are read for
// no fewer rows.
constexpr std::int64_t kRowBlockBytes = 1 << 20;
constexpr std::int64_t kMinBlockRows = 48;
// Products of values in +-127 that an int32 holds the sum of.
constexpr std::int64_t kMaxExactTerms = std::numeric_limits<std::int32_t>::max() / (127 * 127);

const ModelConfig& checked(const ModelConfig& c) {
  constexpr char kPlace[] = "INT8Decoder";
  check_config(kPlace, c);
  const std::int64_t longest_sum =
      std::max({std::int64_t{c.hidden_size}, std::int64_t{c.intermediate_size}, std::int64_t{c.n_heads} * c.head_dim});
  check_arg(longest_sum <= kMaxExactTerms, kPlace, "a product sums ", longest_sum, " terms, int8 sums are exact up to ",
            kMaxExactTerms);
  return c;
}

}  // namespace

INT8Decoder::INT8Decoder(const ModelConfig& config, int n_threads, const char* isa)
    : config_(checked(config)), kernels_(select_cpu_kernels(isa)), pool_(n_threads), sampler_(n_threads) {}

void INT8Decoder::set_weight(const std::string& name, const WeightView& view) {
  constexpr char kPlace[] = "INT8Decoder.set_weight";
  check_arg(!is_final_, kPlace, "weights cannot change after finalize, got ", name);
  check_weight(kPlace, name, view);
  named_weights_[name] = view;
}

void INT8Decoder::finalize(std::int32_t max_tokens_per_step) {
  check_arg(!is_final_, "INT8Decoder.finalize", "needs to be called once, was called twice");
  check_arg(max_tokens_per_step > 0, "INT8Decoder.finalize", "max_tokens_per_step must be positive, got ",
            max_tokens_per_step);
  WeightResolver resolver("INT8Decoder.finalize", named_weights_);
  weights_ = resolve_decoder_weights<Matrix>(config_, resolver);
  is_quantized_ = resolver.is_quantized();
  std::size_t scratch_bytes = 0;
  for (const LayerWeights& layer : weights_.layers) {
    for (const Matrix* w : {&layer.attn_qkv, &layer.attn_o, &layer.mlp_gate_up, &layer.mlp_down}) {
      scratch_bytes = std::max(scratch_bytes, product_scratch_bytes(kernels_, *w));
    }
  }
  scratch_bytes = std::max(scratch_bytes, product_scratch_bytes(kernels_, weights_.lm_head));
  workspace_ = Workspace(config_, is_quantized_, scratch_bytes, max_tokens_per_step, pool_.n_threads());
  plan_.rows.reserve(max_tokens_per_step);
  is_final_ = true;
}

std::int32_t INT8Decoder::step(const KvCache& cache, const StepBatch& batch) {
  check_arg(is_final_, "INT8Decoder.step", "needs finalize first");
  if (profile_ != nullptr) {
    profile_->begin_step(static_cast<std::int32_t>(batch.tokens.size), static_cast<std::int32_t>(batch.seq_ids.size));
  }
  plan_.make(config_, cache, batch, workspace_.max_tokens, pool_.n_threads());
  workspace_.ensure_logits_rows(config_, static_cast<std::int32_t>(plan_.rows.logits_tokens.size()));
  const PagedKvView kv = cache.layer(0);
  workspace_.ensure_attention(kernels_.attention_scratch_bytes(kv, config_.n_heads),
                              plan_.n_states() * config_.n_heads * state_floats(kv.head_dim_padded));
  n_logits_rows_ = 0;
  spent(StepPart::plan);

  embed();
  spent(StepPart::embed);
  for (std::int32_t i = 0; i < config_.n_layers; ++i) run_layer(i, cache);
  compute_logits();
  return n_logits_rows_;
}

// How many blocks for_blocks cuts the rows into. W4 is expanded for a block of rows anew, which costs what is gained.
std::int64_t INT8Decoder::n_row_blocks() const {
  if (weights_.layers.front().mlp_gate_up.layout == WeightView::Layout::w4) return 1;
  const std::int64_t n_bytes = n_rows_ * workspace_.wide_stride * static_cast<std::int64_t>(sizeof(float));
  const std::int64_t n_fit = std::max(ceil_div(n_bytes, kRowBlockBytes), std::int64_t{1});
  const std::int64_t n_blocks = round_up(n_fit, pool_.n_threads());
  return n_rows_ >= n_blocks * kMinBlockRows ? n_blocks : 1;
}

// Calls fn(block) for blocks of rows that need nothing of each other. What a thread computes for its block stays in its
// L2 cache from product to product, and there is no barrier between them; the price is that every thread reads all
// weights. Where a block would have too few rows for that, all threads share all rows.
template <class Fn>
void INT8Decoder::for_blocks(const Fn& fn) {
  const std::int64_t n_blocks = n_row_blocks();
  if (n_blocks == 1) return fn(all_rows());
  pool_.parallel_for(n_blocks, [&](std::int64_t i, int thread) {
    const std::int32_t begin = static_cast<std::int32_t>(n_rows_ * i / n_blocks);
    const std::int32_t end = static_cast<std::int32_t>(n_rows_ * (i + 1) / n_blocks);
    fn(RowBlock{begin, end - begin, &alone_, thread});
  });
}

// Calls fn(row, thread) for each row of the block, counted from its first, n_cols values of work each.
template <class Fn>
void INT8Decoder::for_rows(const RowBlock& block, std::int64_t n_cols, const Fn& fn) {
  const std::int32_t n_rows = block.n_rows;
  const int n_threads = block.pool->n_threads();
  if (n_rows * n_cols <= kInlineElements || n_threads == 1) {
    for (std::int32_t row = 0; row < n_rows; ++row) fn(row, block.thread);
    return;
  }
  const std::int64_t n_items = std::min<std::int64_t>(n_rows, kRowItemsPerThread * n_threads);
  block.pool->parallel_for(n_items, [&](std::int64_t item, int thread) {
    const std::int64_t end = n_rows * (item + 1) / n_items;
    for (std::int64_t row = n_rows * item / n_items; row < end; ++row) fn(static_cast<std::int32_t>(row), thread);
  });
}

// Calls fn(item, thread) for each item, on the calling thread alone where the work is too little to share.
template <class Fn>
void INT8Decoder::for_items(std::size_t n_items, bool is_parallel, const Fn& fn) {
  if (!is_parallel) {
    for (std::size_t item = 0; item < n_items; ++item) fn(item, 0);
    return;
  }
  pool_.parallel_for(static_cast<std::int64_t>(n_items),
                     [&](std::int64_t item, int thread) { fn(static_cast<std::size_t>(item), thread); });
}

void INT8Decoder::embed() {
  n_rows_ = static_cast<std::int32_t>(plan_.rows.tokens.size());
  const std::int64_t half = static_cast<std::int64_t>(config_.rope_inv_freq.size());
  for_rows(all_rows(), config_.hidden_size, [&](std::int32_t row, int) {
    const StepRows::Token& token = plan_.rows.tokens[static_cast<std::size_t>(row)];
    embed_row(kernels_, weights_.embedding, token.id, workspace_.residual + row * workspace_.residual_stride);
    fill_rope_row(config_, token.position, workspace_.rope_cos + row * half, workspace_.rope_sin + row * half);
  });
}

void INT8Decoder::run_layer(std::int32_t index, const KvCache& cache) {
  const LayerWeights& layer = weights_.layers[static_cast<std::size_t>(index)];
  const PagedKvView kv = cache.layer(index);
  const std::int32_t window = config_.windows[static_cast<std::size_t>(index)];
  const auto group_number = static_cast<std::size_t>(cache.config().layer_groups[static_cast<std::size_t>(index)]);
  const StepPlan::Group& group = plan_.groups[group_number];
  const std::int32_t* pages = plan_.rows.token_pages[group_number].data();
  const bool is_last = index == config_.n_layers - 1;

  for_blocks([&](const RowBlock& block) {
    multiply_rows(block, layer.attn_qkv, normed_operand(block, layer.ln1), into_wide(block));
    spent(block, StepPart::attn_qkv);
    store_kv(block, layer, kv, pages);
    spent(block, StepPart::store_kv);
  });
  spent(StepPart::store_kv);  // by the slowest thread
  attend(is_last ? group.last_attention : group.attention, kv, window);
  spent(StepPart::attention);
  if (is_last) keep_wanted_rows();
  for_blocks([&](const RowBlock& block) {
    multiply_rows(block, layer.attn_o, attention_operand(block, layer.attn_o.k), into_residual(block));
    spent(block, StepPart::attn_o);
    run_mlp(block, layer);
  });
  spent(StepPart::mlp_down);  // by the slowest thread
}

// Finishes q and k (norm, rope) and puts k and v into their pages. Attention reads all keys and values back from there.
void INT8Decoder::store_kv(const RowBlock& block, const LayerWeights& layer, const PagedKvView& kv,
                           const std::int32_t* pages) {
  const std::int32_t head_dim = config_.head_dim, n_heads = config_.n_heads, n_kv_heads = config_.n_kv_heads;
  const std::int32_t half = static_cast<std::int32_t>(config_.rope_inv_freq.size());
  const auto finish_heads = [&](float* heads, std::int32_t n, const float* norm, std::int32_t row) {
    if (norm != nullptr) kernels_.rms_norm(heads, head_dim, norm, config_.norm_eps, n, head_dim, heads, head_dim);
    const std::int64_t begin = std::int64_t{row} * half;
    kernels_.rope(heads, n, head_dim, half, workspace_.rope_cos + begin, workspace_.rope_sin + begin);
  };
  for_rows(block, std::int64_t{n_heads + 2 * n_kv_heads} * head_dim, [&](std::int32_t i, int) {
    const std::int32_t row = block.begin + i;
    const StepRows::Token& token = plan_.rows.tokens[static_cast<std::size_t>(row)];
    float* q = workspace_.wide + row * workspace_.wide_stride;
    float* k = q + std::int64_t{n_heads} * head_dim;
    const float* v = k + std::int64_t{n_kv_heads} * head_dim;
    finish_heads(q, n_heads, layer.q_norm, row);
    finish_heads(k, n_kv_heads, layer.k_norm, row);
    kernels_.append_kv(kv, pages[row], token.slot, k, v);
  });
}

void INT8Decoder::attend(const AttentionPlan& plan, const PagedKvView& kv, std::int32_t window) {
  AttentionArgs args;
  args.kv = kv;
  args.q = workspace_.wide;
  args.q_stride = workspace_.wide_stride;
  args.out = workspace_.operand;
  args.out_stride = workspace_.operand_stride;
  args.n_heads = config_.n_heads;
  args.scale = config_.attention_scale;
  args.window = window;
  args.runs = plan.runs.data();
  args.states = workspace_.attention_states();
  const std::size_t n_items = plan.items.size(), n_threads = static_cast<std::size_t>(pool_.n_threads());
  for_items(n_items, plan.n_pairs > kInlinePairs, [&](std::size_t i, int thread) {
    const AttentionItem* next = i + n_threads < n_items ? &plan.items[i + n_threads] : nullptr;
    kernels_.paged_attention(args, plan.items[i], next, workspace_.attention_scratch(thread));
  });
  for_items(plan.merges.size(), plan.merges.size() > 1, [&](std::size_t i, int thread) {
    kernels_.merge_states(args, plan.merges[i], workspace_.attention_scratch(thread));
  });
}

// After the last attention only rows with logits go on: their residual and attention result move to the front.
void INT8Decoder::keep_wanted_rows() {
  const std::int32_t n_wanted = static_cast<std::int32_t>(plan_.rows.logits_tokens.size());
  for (std::int32_t i = 0; i < n_wanted; ++i) {
    const std::int32_t row = plan_.rows.logits_tokens[static_cast<std::size_t>(i)];
    if (row == i) continue;
    std::copy_n(workspace_.residual + row * workspace_.residual_stride, workspace_.residual_stride,
                workspace_.residual + i * workspace_.residual_stride);
    std::copy_n(workspace_.operand + row * workspace_.operand_stride, workspace_.operand_stride,
                workspace_.operand + i * workspace_.operand_stride);
  }
  n_rows_ = n_wanted;
}

void INT8Decoder::run_mlp(const RowBlock& block, const LayerWeights& layer) {
  multiply_rows(block, layer.mlp_gate_up, normed_operand(block, layer.ln2), into_wide(block));
  spent(block, StepPart::mlp_gate_up);
  multiply_rows(block, layer.mlp_down, gated_operand(block), into_residual(block));
  spent(block, StepPart::mlp_down);
}

void INT8Decoder::compute_logits() {
  n_logits_rows_ = n_rows_;
  const std::int32_t n_cols = config_.hidden_size;
  const QuantizedRows quantized = workspace_.quantized();
  for_rows(all_rows(), n_cols, [&](std::int32_t row, int) {
    float* out = workspace_.hidden() + std::int64_t{row} * n_cols;
    kernels_.rms_norm(workspace_.residual + row * workspace_.residual_stride, workspace_.residual_stride,
                      weights_.final_norm, config_.norm_eps, 1, n_cols, out, n_cols);
    if (is_quantized_) kernels_.quantize_rows(out, n_cols, 1, n_cols, row_of(quantized, row));
  });
  spent(StepPart::rows);
  multiply_rows(all_rows(), weights_.lm_head, {workspace_.hidden(), n_cols, quantized},
                {workspace_.logits(), config_.vocab_size, false});
  spent(StepPart::lm_head);
}

// RMS norm of the residual, quantised row by row while it is in the cache.
Operand INT8Decoder::normed_operand(const RowBlock& block, const float* weight) {
  const std::int32_t n_cols = config_.hidden_size;
  const Operand operand = operand_of(block);
  for_rows(block, n_cols, [&](std::int32_t row, int thread) {
    float* out = is_quantized_ ? workspace_.row_scratch(thread) : operand.rows + row * operand.stride;
    kernels_.rms_norm(workspace_.residual + (block.begin + row) * workspace_.residual_stride,
                      workspace_.residual_stride, weight, config_.norm_eps, 1, n_cols, out, n_cols);
    if (is_quantized_) kernels_.quantize_rows(out, n_cols, 1, n_cols, row_of(operand.quantized, row));
  });
  spent(block, StepPart::rows);
  return operand;
}

Operand INT8Decoder::attention_operand(const RowBlock& block, std::int32_t k) {
  const Operand operand = operand_of(block);
  if (is_quantized_) {
    for_rows(block, k, [&](std::int32_t row, int) {
      kernels_.quantize_rows(operand.rows + row * operand.stride, operand.stride, 1, k, row_of(operand.quantized, row));
    });
  }
  spent(block, StepPart::rows);
  return operand;
}

// silu(gate) * up of the rows in `wide`.
Operand INT8Decoder::gated_operand(const RowBlock& block) {
  const std::int32_t n_cols = config_.intermediate_size;
  const Operand operand = operand_of(block);
  const Output wide = into_wide(block);
  for_rows(block, n_cols, [&](std::int32_t row, int thread) {
    float* out = is_quantized_ ? workspace_.row_scratch(thread) : operand.rows + row * operand.stride;
    kernels_.silu_mul(wide.rows + row * wide.stride, wide.stride, 1, n_cols, out, n_cols);
    if (is_quantized_) kernels_.quantize_rows(out, n_cols, 1, n_cols, row_of(operand.quantized, row));
  });
  spent(block, StepPart::rows);
  return operand;
}

Operand INT8Decoder::operand_of(const RowBlock& block) const {
  return {workspace_.operand + block.begin * workspace_.operand_stride, workspace_.operand_stride,
          row_of(workspace_.quantized(), block.begin)};
}

Output INT8Decoder::into_wide(const RowBlock& block) const {
  return {workspace_.wide + block.begin * workspace_.wide_stride, workspace_.wide_stride, false};
}

Output INT8Decoder::into_residual(const RowBlock& block) const {
  return {workspace_.residual + block.begin * workspace_.residual_stride, workspace_.residual_stride, true};
}

void INT8Decoder::multiply_rows(const RowBlock& block, const Matrix& w, const Operand& in, const Output& out) {
  if (block.n_rows == 0) return;
  const ProductScratch all = workspace_.product_scratch();
  multiply(kernels_, *block.pool, w, in, block.n_rows, out, {all.of(block.thread), all.stride});
}

void INT8Decoder::sample(const SamplingParams& params, std::int32_t n_top, const SampleResult& result) {
  spent(StepPart::outside);
  sampler_.sample(logits(), params, n_top, kernels_, pool_, result);
  spent(StepPart::sample);
}

void INT8Decoder::continuations(const SamplingParams& params, const ContinuationResult& result) {
  spent(StepPart::outside);
  sampler_.continuations(logits(), params, kernels_, pool_, result);
  spent(StepPart::sample);
}

void INT8Decoder::log_probs(Span<const std::int32_t> targets, std::int32_t n_top, const SampleResult& result) {
  sampler_.log_probs(logits(), targets, n_top, kernels_, pool_, result);
}

std::vector<StepRecord> INT8Decoder::stop_profile() {
  check_arg(profile_ != nullptr, "INT8Decoder.stop_profile", "needs start_profile first");
  std::vector<StepRecord> steps = std::move(profile_->steps);
  profile_.reset();
  return steps;
}

}  // namespace llm_decoder
