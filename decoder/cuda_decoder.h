// The decoder of a GPU: one loop over the layers that reads ModelConfig. The residual is float32, rows between products
// are of 16 bits; weights, pages, logits and what draws from them stay on the device.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "decode_graphs.h"
#include "device_continuations.h"
#include "device_sampler.h"
#include "device_step.h"
#include "device_storage.h"
#include "device_weights.h"
#include "gpu_products.h"
#include "llm_decoder/decoder.h"
#include "llm_decoder/kv_cache.h"
#include "llm_decoder/model_config.h"
#include "sampler.h"
#include "step_profile.h"
#include "step_rows.h"

namespace llm_decoder {
namespace gpu {

struct CudaOptions {
  int device = 0;
  Dtype dtype = Dtype::bf16;  // of rows between products and of half matrices: bf16, f16
  // A sequence's results do not depend on the others of its steps: every product reads packed weights, attention is cut
  // alike whatever the batch.
  bool is_deterministic = false;
  std::vector<std::string> gemm_libraries;  // as make_gemm takes them
  // Decode steps may be repeated as graphs; the environment variable LLM_DECODER_CUDA_GRAPHS=0 says no for all
  // decoders.
  bool graphs = true;
};

// Verbs as those of INT8Decoder. Not thread-safe: one thread uses a decoder at a time.
class CUDADecoder {
 public:
  // Throws std::invalid_argument for a configuration that contradicts itself or that no kernel was compiled for,
  // std::runtime_error for a device that is not there.
  CUDADecoder(const ModelConfig& config, const CudaOptions& options);
  ~CUDADecoder();

  // Copied to the device when it returns. Names are those of /weights, with attn_qkv and mlp_gate_up fused.
  void set_weight(const std::string& name, const WeightView& view);

  // Checks the weights and sizes all scratch but that of logits. Throws std::invalid_argument naming the weight at
  // fault, OutOfMemory.
  void finalize(std::int32_t max_tokens_per_step);

  // Records decode steps over the pages of this cache as graphs, for up to max_batch sequences, the fewest first, while
  // all that they need takes at most max_bytes of device memory. Steps of one token a sequence, each with logits, go by
  // graph from then on, as long as their attention fits the room of the graph. Graphs that were there go.
  void capture(const KvCache& cache, std::int32_t max_batch, std::int64_t max_bytes);
  std::vector<std::int32_t> graphs() const;  // sequences of each
  const std::string& why_no_more_graphs() const { return graphs_.why_not_more; }
  std::int64_t n_graph_steps() const { return n_graph_steps_; }

  // cache: of DevicePages on this decoder's stream. Returns when all is queued: what the device then finds wrong comes
  // out of what waits for it. Token t < 0: the one that draw -1 - t of the last begin_sample gives, 0 where it gives
  // none.
  std::int32_t step(const KvCache& cache, const StepBatch& batch);

  // Of the last step, on the host; valid until the next one.
  LogitsView logits();
  std::int32_t n_logits_rows() const { return n_logits_rows_; }
  const float* hidden();  // [n_rows, hidden_size], after the final norm

  // Queues a draw on the logits of the last step; end_sample waits for the oldest that was not ended. At most two are
  // begun and not ended.
  void begin_sample(const SamplingParams& params, std::int32_t n_top);
  void end_sample(const SampleResult& result);
  DeviceSampler::DrawSize next_draw() const { return sampler_.next_size(); }  // what end_sample will give
  // Both; none may be begun and not ended.
  void sample(const SamplingParams& params, std::int32_t n_top, const SampleResult& result);
  void continuations(const SamplingParams& params, const ContinuationResult& result);
  void log_probs(Span<const std::int32_t> targets, std::int32_t n_top, const SampleResult& result);

  // While a profile is made, each part of a step waits for the device.
  void start_profile() { profile_ = std::make_unique<StepProfile>(); }
  std::vector<StepRecord> stop_profile();

  const ModelConfig& config() const { return config_; }
  const CudaOptions& options() const { return options_; }
  const char* gemm() const { return products_->gemm().name(); }
  const std::shared_ptr<OwnedStream>& stream() const { return stream_; }
  std::int64_t weight_bytes() const { return weights_.n_bytes(); }
  std::int64_t workspace_bytes() const;

