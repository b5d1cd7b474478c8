#include "encoder.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "llm_decoder/errors.h"

namespace llm_decoder {
namespace {

// Work below this is done sooner by the calling thread than by waking up others.
constexpr std::int64_t kInlineElements = 2 << 10;
constexpr std::int64_t kRowItemsPerThread = 4;
// A block of rows has its scratch in the L2 cache while the weights of a layer pass. With fewer rows a thread would
// read the weights for too little: then all threads share all rows.
constexpr std::int32_t kBlockRows = 112;
constexpr std::int32_t kMinBlockRows = 16;
constexpr std::int32_t kPageSize = 64;
constexpr std::int64_t kFloatsPerLine = 16;
// Products of values in +-127 that an int32 holds the sum of.
constexpr std::int64_t kMaxExactTerms = std::numeric_limits<std::int32_t>::max() / (127 * 127);

std::int64_t float_stride(std::int64_t n) { return round_up(n, kFloatsPerLine); }

AlignedBuffer floats(std::int64_t n) { return AlignedBuffer(static_cast<std::size_t>(n) * sizeof(float)); }

void check_positive(std::int32_t value, const char* name) {
  check_arg(value > 0, "Encoder", name, " must be positive, got ", value);
}

void check_config(const EncoderConfig& c) {
  constexpr char kPlace[] = "Encoder";
  check_positive(c.n_layers, "n_layers");
  check_positive(c.hidden_size, "hidden_size");
  check_positive(c.intermediate_size, "intermediate_size");
  check_positive(c.n_heads, "n_heads");
  check_positive(c.vocab_size, "vocab_size");
  check_positive(c.global_every, "global_every");
  for (const std::int32_t value : {c.n_positions, c.position_offset, c.n_types, c.local_window}) {
    check_arg(value >= 0, kPlace, "n_positions, position_offset, n_types and local_window must not be negative, got ",
              value);
  }
  check_arg(c.hidden_size % c.n_heads == 0, kPlace, "hidden_size must be a multiple of n_heads, got ", c.hidden_size,
            " and ", c.n_heads);
  check_arg(c.rope_theta == 0.0 || c.head_dim() % 2 == 0, kPlace, "head_dim must be even (rope turns pairs), got ",
            c.head_dim());
  for (const double theta : {c.rope_theta, c.local_rope_theta}) {
    check_arg(std::isfinite(theta) && theta >= 0.0, kPlace, "rope_theta must be 0 or positive, got ", theta);
  }
  check_arg(std::isfinite(c.norm_eps) && c.norm_eps >= 0.0f, kPlace, "norm_eps must not be negative, got ", c.norm_eps);
  check_arg(c.n_positions == 0 || c.position_offset < c.n_positions, kPlace,
            "position_offset must be below n_positions, got ", c.position_offset, " and ", c.n_positions);
  check_arg(c.has_first_norm || !c.is_post_norm, kPlace, "has_first_norm must hold where norms come after, got false");
  const std::int64_t widest = std::max(std::int64_t{3} * c.hidden_size, std::int64_t{2} * c.intermediate_size);
  check_arg(widest <= std::numeric_limits<std::int32_t>::max() / 16, kPlace, "a layer is too wide: ", widest);
  const std::int64_t longest_sum = std::max(c.hidden_size, c.intermediate_size);
  check_arg(longest_sum <= kMaxExactTerms, kPlace, "a product sums ", longest_sum, " terms, int8 sums are exact up to ",
            kMaxExactTerms);
}

}  // namespace

Encoder::Encoder(const EncoderConfig& config, int n_threads, const char* isa)
    : config_((check_config(config), config)), kernels_(select_cpu_kernels(isa)), pool_(n_threads) {
  rope_.theta = config.rope_theta;
  local_rope_.theta = config.local_rope_theta;
}

void Encoder::set_weight(const std::string& name, const WeightView& view) {
  constexpr char kPlace[] = "Encoder.set_weight";
  check_arg(!is_final_, kPlace, "weights cannot change after finalize, got ", name);
  check_weight(kPlace, name, view);
  named_weights_[name] = view;
}

void Encoder::finalize(std::int32_t max_tokens) {
  check_arg(!is_final_, "Encoder.finalize", "needs to be called once, was called twice");
  check_arg(max_tokens > 0, "Encoder.finalize", "max_tokens must be positive, got ", max_tokens);
  weights_ = resolve_encoder_weights(config_, named_weights_);
  max_tokens_ = max_tokens;
  const std::int64_t hidden = config_.hidden_size, inner = config_.intermediate_size;
  const std::int64_t max_k = std::max(hidden, inner), n_threads = pool_.n_threads();
  const std::int64_t n_block_rows = n_threads * kBlockRows;
  hidden_stride_ = float_stride(hidden);
  residual_ = floats(max_tokens * hidden_stride_);
  queries_ = floats(max_tokens * hidden_stride_);
  wide_stride_ = float_stride(std::max(3 * hidden, config_.gated ? 2 * inner : inner));
  wide_ = floats(n_block_rows * wide_stride_);
  operand_stride_ = float_stride(weights_.is_quantized ? hidden : max_k);
  operand_ = floats(n_block_rows * operand_stride_);
  if (weights_.is_quantized) {
    q_stride_ = quantized_stride(max_k);
    q_ = AlignedBuffer(static_cast<std::size_t>(n_block_rows * q_stride_));
    q_scale_ = floats(n_block_rows);
    q_sum_ = AlignedBuffer(static_cast<std::size_t>(n_block_rows) * sizeof(std::int32_t));
  }
  row_stride_ = float_stride(max_k);
  row_ = floats(n_threads * row_stride_);
  for (const EncoderLayer& layer : weights_.layers) {
    for (const Matrix* w : {&layer.attn_qkv, &layer.attn_o, &layer.mlp_fc1, &layer.mlp_fc2}) {
      product_stride_ = std::max(product_stride_, product_scratch_bytes(kernels_, *w));
    }
  }
  product_stride_ = static_cast<std::size_t>(round_up(static_cast<std::int64_t>(product_stride_), 64));
  product_scratch_ = AlignedBuffer(product_stride_ * static_cast<std::size_t>(n_threads));
  ensure_pages(1);
  attention_stride_ = kernels_.attention_scratch_bytes(pages_[0].view, config_.n_heads);
  attention_scratch_ = AlignedBuffer(attention_stride_ * static_cast<std::size_t>(n_threads));
  is_final_ = true;
}

void Encoder::encode(const EncoderBatch& batch, Pooling pooling, float* out) {
  check_batch(batch);
  plan_sequences(batch);
  make_blocks();
  for_blocks([&](const RowBlock& block) {
    embed(block, batch);
    project_qkv(block, 0);
  });
  for (std::int32_t layer = 0; layer < config_.n_layers; ++layer) {
    const bool is_last = layer == config_.n_layers - 1;
    if (is_last && pooling == Pooling::first) keep_first_rows();
    for_blocks([&](const RowBlock& block) {
      attend(block, layer);
      finish_layer(block, layer);
      if (!is_last) project_qkv(block, layer + 1);
      if (is_last && config_.final_norm) norm_in_place(block, weights_.final_norm);
    });
  }

  const std::int64_t hidden = config_.hidden_size;
  const float* residual = residual_.as<float>();
  if (pooling != Pooling::mean) {
    for (std::size_t i = 0; i < rows_.size(); ++i) {
      std::copy_n(residual + static_cast<std::int64_t>(i) * hidden_stride_, hidden,
                  out + static_cast<std::int64_t>(i) * hidden);
    }
    return;
  }
  for (const Sequence& sequence : sequences_) {
    std::fill_n(out, hidden, 0.0f);
    for (std::int64_t row = sequence.token_begin; row < sequence.token_begin + sequence.n_tokens; ++row) {
      for (std::int64_t i = 0; i < hidden; ++i) out[i] += residual[row * hidden_stride_ + i];
    }
    for (std::int64_t i = 0; i < hidden; ++i) out[i] /= static_cast<float>(sequence.n_tokens);
    out += hidden;
  }
}

void Encoder::check_batch(const EncoderBatch& batch) const {
  constexpr char kPlace[] = "Encoder.encode";
  check_arg(is_final_, kPlace, "needs finalize first");
  check_arg(batch.tokens.size <= static_cast<std::size_t>(max_tokens_), kPlace, "takes at most ", max_tokens_,
            " tokens, got ", batch.tokens.size);
  const std::int32_t longest = config_.n_positions > 0 ? config_.n_positions - config_.position_offset : max_tokens_;
  std::int64_t n_tokens = 0;
  for (const std::int32_t count : batch.counts) {
    check_arg(count > 0 && count <= longest, kPlace, "counts must be in 1..", longest, ", got ", count);
    n_tokens += count;
  }
  check_arg(n_tokens == static_cast<std::int64_t>(batch.tokens.size), kPlace, "counts must sum to the ",
            batch.tokens.size, " tokens, got ", n_tokens);
  for (const std::int32_t token : batch.tokens) {
    check_arg(token >= 0 && token < config_.vocab_size, kPlace, "token ids must be in [0, ", config_.vocab_size,
              "), got ", token);
  }
  if (batch.types.empty()) return;
  check_arg(batch.types.size == batch.tokens.size, kPlace, "type_ids must be one a token, ", batch.tokens.size,
            ", got ", batch.types.size);
  for (const std::int32_t type : batch.types) {
    check_arg(type >= 0 && type < std::max(config_.n_types, 1), kPlace, "type ids must be in [0, ",
              std::max(config_.n_types, 1), "), got ", type);
  }
}

void Encoder::plan_sequences(const EncoderBatch& batch) {
  sequences_.clear();
  rows_.clear();
  std::int32_t n_pages = 0, token = 0, longest = 0;
  for (const std::int32_t count : batch.counts) {
    const auto sequence = static_cast<std::int32_t>(sequences_.size());
    sequences_.push_back({token, count, n_pages});
    for (std::int32_t i = 0; i < count; ++i) rows_.push_back({token + i, i, sequence});
    token += count;
    n_pages += static_cast<std::int32_t>(ceil_div(count, kPageSize));
    longest = std::max(longest, count);
  }
  ensure_pages(n_pages);
  ensure_rope(longest);
}

void Encoder::ensure_pages(std::int32_t n_pages) {
  if (n_pages <= n_pages_) return;
  const std::int32_t heads = config_.n_heads;
  PagedKvView view;
  view.dtype = weights_.is_quantized ? Dtype::s8 : Dtype::f32;
  view.page_size = kPageSize;
  view.n_kv_heads = heads;
  view.head_dim = config_.head_dim();
  view.head_dim_padded = static_cast<std::int32_t>(round_up(view.head_dim, kHeadDimAlign));
  view.head_stride_bytes = std::int64_t{view.head_dim_padded} * kPageSize * element_bytes(view.dtype);
  view.page_stride_bytes = view.head_stride_bytes * heads;
  const std::int64_t tile_bytes = view.page_stride_bytes * n_pages;
  view.scale_stride_floats = view.dtype == Dtype::s8 ? std::int64_t{heads} * kPageSize : 0;
  const std::int64_t n_scales = view.scale_stride_floats * n_pages;
  for (Pages& pages : pages_) {
    pages.memory = AlignedBuffer(static_cast<std::size_t>(2 * (tile_bytes + n_scales * 4)));
    view.k = pages.memory.as<std::byte>();
    view.v = view.k + tile_bytes;
    if (n_scales > 0) {
      view.k_scale = reinterpret_cast<float*>(view.v + tile_bytes);
      view.v_scale = view.k_scale + n_scales;
    }
    pages.view = view;
  }
  for (std::int32_t page = n_pages_; page < n_pages; ++page) page_ids_.push_back(page);
  n_pages_ = n_pages;
}

// Angles are float32 products whose cosines are taken in double, as in rope_rows.cpp.
void Encoder::ensure_rope(std::int32_t n_positions) {
  const std::int32_t half = config_.head_dim() / 2;
  for (RopeTable* table : {&rope_, &local_rope_}) {
    if (table->theta == 0.0) continue;
    for (auto position = static_cast<std::int32_t>(table->cos.size()) / half; position < n_positions; ++position) {
      for (std::int32_t i = 0; i < half; ++i) {
        const auto inv_freq = static_cast<float>(1.0 / std::pow(table->theta, 2.0 * i / config_.head_dim()));
        const auto angle = static_cast<double>(inv_freq * static_cast<float>(position));
        table->cos.push_back(static_cast<float>(std::cos(angle)));
        table->sin.push_back(static_cast<float>(std::sin(angle)));
      }
    }
  }
}

// Cuts the rows into blocks that need nothing of each other but the keys and values of a layer, so that threads meet
// once a layer.
void Encoder::make_blocks() {
  const auto n_rows = static_cast<std::int32_t>(rows_.size());
  const std::int32_t n_threads = pool_.n_threads();
  std::int32_t n_blocks = 1;
  if (n_threads == 1 || n_rows >= n_threads * kMinBlockRows) {
    n_blocks = static_cast<std::int32_t>(round_up(ceil_div(n_rows, kBlockRows), n_threads));
  }
  blocks_.clear();
  runs_.clear();
  items_.clear();
  for (std::int32_t i = 0; i < n_blocks; ++i) {
    const auto begin = static_cast<std::int32_t>(std::int64_t{n_rows} * i / n_blocks);
    const auto end = static_cast<std::int32_t>(std::int64_t{n_rows} * (i + 1) / n_blocks);
    RowBlock block{begin, end - begin, n_blocks > 1 ? &alone_ : &pool_, 0, items_.size(), 0};
    for (std::int32_t row = begin; row < end;) {
      const Row& first = rows_[static_cast<std::size_t>(row)];
      const Sequence& sequence = sequences_[static_cast<std::size_t>(first.sequence)];
      std::int32_t run_end = row + 1;
      while (run_end < end && rows_[static_cast<std::size_t>(run_end)].sequence == first.sequence) ++run_end;
      const auto run = static_cast<std::int32_t>(runs_.size());
      runs_.push_back({row - begin, run_end - row, first.position, kNoStates, 0, 0, sequence.n_tokens});
      const auto n_spans = static_cast<std::int32_t>(ceil_div(sequence.n_tokens, kSpanPositions));
      for (std::int32_t head = 0; head < config_.n_heads; ++head) {
        items_.push_back({page_ids_.data() + sequence.first_page, head, run, 1, 0, n_spans});
      }
      row = run_end;
    }
    block.item_end = items_.size();
    blocks_.push_back(block);
  }
}

// The last layer computes nothing that nobody reads: the residual and the query of each sequence's first token move to
// the front.
void Encoder::keep_first_rows() {
  for (std::size_t i = 0; i < sequences_.size(); ++i) {
    const std::int64_t from = sequences_[i].token_begin * hidden_stride_;
    const std::int64_t to = static_cast<std::int64_t>(i) * hidden_stride_;
    rows_[i] = rows_[static_cast<std::size_t>(sequences_[i].token_begin)];
    for (float* rows : {residual_.as<float>(), queries_.as<float>()}) {
      if (from != to) std::copy_n(rows + from, config_.hidden_size, rows + to);
    }
  }
  rows_.resize(sequences_.size());
  make_blocks();
}

void Encoder::embed(const RowBlock& block, const EncoderBatch& batch) {
  const std::int64_t hidden = config_.hidden_size;
  for_rows(block, hidden, [&](std::int32_t i, int thread) {
    const Row& row = rows_[static_cast<std::size_t>(block.begin + i)];
    const auto token = static_cast<std::size_t>(row.token);
    float* out = residual_.as<float>() + std::int64_t{block.begin + i} * hidden_stride_;
    float* part = row_.as<float>() + thread * row_stride_;
    const auto add = [&](const Matrix& table, std::int32_t index) {
      if (table.data == nullptr) return;
      embed_row(kernels_, table, index, part);
      for (std::int64_t j = 0; j < hidden; ++j) out[j] += part[j];
    };
    embed_row(kernels_, weights_.embedding, batch.tokens[token], out);
    add(weights_.position_embedding, config_.position_offset + row.position);
    add(weights_.type_embedding, batch.types.empty() ? 0 : batch.types[token]);
  });
  if (config_.embedding_norm) norm_in_place(block, weights_.embedding_norm);
}

// Queries of the layer, its keys and values into pages.
void Encoder::project_qkv(const RowBlock& block, std::int32_t layer) {
  const EncoderLayer& weights = weights_.layers[static_cast<std::size_t>(layer)];
  const Output wide = into_wide(block);
  multiply_rows(block, weights.attn_qkv, residual_operand(block, config_.is_post_norm ? LayerNorm{} : weights.ln1),
                wide);
  const PagedKvView& kv = pages_of(layer).view;
  const RopeTable* rope = rope_of(layer);
  const std::int32_t hidden = config_.hidden_size, heads = config_.n_heads, head_dim = config_.head_dim();
  for_rows(block, 3 * hidden, [&](std::int32_t i, int) {
    const Row& row = rows_[static_cast<std::size_t>(block.begin + i)];
    const Sequence& sequence = sequences_[static_cast<std::size_t>(row.sequence)];
    float *q = wide.rows + i * wide.stride, *k = q + hidden, *v = k + hidden;
    if (rope != nullptr) {
      const std::int64_t at = std::int64_t{row.position} * (head_dim / 2);
      kernels_.rope(q, 2 * heads, head_dim, head_dim / 2, rope->cos.data() + at, rope->sin.data() + at);
    }
    std::copy_n(q, hidden, queries_.as<float>() + std::int64_t{block.begin + i} * hidden_stride_);
    kernels_.append_kv(kv, sequence.first_page + row.position / kPageSize, row.position % kPageSize, k, v);
  });
}

void Encoder::attend(const RowBlock& block, std::int32_t layer) {
  AttentionArgs args;
  args.kv = pages_of(layer).view;
  args.q = queries_.as<float>() + block.begin * hidden_stride_;
  args.q_stride = hidden_stride_;
  args.out = operand_.as<float>() + scratch_row(block) * operand_stride_;
  args.out_stride = operand_stride_;
  args.n_heads = config_.n_heads;
  args.scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(config_.head_dim())));
  const std::int32_t window = config_.window_of(layer);
  args.window = window > 0 ? window + 1 : 0;
  args.window_right = window > 0 ? window : std::numeric_limits<std::int32_t>::max();
  args.runs = runs_.data();
  const auto run_item = [&](std::size_t item, int thread) {
    const AttentionItem* next = item + 1 < block.item_end ? &items_[item + 1] : nullptr;
    kernels_.paged_attention(args, items_[item], next,
                             attention_scratch_.as<std::byte>() + static_cast<std::size_t>(thread) * attention_stride_);
  };
  if (block.pool == &alone_) {
    for (std::size_t item = block.item_begin; item < block.item_end; ++item) run_item(item, block.thread);
  } else {
    block.pool->parallel_for(
        static_cast<std::int64_t>(block.item_end - block.item_begin),
        [&](std::int64_t i, int thread) { run_item(block.item_begin + static_cast<std::size_t>(i), thread); });
  }
}

