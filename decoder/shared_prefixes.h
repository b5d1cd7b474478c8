// Which sequences of a step begin with the same pages: attention reads these once for all of them.
#pragma once

#include <cstdint>
#include <vector>

#include "llm_decoder/types.h"
#include "paged_attention_plan.h"

namespace llm_decoder {
namespace gpu {

// A sequence as it stands before its tokens of the step.
struct PrefixOwner {
  Span<const std::int32_t> pages;
  std::int32_t n_tokens = 0;  // that are in them
};

// Runs of neighbouring sequences that share full pages, ascending, none over another. Of runs that begin with the same
// sequence the one that spares most reads.
std::vector<SharedPrefix> find_shared_prefixes(Span<const PrefixOwner> sequences, std::int32_t page_size);

}  // namespace gpu
}  // namespace llm_decoder
