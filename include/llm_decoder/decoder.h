// The verbs of a decoder: weights in, a ragged step through the layers, logits kept until the next step.
#pragma once

#include <cstdint>
#include <string>

#include "llm_decoder/kv_cache.h"
#include "llm_decoder/model_config.h"
#include "llm_decoder/types.h"

namespace llm_decoder {

// A weight as a decoder keeps it; memory is borrowed. That of the CPU's must outlive the decoder (it may be a mapped
// file), that of a GPU's is copied to the device.
struct WeightView {
  enum class Layout : std::uint8_t { vector, f32, bf16, w8, w4, half, f8 } layout = Layout::vector;
  std::int64_t n = 0, k = 0;  // [n] for a vector, [n, k] for a packed matrix
  // float32 [n], or a matrix packed for who multiplies: vector, f32, bf16, w8, w4 as in cpu_kernels.h, or half (16-bit
  // floats), w8, w4, f8 as in attention/pack_gpu_weights.h
  const void* data = nullptr;
  const float* scales = nullptr;  // [n] for w8, w4 and f8
};

// Whether products with such a matrix take int8 activations.
constexpr bool is_quantized(WeightView::Layout layout) {
  return layout == WeightView::Layout::w8 || layout == WeightView::Layout::w4;
}

// Which rows of logits a sequence wants from a step.
enum class LogitRows : std::uint8_t { none = 0, last = 1, all = 2 };

// Prompt chunks and single decoded tokens in one ragged form. KV of these tokens must have been reserved in the cache.
struct StepBatch {
  Span<const std::int32_t> tokens;   // [n_tokens], sequences one after the other
  Span<const std::int64_t> seq_ids;  // [n_seqs]
  Span<const std::int32_t> counts;   // [n_seqs], tokens of each
  Span<const std::uint8_t> want;     // [n_seqs], LogitRows
};

}  // namespace llm_decoder