// What follows attention: its projection, the MLP, norms.
void Encoder::finish_layer(const RowBlock& block, std::int32_t layer) {
  const EncoderLayer& weights = weights_.layers[static_cast<std::size_t>(layer)];
  multiply_rows(block, weights.attn_o, attended_operand(block), into_residual(block));
  if (config_.is_post_norm) norm_in_place(block, weights.ln1);
  multiply_rows(block, weights.mlp_fc1, residual_operand(block, config_.is_post_norm ? LayerNorm{} : weights.ln2),
                into_wide(block));
  multiply_rows(block, weights.mlp_fc2, activated_operand(block), into_residual(block));
  if (config_.is_post_norm) norm_in_place(block, weights.ln2);
}

void Encoder::norm_in_place(const RowBlock& block, const LayerNorm& norm) {
  const Output residual = into_residual(block);
  for_rows(block, config_.hidden_size, [&](std::int32_t i, int) {
    float* row = residual.rows + i * residual.stride;
    kernels_.layer_norm(row, residual.stride, norm.weight, norm.bias, config_.norm_eps, 1, config_.hidden_size, row,
                        residual.stride);
  });
}

// The residual after `norm`, if that is one.
Operand Encoder::residual_operand(const RowBlock& block, const LayerNorm& norm) {
  const Output residual = into_residual(block);
  if (norm.weight == nullptr && !weights_.is_quantized) return {residual.rows, residual.stride, {}};
  const std::int32_t n_cols = config_.hidden_size;
  const Operand operand = operand_of(block);
  for_rows(block, n_cols, [&](std::int32_t i, int thread) {
    const float* row = residual.rows + i * residual.stride;
    float* normed = weights_.is_quantized ? row_.as<float>() + thread * row_stride_ : operand.rows + i * operand.stride;
    if (norm.weight != nullptr) {
      kernels_.layer_norm(row, residual.stride, norm.weight, norm.bias, config_.norm_eps, 1, n_cols, normed, n_cols);
      row = normed;
    }
    if (weights_.is_quantized) kernels_.quantize_rows(row, n_cols, 1, n_cols, row_of(operand.quantized, i));
  });
  return operand;
}

