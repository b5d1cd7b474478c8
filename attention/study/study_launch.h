// Runs one of the methods of the study.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "study.h"

namespace llm_decoder {
namespace gpu {
namespace study {

enum class Method { naive, flash_attention_1, flash_attention_2, flash_decoding, flash_decoding_pp, paged_attention };

std::vector<std::string> method_names();
// The method whose name this is ("flash_attention_2"). Throws std::invalid_argument with all names.
Method method_named(const char* name);

// Splits of the keys that give every multiprocessor something to do, by FlashDecoding++'s rule; 1 where the method does
// not split.
int n_splits_for(Method method, const StudyArgs& args, int n_multiprocessors);

// What `args` must point to beside inputs and output, by method; 0 where nothing is needed.
struct ScratchSizes {
  std::size_t n_scores = 0;       // floats of scores
  std::size_t n_states = 0;       // of state_max and state_sum; head_dim times as many of states
  std::size_t n_wrong_flags = 0;  // ints of is_wrong, zeros
};
ScratchSizes scratch_sizes(Method method, const StudyArgs& args);

// Kernels that the method launches.
int n_launches(Method method);

// Bytes of global memory that the method moves, as its header counts them.
std::int64_t bytes_moved(Method method, const StudyArgs& args);

// Throws std::invalid_argument for shapes that cannot be.
void run_method(Method method, const StudyArgs& args, Stream stream);

}  // namespace study
}  // namespace gpu
}  // namespace llm_decoder
