// What a step will do, whoever computes it, decided and checked before any memory is touched: which tokens, where their
// KV goes, which of them get logits.
#pragma once

#include <cstdint>
#include <vector>

#include "llm_decoder/decoder.h"
#include "llm_decoder/kv_cache.h"
#include "llm_decoder/model_config.h"

namespace llm_decoder {

class StepRows {
 public:
  struct Token {
    std::int32_t id;
    std::int32_t position;  // in its sequence
    std::int32_t slot;      // in its page
  };
  struct Sequence {
    std::int64_t id;
    std::int32_t token_begin, n_tokens;
    std::int32_t position_begin;
    std::int32_t n_wanted;  // of its last tokens, those that get logits

    std::int32_t n_skipped() const { return n_tokens - n_wanted; }
    std::int32_t position_end() const { return position_begin + n_tokens; }
  };

  std::vector<Token> tokens;
  std::vector<Sequence> sequences;          // as in the batch
  std::vector<std::int32_t> logits_tokens;  // token of each row of logits, ascending
  // [n_groups][n_tokens], where each token's KV goes in the pages of each group of the cache
  std::vector<std::vector<std::int32_t>> token_pages;

  bool all_get_logits() const { return logits_tokens.size() == tokens.size(); }

  // Reserves memory for steps of up to max_tokens tokens.
  void reserve(std::int32_t max_tokens);

  // n_drawn: ids down to -n_drawn stand for tokens that the decoder has drawn and the host has not seen. Throws
  // std::invalid_argument, saying `place`, when the batch does not fit the model, the cache or its reservations.
  void make(const char* place, const ModelConfig& config, const KvCache& cache, const StepBatch& batch,
            std::int32_t max_tokens, std::int32_t n_drawn = 0);
  // A step of no tokens.
  void clear(const KvCache& cache);

 private:
  void check_distinct(const char* place, const StepBatch& batch);
  void add_sequence(const char* place, const ModelConfig& config, const KvCache& cache, const StepBatch& batch,
                    std::size_t index);
  void add_tokens(const char* place, const ModelConfig& config, const KvCache& cache, const StepBatch& batch,
                  const Sequence& sequence);
  void add_pages(const char* place, const KvCache& cache, std::int32_t group);

  std::vector<std::int64_t> sorted_ids_;
  std::int32_t n_drawn_ = 0;
};

}  // namespace llm_decoder