Operand Encoder::attended_operand(const RowBlock& block) {
  const Operand operand = operand_of(block);
  if (!weights_.is_quantized) return operand;
  for_rows(block, config_.hidden_size, [&](std::int32_t i, int) {
    kernels_.quantize_rows(operand.rows + i * operand.stride, operand.stride, 1, config_.hidden_size,
                           row_of(operand.quantized, i));
  });
  return operand;
}

Operand Encoder::activated_operand(const RowBlock& block) {
  const std::int32_t n_cols = config_.intermediate_size;
  const Operand operand = operand_of(block);
  const Output wide = into_wide(block);
  for_rows(block, wide_stride_, [&](std::int32_t i, int thread) {
    float* out = weights_.is_quantized ? row_.as<float>() + thread * row_stride_ : operand.rows + i * operand.stride;
    kernels_.activate(config_.activation, config_.gated, wide.rows + i * wide.stride, wide.stride, 1, n_cols, out,
                      n_cols);
    if (weights_.is_quantized) kernels_.quantize_rows(out, n_cols, 1, n_cols, row_of(operand.quantized, i));
  });
  return operand;
}

Operand Encoder::operand_of(const RowBlock& block) const {
  const std::int64_t row = scratch_row(block);
  const QuantizedRows quantized{q_.as<std::int8_t>(), q_stride_, q_scale_.as<float>(), q_sum_.as<std::int32_t>()};
  return {operand_.as<float>() + row * operand_stride_, operand_stride_, row_of(quantized, row)};
}