 private:
  struct Scratch {
    DeviceArray<float> residual;                       // [max_tokens, hidden_size]
    DeviceArray<std::uint16_t> wide, operand, result;  // [max_tokens, ...]

    std::int64_t n_bytes() const;
  };
  // Of the rows that get logits.
  struct LogitScratch {
    DeviceArray<float> residual, logits;  // [n_rows, hidden_size], [n_rows, logits_stride]
    DeviceArray<std::uint16_t> hidden;    // [n_rows, hidden_size]
    std::int64_t n_rows = 0;

    std::int64_t n_bytes() const { return residual.n_bytes() + logits.n_bytes() + hidden.n_bytes(); }
  };

  const DevicePages& pages_of(const char* place, const KvCache& cache) const;
  void feed_drawn_tokens(const StepBatch& batch, const DeviceStep& step);
  std::int64_t logit_bytes(std::int64_t n_rows) const;
  void reserve_logits(std::int64_t n_rows, LogitScratch& logits);
  void drop_graphs();
  std::string record_graphs(const KvCache& cache, const DevicePages& pages, const std::vector<std::int32_t>& sizes,
                            std::int64_t max_bytes);
  void run_layers(const KvCache& cache, const DevicePages& pages);
  void run_layer(std::int32_t index, const KvCache& cache, const DevicePages& pages);
  void store_kv(const LayerWeightsOf<const GpuMatrix*>& layer, const PagedLayer& kv, const DeviceGroup& group,
                Dtype kv_dtype, std::int32_t page_size);
  void keep_wanted_rows();
  void attend(std::int32_t index, const RowTensor& q, const PagedLayer& kv, const KvCacheConfig& cache);
  void run_mlp(const LayerWeightsOf<const GpuMatrix*>& layer);
  void compute_logits();

  // Adds the result of the last product to the residual, where there is one, and norms what it holds then.
  void norm(const float* weight, const OutRowTensor& out);
  void multiply(const GpuMatrix& w, const DeviceArray<std::uint16_t>& in, const DeviceArray<std::uint16_t>& out);
  void gather(const RowTensor& from, std::int64_t n_from, std::int32_t n_cols, const OutRowTensor& to);

  OutRowTensor half_rows(const DeviceArray<std::uint16_t>& array, std::int64_t n_cols) const {
    return {array.data(), options_.dtype, n_cols};
  }
  std::int32_t q_size() const { return config_.n_heads * config_.head_dim; }
  std::int32_t kv_size() const { return config_.n_kv_heads * config_.head_dim; }
  std::int64_t logits_stride() const { return round_up(config_.vocab_size, 4); }
  LogitRowsTensor device_logits() const;
  void spent(StepPart part);

  const ModelConfig config_;
  const CudaOptions options_;
  const std::shared_ptr<OwnedStream> stream_;
  std::unique_ptr<GpuProducts> products_;
  DeviceWeights weights_;
  DeviceDecoderWeights resolved_;
  Scratch scratch_;
  // The first is what graphs write to, and stays where it is; steps of more rows write to the other.
  LogitScratch graph_logits_, more_logits_;
  const AttentionCut cut_;
  StepRows rows_;
  RopeTable rope_;
  DeviceStep step_;
  DecodeGraphs graphs_;
  std::int64_t n_graph_steps_ = 0;
  DeviceSampler sampler_;
  DeviceContinuations continuations_;
  // Of the step that is being queued, and of the last one.
  const DeviceStep* running_ = nullptr;
  const LogitScratch* logits_ = &more_logits_;
  float* residual_ = nullptr;  // of the rows that go on
  bool has_result_ = false;    // of a product, still to be added to the residual
  std::int32_t n_rows_ = 0;    // that go on: the last layer drops those that nobody reads
  std::int32_t n_logits_rows_ = 0;
  std::int32_t max_tokens_ = 0;
  std::unique_ptr<StepProfile> profile_;

  // What the host has asked for of the last step.
  std::vector<float> host_logits_, host_hidden_;
};

}  // namespace gpu
}  // namespace llm_decoder
