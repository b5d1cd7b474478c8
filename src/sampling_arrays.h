// Sampling parameters and results as NumPy arrays, for _core.sample and for the decoder's own logits.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include "sampler.h"

namespace llm_decoder {

// Borrows the arrays. Throws std::invalid_argument for a missing or unknown name and for a wrong array.
SamplingParams read_sampling_params(const pybind11::array& rows, const pybind11::dict& params);

// Arrays for n_draws draws, and where the sampler writes them.
class SampleArrays {
 public:
  SampleArrays(pybind11::ssize_t n_draws, std::int32_t n_top);

  const SampleResult& result() const { return result_; }
  pybind11::tuple with_tokens() const;     // (tokens, logprobs, ranks, top_ids, top_logprobs)
  pybind11::tuple without_tokens() const;  // (logprobs, ranks, top_ids, top_logprobs)

 private:
  pybind11::array_t<std::int32_t> tokens_, ranks_, top_ids_;
  pybind11::array_t<float> logprobs_, top_logprobs_;
  SampleResult result_;
};

// The same for continuations. n_top: -1 = neither ranks nor top_ids and top_logprobs.
class ContinuationArrays {
 public:
  ContinuationArrays(pybind11::ssize_t n_draws, std::int32_t n, std::int32_t n_top);

  const ContinuationResult& result() const { return result_; }
  pybind11::tuple as_tuple() const;  // (tokens, scores, keys, logprobs, ranks, top_ids, top_logprobs)

 private:
  pybind11::array_t<std::int32_t> tokens_, ranks_, top_ids_;
  pybind11::array_t<float> scores_, keys_, logprobs_, top_logprobs_;
  ContinuationResult result_;
};

}  // namespace llm_decoder
