// What a step needs on the device beside weights and pages: its rows, where their KV goes, which pages attention reads
// and how it is cut into blocks.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "device_plan.h"
#include "llm_decoder/kv_cache.h"
#include "llm_decoder/model_config.h"
#include "rope_table.h"
#include "staged_arrays.h"
#include "step_rows.h"

namespace llm_decoder {
namespace gpu {

// How attention is cut on a device.
struct AttentionCut {
  int n_blocks = 1;  // that the device runs at once
  int wide_rows = kWideRows;
  // Keys of a split whatever the batch, one kernel whatever the rows, no prefix read for several: a token's result does
  // not depend on what else is in its step then. 0: chosen.
  int fixed_split = 0;
};

using GroupAndWindow = std::pair<std::int32_t, std::int32_t>;

// How a step's attention is cut.
struct StepPlans {
  std::map<GroupAndWindow, PagedAttentionPlan> all;  // over all tokens, of layers that go on with all of them
  PagedAttentionPlan last;  // of the last layer where only some tokens get logits: over those, which follow each other
};
StepPlans plan_step(const ModelConfig& config, const AttentionCut& cut, const KvCache& cache, const StepRows& rows);

// Room for every step of up to n_tokens single tokens. Those that a step does not have are in no sequence, and what the
// device finds for them is never read.
struct StepRoom {
  int n_tokens = 0;
  int table_width = 0;  // pages of a sequence
  PlanRoom plan;        // of each plan

  bool holds(const StepRows& rows, const StepPlans& plans) const;
};
StepRoom room_for(const ModelConfig& config, const AttentionCut& cut, const KvCacheConfig& cache, int n_tokens);
// Why no steps of such a model have a room, or nothing.
std::string why_no_room(const ModelConfig& config, const AttentionCut& cut);

// Arrays of one group of the cache.
struct DeviceGroup {
  const std::int64_t* slot_mapping = nullptr;  // [n_tokens]; -1: none
  const int* block_table = nullptr;            // [n_sequences, block_table_stride]
  std::int64_t block_table_stride = 0;
};

class DeviceStep {
 public:
  // Lays out all arrays for upload. room: null for as much as the step needs; all steps of the same room have their
  // arrays in the same places.
  void stage(const ModelConfig& config, const KvCache& cache, const StepRows& rows, const StepPlans& plans,
             const StepRoom* room, RopeTable& rope);
  std::int64_t n_upload_bytes() const;  // of the device, when they are there
  // Queues their copy. Memory of the device stays where it is while it is enough.
  void upload(Stream stream);
  std::int64_t n_bytes() const { return arrays_.n_device_bytes() + states_.n_bytes(); }

  std::int32_t n_tokens() const { return n_tokens_; }
  std::int32_t* ids() const { return arrays_.device(ids_); }              // [n_tokens]
  const float* cos() const { return arrays_.device(cos_); }               // [n_tokens, half]
  const float* sin() const { return arrays_.device(sin_); }               // [n_tokens, half]
  const std::int32_t* wanted() const { return arrays_.device(wanted_); }  // [n_wanted], tokens that get logits

  DeviceGroup group(std::int32_t number) const;
  // Sets what a launch takes from the plan of layers of a group that see a window. launch.args must have its heads.
  void fill(GroupAndWindow layers, PagedAttentionLaunch& launch) const;
  // The same from StepPlans::last.
  void fill_last(PagedAttentionLaunch& launch) const;

 private:
  struct GroupArrays {
    StagedArray<std::int64_t> slot_mapping;
    StagedArray<std::int32_t> block_table;
    std::int64_t block_table_stride = 0;
  };

  void stage_rows(const ModelConfig& config, const StepRows& rows, RopeTable& rope);
  void stage_group(const KvCache& cache, const StepRows& rows, std::int32_t number, const StepRoom* room);
  void stage_plan(const PagedAttentionPlan& plan, const StepRoom* room, const ModelConfig& config, StagedPlan& staged);

  StagedArrays arrays_;
  std::int32_t n_tokens_ = 0;
  StagedArray<std::int32_t> ids_, wanted_;
  StagedArray<float> cos_, sin_;
  std::vector<GroupArrays> groups_;
  std::map<GroupAndWindow, StagedPlan> plans_;
  StagedPlan last_plan_;
  std::int64_t n_state_floats_ = 0;
  DeviceArray<float> states_;  // of all plans, whose launches follow each other
};

}  // namespace gpu
}  // namespace llm_decoder
