// The parameters of draws on their way to a device. What is switched off for all draws of a call stays behind: kernels
// leave out what is null.
#pragma once

#include "sampler.h"
#include "sampling_args.h"
#include "staged_arrays.h"

namespace llm_decoder {
namespace gpu {

class StagedDraws {
 public:
  // Adds to `arrays` what the draws need. params: checked.
  StagedDraws(const SamplingParams& params, std::int32_t vocab_size, StagedArrays& arrays);

  // arrays: the same, uploaded.
  DrawParams on_device(const StagedArrays& arrays) const;

 private:
  struct Lists {
    StagedArray<std::int64_t> offsets;
    StagedArray<std::int32_t> ids;
  };

  static Lists stage(const RaggedIds& lists, StagedArrays& arrays);
  void stage_bias(const SamplingParams& params, std::int32_t vocab_size, StagedArrays& arrays);

  StagedArray<std::int32_t> rows_, top_k_, mask_of_draw_;
  StagedArray<float> temperature_, top_p_, min_p_, repetition_, presence_, frequency_, bias_values_;
  StagedArray<std::uint64_t> seed_;
  StagedArray<std::int64_t> position_;
  StagedArray<std::uint32_t> masks_;
  std::int32_t n_mask_words_ = 0;
  Lists prompt_, output_, bias_, banned_, allowed_;
};

}  // namespace gpu
}  // namespace llm_decoder
