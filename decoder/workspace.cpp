#include "workspace.h"

#include <algorithm>
#include <new>

namespace llm_decoder {
namespace {

constexpr std::size_t kAlign = 64;
constexpr std::int64_t kFloatsPerLine = 16;
constexpr std::int32_t kFirstLogitsRows = 8;

std::int64_t float_stride(std::int64_t n) { return round_up(n, kFloatsPerLine); }

}  // namespace

std::int64_t quantized_stride(std::int64_t k) {
  const std::int64_t stride = round_up(k_padded(k), static_cast<std::int64_t>(kAlign));
  return stride % 1024 == 0 ? stride + static_cast<std::int64_t>(kAlign) : stride;
}

AlignedBuffer::AlignedBuffer(std::size_t n_bytes)
    : n_bytes_(std::max(kAlign, static_cast<std::size_t>(round_up(static_cast<std::int64_t>(n_bytes), kAlign)))) {
  memory_.reset(static_cast<std::byte*>(std::aligned_alloc(kAlign, n_bytes_)));
  if (memory_ == nullptr) throw std::bad_alloc();
}

template <class T>
T* Workspace::allocate(std::int64_t n) {
  buffers_.emplace_back(static_cast<std::size_t>(n) * sizeof(T));
  return buffers_.back().as<T>();
}

Workspace::Workspace(const ModelConfig& config, bool is_quantized, std::size_t product_scratch_bytes,
                     std::int32_t max_tokens_, int n_threads)
    : max_tokens(max_tokens_), n_threads_(n_threads) {
  const std::int64_t q_size = std::int64_t{config.n_heads} * config.head_dim;
  const std::int64_t qkv_size = q_size + 2 * std::int64_t{config.n_kv_heads} * config.head_dim;
  const std::int64_t max_k =
      std::max({std::int64_t{config.hidden_size}, q_size, std::int64_t{config.intermediate_size}});

  residual_stride = float_stride(config.hidden_size);
  residual = allocate<float>(max_tokens * residual_stride);
  wide_stride = float_stride(std::max(qkv_size, 2 * std::int64_t{config.intermediate_size}));
  wide = allocate<float>(max_tokens * wide_stride);
  operand_stride = float_stride(is_quantized ? q_size : max_k);
  operand = allocate<float>(max_tokens * operand_stride);
  const std::int64_t half = static_cast<std::int64_t>(config.rope_inv_freq.size());
  rope_cos = allocate<float>(max_tokens * half);
  rope_sin = allocate<float>(max_tokens * half);
  if (is_quantized) {
    q_stride_ = quantized_stride(max_k);
    q_ = allocate<std::int8_t>(max_tokens * q_stride_);
    q_scale_ = allocate<float>(max_tokens);
    q_sum_ = allocate<std::int32_t>(max_tokens);
  }
  row_scratch_stride_ = float_stride(max_k);
  row_scratch_ = AlignedBuffer(static_cast<std::size_t>(n_threads * row_scratch_stride_) * sizeof(float));
  product_scratch_stride_ =
      static_cast<std::size_t>(round_up(static_cast<std::int64_t>(product_scratch_bytes), kAlign));
  product_scratch_ = AlignedBuffer(product_scratch_stride_ * static_cast<std::size_t>(n_threads));
  ensure_logits_rows(config, std::min(max_tokens, kFirstLogitsRows));
}

void Workspace::ensure_logits_rows(const ModelConfig& config, std::int32_t n_rows) {
  if (n_rows <= n_logits_rows_) return;
  const auto row_bytes = [&](std::int32_t n) {
    return static_cast<std::size_t>(n_rows) * static_cast<std::size_t>(n) * sizeof(float);
  };
  AlignedBuffer new_hidden(row_bytes(config.hidden_size));
  logits_ = AlignedBuffer(row_bytes(config.vocab_size));
  hidden_ = std::move(new_hidden);
  n_logits_rows_ = n_rows;
}

void Workspace::ensure_attention(std::size_t scratch_bytes, std::int64_t n_state_floats) {
  const std::size_t stride = static_cast<std::size_t>(round_up(static_cast<std::int64_t>(scratch_bytes), kAlign));
  if (stride > attention_scratch_stride_) {
    attention_scratch_ = AlignedBuffer(stride * static_cast<std::size_t>(n_threads_));
    attention_scratch_stride_ = stride;
  }
  // Contexts grow token by token; twice the need, so that the states move rarely.
  const std::size_t state_bytes = static_cast<std::size_t>(n_state_floats) * sizeof(float);
  if (state_bytes > attention_states_.n_bytes()) attention_states_ = AlignedBuffer(2 * state_bytes);
}

std::size_t Workspace::n_bytes() const {
  std::size_t total = row_scratch_.n_bytes() + product_scratch_.n_bytes() + attention_scratch_.n_bytes() +
                      attention_states_.n_bytes() + hidden_.n_bytes() + logits_.n_bytes();
  for (const AlignedBuffer& buffer : buffers_) total += buffer.n_bytes();
  return total;
}

}  // namespace llm_decoder
