// The decoder of the CPU: one loop over the layers that reads ModelConfig, with quantised (w8, w4) or float (f32, bf16)
// matrices.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "llm_decoder/cpu_kernels.h"
#include "llm_decoder/decoder.h"
#include "llm_decoder/kv_cache.h"
#include "llm_decoder/model_config.h"
#include "llm_decoder/parallel.h"
#include "products.h"
#include "sampler.h"
#include "step_plan.h"
#include "step_profile.h"
#include "weights.h"
#include "workspace.h"

namespace llm_decoder {

// Rows of a step that go on together: all of them, worked on by all threads, or some, by one thread alone.
struct RowBlock {
  std::int32_t begin, n_rows;
  ThreadPool* pool;
  int thread;  // whose scratch is used; with a pool of several threads, that of the first of them
};

// Results never depend on the number of threads, on the other sequences of a step, or on how a prompt is cut into
// steps. Not thread-safe: one thread uses a decoder at a time.
class INT8Decoder {
 public:
  // `isa` as select_cpu_kernels takes it. Throws std::invalid_argument for a configuration that contradicts itself.
  INT8Decoder(const ModelConfig& config, int n_threads, const char* isa);

  // Borrows memory, which must outlive the decoder; names are those of /weights, with attn_qkv and mlp_gate_up fused.
  void set_weight(const std::string& name, const WeightView& view);

  // Checks the weights and sizes all scratch. Throws std::invalid_argument naming the weight at fault.
  void finalize(std::int32_t max_tokens_per_step);

  // Runs the batch through the layers, writing its KV into the pages that the cache has reserved for it; the caller
  // commits afterwards. Returns the number of rows of logits, sequences in order. Throws std::invalid_argument before
  // anything is written when the batch does not fit.
  std::int32_t step(const KvCache& cache, const StepBatch& batch);

  // Of the last step; valid until the next one.
  LogitsView logits() const { return {workspace_.logits(), n_logits_rows_, config_.vocab_size}; }
  std::int32_t n_logits_rows() const { return n_logits_rows_; }
  const float* hidden() const { return workspace_.hidden(); }  // [n_rows, hidden_size], after the final norm

  // Draws from the logits of the last step, threads over rows.
  void sample(const SamplingParams& params, std::int32_t n_top, const SampleResult& result);
  void continuations(const SamplingParams& params, const ContinuationResult& result);
  void log_probs(Span<const std::int32_t> targets, std::int32_t n_top, const SampleResult& result);

  // From here on steps note where their time goes, until stop_profile gives the notes. Off, they cost nothing.
  void start_profile() { profile_ = std::make_unique<StepProfile>(); }
  std::vector<StepRecord> stop_profile();

  const ModelConfig& config() const { return config_; }
  const char* isa() const { return kernels_.name; }
  int n_threads() const { return pool_.n_threads(); }
  std::size_t workspace_bytes() const { return workspace_.n_bytes(); }

 private:
  void embed();
  void run_layer(std::int32_t index, const KvCache& cache);
  // pages: of all rows of the step
  void store_kv(const RowBlock& block, const LayerWeights& layer, const PagedKvView& kv, const std::int32_t* pages);
  void attend(const AttentionPlan& plan, const PagedKvView& kv, std::int32_t window);
  void keep_wanted_rows();
  void run_mlp(const RowBlock& block, const LayerWeights& layer);
  void compute_logits();

  RowBlock all_rows() { return {0, n_rows_, &pool_, 0}; }
  std::int64_t n_row_blocks() const;
  template <class Fn>
  void for_blocks(const Fn& fn);
  template <class Fn>
  void for_rows(const RowBlock& block, std::int64_t n_cols, const Fn& fn);

  Operand normed_operand(const RowBlock& block, const float* weight);
  Operand attention_operand(const RowBlock& block, std::int32_t k);
  Operand gated_operand(const RowBlock& block);
  Operand operand_of(const RowBlock& block) const;
  Output into_wide(const RowBlock& block) const;
  Output into_residual(const RowBlock& block) const;
  void multiply_rows(const RowBlock& block, const Matrix& w, const Operand& in, const Output& out);

  void spent(StepPart part) {
    if (profile_ != nullptr) profile_->spent(part);
  }
  void spent(const RowBlock& block, StepPart part) {
    if (block.thread == 0) spent(part);  // the calling thread, whose clock it is
  }

  template <class Fn>
  void for_items(std::size_t n_items, bool is_parallel, const Fn& fn);

  ModelConfig config_;
  const CpuKernels& kernels_;
  ThreadPool pool_;
  ThreadPool alone_{1};  // whichever thread calls it
  NamedWeights named_weights_;
  DecoderWeights weights_;
  Workspace workspace_;
  StepPlan plan_;
  Sampler sampler_;
  std::unique_ptr<StepProfile> profile_;  // null: nobody wants to know
  std::int32_t n_rows_ = 0;         // of the residual, still carried; the last layer drops those that nobody reads
  std::int32_t n_logits_rows_ = 0;  // of the last step
  bool is_quantized_ = false;       // all matrices are, or none
  bool is_final_ = false;
};

}  // namespace llm_decoder