Output Encoder::into_wide(const RowBlock& block) const {
  return {wide_.as<float>() + scratch_row(block) * wide_stride_, wide_stride_, false};
}

Output Encoder::into_residual(const RowBlock& block) const {
  return {residual_.as<float>() + block.begin * hidden_stride_, hidden_stride_, true};
}

void Encoder::multiply_rows(const RowBlock& block, const Matrix& w, const Operand& in, const Output& out) {
  const ProductScratch all{product_scratch_.as<std::byte>(), product_stride_};
  multiply(kernels_, *block.pool, w, in, block.n_rows, out, {all.of(block.thread), all.stride});
}

// Calls fn(block) for each block.
template <class Fn>
void Encoder::for_blocks(const Fn& fn) {
  if (blocks_.size() == 1) return fn(blocks_.front());
  pool_.parallel_for(static_cast<std::int64_t>(blocks_.size()), [&](std::int64_t i, int thread) {
    RowBlock block = blocks_[static_cast<std::size_t>(i)];
    block.thread = thread;
    fn(block);
  });
}

// Calls fn(row of the block, thread) for each row.
template <class Fn>
void Encoder::for_rows(const RowBlock& block, std::int64_t n_cols, const Fn& fn) {
  const std::int64_t n_threads = block.pool->n_threads(), n_rows = block.n_rows;
  if (n_threads == 1 || n_rows * n_cols < kInlineElements) {
    for (std::int32_t row = 0; row < block.n_rows; ++row) fn(row, block.thread);
    return;
  }
  const std::int64_t n_items = std::min(n_rows, kRowItemsPerThread * n_threads);
  block.pool->parallel_for(n_items, [&](std::int64_t item, int thread) {
    const std::int64_t end = n_rows * (item + 1) / n_items;
    for (std::int64_t row = n_rows * item / n_items; row < end; ++row) fn(static_cast<std::int32_t>(row), thread);
  });
}

std::int64_t Encoder::scratch_row(const RowBlock& block) const { return std::int64_t{block.thread} * kBlockRows; }

const Encoder::RopeTable* Encoder::rope_of(std::int32_t layer) const {
  const double theta = config_.rope_theta_of(layer);
  if (theta == 0.0) return nullptr;
  return theta == rope_.theta ? &rope_ : &local_rope_;
}

}  // namespace llm_decoder
