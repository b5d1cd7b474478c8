// All scratch of the layer loop, sized once. Only the logits (rows that steps ask for) and the attention scratch and
// states (page geometry and contexts of the cache) may still grow at the door of a step; they never shrink.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <vector>

#include "llm_decoder/cpu_kernels.h"
#include "llm_decoder/decoder.h"
#include "llm_decoder/model_config.h"
#include "products.h"

namespace llm_decoder {

// Uninitialised, 64-byte aligned memory. Pages that nothing touches cost nothing.
class AlignedBuffer {
 public:
  AlignedBuffer() = default;
  explicit AlignedBuffer(std::size_t n_bytes);

  template <class T>
  T* as() const {
    return static_cast<T*>(static_cast<void*>(memory_.get()));
  }
  std::size_t n_bytes() const { return n_bytes_; }

 private:
  struct Free {
    void operator()(std::byte* memory) const { std::free(memory); }
  };
  std::unique_ptr<std::byte, Free> memory_;
  std::size_t n_bytes_ = 0;
};

// Bytes between quantised rows of k values: whole lines, and one more where rows a multiple of 1 KiB apart would share
// few cache sets.
std::int64_t quantized_stride(std::int64_t k);

class Workspace {
 public:
  Workspace() = default;
  // product_scratch_bytes: of one thread, for the product that takes most.
  Workspace(const ModelConfig& config, bool is_quantized, std::size_t product_scratch_bytes, std::int32_t max_tokens,
            int n_threads);

  std::int32_t max_tokens = 0;
  // float32 [max_tokens, stride]
  float* residual = nullptr;
  std::int64_t residual_stride = 0;
  float* wide = nullptr;  // q, k, v of the step, later gate and up
  std::int64_t wide_stride = 0;
  float* operand = nullptr;  // attention's result; with float weights also what the next product reads
  std::int64_t operand_stride = 0;
  float* rope_cos = nullptr;  // [max_tokens, half]
  float* rope_sin = nullptr;

  // The operand of a product on quantised weights. Its rows are as far apart for every k, so that each stays in its
  // place whatever the others hold.
  QuantizedRows quantized() const { return {q_, q_stride_, q_scale_, q_sum_}; }
  float* row_scratch(int thread) const { return row_scratch_.as<float>() + thread * row_scratch_stride_; }
  std::byte* attention_scratch(int thread) const {
    return attention_scratch_.as<std::byte>() + static_cast<std::size_t>(thread) * attention_scratch_stride_;
  }

  float* attention_states() const { return attention_states_.as<float>(); }
  ProductScratch product_scratch() const { return {product_scratch_.as<std::byte>(), product_scratch_stride_}; }

  float* hidden() const { return hidden_.as<float>(); }  // [n_rows, hidden_size]
  float* logits() const { return logits_.as<float>(); }  // [n_rows, vocab_size]

  void ensure_logits_rows(const ModelConfig& config, std::int32_t n_rows);
  void ensure_attention(std::size_t scratch_bytes, std::int64_t n_state_floats);
  std::size_t n_bytes() const;

 private:
  template <class T>
  T* allocate(std::int64_t n);

  std::vector<AlignedBuffer> buffers_;
  std::int8_t* q_ = nullptr;
  std::int64_t q_stride_ = 0;
  float* q_scale_ = nullptr;
  std::int32_t* q_sum_ = nullptr;
  AlignedBuffer row_scratch_, product_scratch_, attention_scratch_, attention_states_, hidden_, logits_;
  std::int64_t row_scratch_stride_ = 0;
  std::size_t product_scratch_stride_ = 0;
  std::size_t attention_scratch_stride_ = 0;
  std::int32_t n_logits_rows_ = 0;
  int n_threads_ = 1;
};

}  // namespace llm_decoder
