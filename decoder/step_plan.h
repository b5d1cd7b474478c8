// What a step of the CPU will do: its rows, and how attention over them is cut into items.
#pragma once

#include <cstdint>
#include <vector>

#include "attention_plan.h"
#include "step_rows.h"

namespace llm_decoder {

class StepPlan {
 public:
  // What is different for the layers of one cache group: their pages.
  struct Group {
    AttentionPlan attention;
    AttentionPlan last_attention;  // of logits_tokens only: the last layer computes nothing that nobody reads
  };

  StepRows rows;
  std::vector<Group> groups;  // those of the cache

  // As StepRows::make.
  void make(const ModelConfig& config, const KvCache& cache, const StepBatch& batch, std::int32_t max_tokens,
            int n_threads);

  std::int64_t n_states() const;  // that attention takes at most at a time

 private:
  void make_group(const ModelConfig& config, const KvCache& cache, std::int32_t number, int n_threads);

  std::vector<QuerySequence> asking_, asking_last_;
};

}  // namespace llm_decoder
