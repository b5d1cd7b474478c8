// What a step needs on the device beside weights and pages: its rows, where their KV goes, which pages attention reads
// and how it is cut into blocks.
#pragma once

#include <cstdint>
#include <map>
#include <utility>
#include <vector>

#include "device_plan.h"
#include "llm_decoder/kv_cache.h"
#include "llm_decoder/model_config.h"
#include "shared_prefixes.h"
#include "staged_arrays.h"
#include "step_rows.h"

namespace llm_decoder {
namespace gpu {

// How attention is cut on a device.
struct AttentionCut {
  int n_blocks = 1;  // that the device runs at once
  int wide_rows = kWideRows;
  // Keys of a split whatever the batch, and no prefix read for several: a sequence's result does not depend on the
  // others then. 0: chosen.
  int fixed_split = 0;
};

// Arrays of one group of the cache.
struct DeviceGroup {
  const std::int64_t* slot_mapping = nullptr;  // [n_tokens]
  const int* block_table = nullptr;            // [n_sequences, block_table_stride]
  std::int64_t block_table_stride = 0;
};

class DeviceStep {
 public:
  explicit DeviceStep(const AttentionCut& cut) : cut_(cut) {}

  // Waits for the step before, then queues all copies.
  void update(const ModelConfig& config, const KvCache& cache, const StepRows& rows, Stream stream);

  const std::int32_t* ids() const { return arrays_.device(ids_); }        // [n_tokens]
  const float* cos() const { return arrays_.device(cos_); }               // [n_tokens, half]
  const float* sin() const { return arrays_.device(sin_); }               // [n_tokens, half]
  const std::int32_t* wanted() const { return arrays_.device(wanted_); }  // [n_wanted], tokens that get logits

  DeviceGroup group(std::int32_t number) const;
  // Of attention over all tokens, in layers of `group` that see `window`.
  const DevicePlan& plan(std::int32_t group, std::int32_t window) const { return plans_.at({group, window}).plan; }
  // Of the last layer, over those that get logits alone, which follow each other there.
  const DevicePlan& last_plan() const { return last_plan_; }

 private:
  struct GroupArrays {
    StagedArray<std::int64_t> slot_mapping;
    StagedArray<std::int32_t> block_table;
    std::int64_t block_table_stride = 0;
  };
  struct KeptPlan {
    DevicePlan plan;
    bool is_of_this_step = false;
  };

  void add_rows(const ModelConfig& config, const StepRows& rows);
  void add_group(const KvCache& cache, const StepRows& rows, std::int32_t number);
  void plan_attention(const ModelConfig& config, const KvCache& cache, const StepRows& rows, Stream stream);
  std::vector<SharedPrefix> prefixes_of(const KvCache& cache, const StepRows& rows, std::int32_t group) const;

  const AttentionCut cut_;
  StagedArrays arrays_;
  StagedArray<std::int32_t> ids_, wanted_;
  StagedArray<float> cos_, sin_;
  std::vector<GroupArrays> groups_;
  std::map<std::pair<std::int32_t, std::int32_t>, KeptPlan> plans_;  // by group and window
  DevicePlan last_plan_;
};

}  // namespace gpu
}  // namespace llm_decoder
