// The encoder of the CPU: every token sees all tokens of its sequence, one loop over the layers that reads
// EncoderConfig, with quantised (w8, w4) or float (f32, bf16) matrices.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "encoder_weights.h"
#include "llm_decoder/cpu_kernels.h"
#include "llm_decoder/encoder_config.h"
#include "llm_decoder/parallel.h"
#include "products.h"
#include "workspace.h"

namespace llm_decoder {

// Sequences one behind the other, without padding.
struct EncoderBatch {
  Span<const std::int32_t> tokens;  // [n_tokens]
  Span<const std::int32_t> counts;  // [n_seqs], tokens of each
  Span<const std::int32_t> types;   // [n_tokens], or empty: all 0
};

// Which hidden states are wanted: of all tokens, of each sequence's first one, or the mean of each sequence.
enum class Pooling : std::uint8_t { none, first, mean };

// Results never depend on the number of threads or on the other sequences of a batch. Not thread-safe: one thread uses
// an encoder at a time.
class Encoder {
 public:
  // `isa` as select_cpu_kernels takes it. Throws std::invalid_argument for a configuration that contradicts itself.
  Encoder(const EncoderConfig& config, int n_threads, const char* isa);

  // Borrows memory, which must outlive the encoder; names are those of encoder_weights.h.
  void set_weight(const std::string& name, const WeightView& view);

  // Checks the weights and sizes the scratch. Throws std::invalid_argument naming the weight at fault.
  void finalize(std::int32_t max_tokens);

  // Writes float32 [n_tokens or n_seqs, hidden_size]. Throws std::invalid_argument before anything is computed when the
  // batch does not fit.
  void encode(const EncoderBatch& batch, Pooling pooling, float* out);

  const EncoderConfig& config() const { return config_; }
  const char* isa() const { return kernels_.name; }
  int n_threads() const { return pool_.n_threads(); }
  std::int32_t max_tokens() const { return max_tokens_; }

 private:
  // Rows that go through a layer together: some, by one thread alone, or all of them, by all threads.
  struct RowBlock {
    std::int32_t begin, n_rows;
    ThreadPool* pool;
    int thread;                        // whose scratch is used; with a pool of several threads, that of all
    std::size_t item_begin, item_end;  // of attention
  };
  struct Sequence {
    std::int32_t token_begin, n_tokens;
    std::int32_t first_page;
  };
  // One row for each row of the residual.
  struct Row {
    std::int32_t token, position, sequence;
  };
  // Cosines and sines of positions, [n_positions, head_dim / 2] each.
  struct RopeTable {
    double theta = 0.0;
    std::vector<float> cos, sin;
  };
  // Keys and values of a layer.
  struct Pages {
    AlignedBuffer memory;
    PagedKvView view;
  };

  void check_batch(const EncoderBatch& batch) const;
  void plan_sequences(const EncoderBatch& batch);
  void ensure_pages(std::int32_t n_pages);
  void ensure_rope(std::int32_t n_positions);
  void make_blocks();
  void keep_first_rows();

  void embed(const RowBlock& block, const EncoderBatch& batch);
  void project_qkv(const RowBlock& block, std::int32_t layer);
  void attend(const RowBlock& block, std::int32_t layer);
  void finish_layer(const RowBlock& block, std::int32_t layer);

  Operand operand_of(const RowBlock& block) const;
  Operand residual_operand(const RowBlock& block, const LayerNorm& norm);
  Operand attended_operand(const RowBlock& block);
  Operand activated_operand(const RowBlock& block);
  void norm_in_place(const RowBlock& block, const LayerNorm& norm);
  void multiply_rows(const RowBlock& block, const Matrix& w, const Operand& in, const Output& out);
  Output into_wide(const RowBlock& block) const;
  Output into_residual(const RowBlock& block) const;

  template <class Fn>
  void for_blocks(const Fn& fn);
  template <class Fn>
  void for_rows(const RowBlock& block, std::int64_t n_cols, const Fn& fn);

  std::int64_t scratch_row(const RowBlock& block) const;
  const RopeTable* rope_of(std::int32_t layer) const;
  Pages& pages_of(std::int32_t layer) { return pages_[static_cast<std::size_t>(layer % 2)]; }

  EncoderConfig config_;
  const CpuKernels& kernels_;
  ThreadPool pool_;
  ThreadPool alone_{1};  // whichever thread calls it
  NamedWeights named_weights_;
  EncoderWeights weights_;
  bool is_final_ = false;
  std::int32_t max_tokens_ = 0;

  // Of all rows: float32 [max_tokens, stride].
  std::int64_t hidden_stride_ = 0;
  AlignedBuffer residual_, queries_;
  // Of each thread's block, [kBlockRows, stride], the blocks one behind the other.
  std::int64_t wide_stride_ = 0, operand_stride_ = 0, q_stride_ = 0;
  AlignedBuffer wide_, operand_, q_, q_scale_, q_sum_;
  // Of each thread.
  std::int64_t row_stride_ = 0;
  std::size_t product_stride_ = 0, attention_stride_ = 0;
  AlignedBuffer row_, product_scratch_, attention_scratch_;
  // A layer's keys and values are written while others still read those of the layer before.
  Pages pages_[2];
  std::int32_t n_pages_ = 0;
  RopeTable rope_, local_rope_;

  // Of the batch.
  std::vector<Sequence> sequences_;
  std::vector<Row> rows_;
  std::vector<std::int32_t> page_ids_;
  std::vector<RowBlock> blocks_;
  std::vector<QueryRun> runs_;
  std::vector<AttentionItem> items_;
};

}  // namespace llm_decoder
