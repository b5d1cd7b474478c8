// The decoder of a GPU: one loop over the layers that reads ModelConfig. The residual is float32, rows between products
// are of 16 bits; weights, pages, logits and what draws from them stay on the device.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "device_sampler.h"
#include "device_step.h"
#include "device_storage.h"
#include "device_weights.h"
#include "gpu_products.h"
#include "llm_decoder/decoder.h"
#include "llm_decoder/kv_cache.h"
#include "llm_decoder/model_config.h"
#include "llm_decoder/parallel.h"
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

  // cache: of DevicePages on this decoder's stream. Waits for nothing but the step before.
  std::int32_t step(const KvCache& cache, const StepBatch& batch);

  // Of the last step, on the host; valid until the next one.
  LogitsView logits();
  std::int32_t n_logits_rows() const { return n_logits_rows_; }
  const float* hidden();  // [n_rows, hidden_size], after the final norm

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
    // Of the rows that get logits.
    DeviceArray<float> kept_residual, logits;  // [n_rows, hidden_size], [n_rows, logits_stride]
    DeviceArray<std::uint16_t> hidden;         // [n_rows, hidden_size]

    std::int64_t n_bytes() const;
  };

  void make_room_for_logits(std::int64_t n_rows);
  void run_layer(std::int32_t index, const KvCache& cache, const DevicePages& pages);
  void store_kv(const LayerWeightsOf<const GpuMatrix*>& layer, const PagedLayer& kv, const DeviceGroup& group,
                Dtype kv_dtype, std::int32_t page_size);
  void keep_wanted_rows();
  void attend(const DevicePlan& plan, const RowTensor& q, const PagedLayer& kv, const DeviceGroup& group,
              Dtype kv_dtype, std::int32_t page_size);
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
  StepRows rows_;
  DeviceStep step_;
  DeviceSampler sampler_;
  float* residual_ = nullptr;  // of the rows that go on
  bool has_result_ = false;    // of a product, still to be added to the residual
  std::int32_t n_rows_ = 0;    // that go on: the last layer drops those that nobody reads
  std::int32_t n_logits_rows_ = 0;
  std::int32_t max_tokens_ = 0;
  std::unique_ptr<StepProfile> profile_;

  // What the host has asked for of the last step.
  std::vector<float> host_logits_, host_hidden_;
  ThreadPool host_pool_{1};
  Sampler host_sampler_{1};
};

}  // namespace gpu
}  // namespace llm_decoder
