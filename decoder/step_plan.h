// What a step will do, decided and checked before it touches any memory: where each token's KV goes, how attention is
// cut into items, which tokens get logits.
#pragma once

#include <cstdint>
#include <vector>

#include "attention_plan.h"
#include "llm_decoder/decoder.h"
#include "llm_decoder/kv_cache.h"
#include "llm_decoder/model_config.h"

namespace llm_decoder {

class StepPlan {
 public:
  struct Token {
    std::int32_t id;
    std::int32_t position;  // in its sequence
    std::int32_t slot;      // in its page
  };
  // What is different for the layers of one cache group: their pages.
  struct Group {
    std::vector<std::int32_t> token_pages;  // [n_tokens], where each token's KV goes
    AttentionPlan attention;
    AttentionPlan last_attention;  // of logits_tokens only: the last layer computes nothing that nobody reads
  };

  std::vector<Token> tokens;
  std::vector<std::int32_t> logits_tokens;  // token of each row of logits, ascending
  std::vector<Group> groups;                // those of the cache

  // Reserves memory for steps of up to max_tokens tokens.
  void reserve(std::int32_t max_tokens);

  // Throws std::invalid_argument when the batch does not fit the model, the cache or its reservations.
  void make(const ModelConfig& config, const KvCache& cache, const StepBatch& batch, std::int32_t max_tokens,
            int n_threads);

  std::int64_t n_states() const;  // that attention takes at most at a time

 private:
  struct Sequence {
    std::int64_t id;
    std::int32_t token_begin, n_tokens;
    std::int32_t position_begin;
    LogitRows want;
  };

  void add_sequence(const ModelConfig& config, const KvCache& cache, const StepBatch& batch, std::size_t index);
  void add_tokens(const ModelConfig& config, const KvCache& cache, const StepBatch& batch, const Sequence& sequence);
  void make_group(const ModelConfig& config, const KvCache& cache, std::int32_t number, int n_threads);
  void check_distinct(const StepBatch& batch);

  std::vector<Sequence> sequences_;
  std::vector<std::int64_t> sorted_ids_;
  std::vector<QuerySequence> asking_, asking_last_;
};

}  // namespace llm_decoder
