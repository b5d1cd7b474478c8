// What launches over rows of logits have in common: memory between their kernels, checks, the first and last kernels.
#pragma once

#include "best_keys.h"
#include "dtype_tags.h"
#include "sampling_launch.h"
#include "token_weights.h"

namespace llm_decoder {
namespace gpu {

// Hands out runs of a workspace, or only counts where there is none.
class Workspace {
 public:
  explicit Workspace(void* memory) : memory_(static_cast<std::byte*>(memory)) {}

  template <class T>
  T* take(std::int64_t n) {
    std::byte* const at = memory_ != nullptr ? memory_ + n_bytes_ : nullptr;
    n_bytes_ += round_up(n * static_cast<std::int64_t>(sizeof(T)), 16);
    return static_cast<T*>(static_cast<void*>(at));
  }
  std::int64_t n_bytes() const { return n_bytes_; }

 private:
  std::byte* memory_;
  std::int64_t n_bytes_ = 0;
};

// The rows of a launch and their summaries.
SamplingArgs plan_rows(const LogitRowsTensor& logits, const DrawParams& params, int n_draws, Workspace& workspace);
BestKeys plan_keys(const SamplingArgs& rows, int n, int n_beams, Workspace& workspace);
// The best tokens of the raw logits.
BestArgs plan_best(const SamplingArgs& rows, const BestTokens& best, int n_beams, Workspace& workspace);

// Whether any draw may change its logits.
bool needs_edits(const DrawParams& params);
OutRowArray take_edited_rows(const SamplingArgs& rows, Workspace& workspace);

// Throw std::invalid_argument for what no kernel takes.
void check_logits(const LogitRowsTensor& logits, const void* workspace, const char* place);
void check_draws(const LogitRowsTensor& logits, const DrawParams& params, int n_draws, const char* place);
void check_n_best(int n_best, std::int64_t n_choices, const char* place);

// Calls fn(Tag<H>{}) with the type of two bytes that kernels are compiled for. dtype: of logits that were checked.
template <class Fn>
void with_logits(Dtype dtype, const Fn& fn) {
  with_half(dtype == Dtype::f32 ? Dtype::bf16 : dtype, "sampling", "logits", fn);
}

template <auto kernel, class Args>
void over_splits(const Args& args, int n_draws, int n_splits, int shared_bytes, Stream stream) {
  gpu::launch<kernel>(stream, {{n_draws, n_splits, 1}, kSampleThreads, shared_bytes}, args);
}

// Blocks that report n keys.
inline int n_reporters(int n) { return static_cast<int>(ceil_div(n, kSampleThreads)); }

// Each a launch of a kernel or more. dtype: of the logits.
void summarise(const SamplingArgs& args, Dtype dtype, Stream stream);
void count_larger(const SamplingArgs& args, Dtype dtype, Stream stream);
void merge_best(const BestKeys& best, int n_groups, Stream stream);
void find_best(const BestArgs& args, int n_draws, Dtype dtype, Stream stream);

}  // namespace gpu
}  // namespace llm_decoder
