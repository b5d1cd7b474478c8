#include "decode_graphs.h"

namespace llm_decoder {
namespace gpu {

std::vector<std::int32_t> graph_sizes(std::int32_t most) {
  constexpr std::int32_t kStep = 8;
  std::vector<std::int32_t> sizes;
  for (std::int32_t size = 1; size < most; size = size < 2 * kStep ? 2 * size : size + kStep) sizes.push_back(size);
  sizes.push_back(most);
  return sizes;
}

const DecodeGraph* DecodeGraphs::find(std::uint64_t pages, const StepRows& rows, const StepPlans& plans) const {
  if (pages != pages_id) return nullptr;
  const auto found = by_size.lower_bound(static_cast<std::int32_t>(rows.sequences.size()));
  return found != by_size.end() && found->second.room.holds(rows, plans) ? &found->second : nullptr;
}

}  // namespace gpu
}  // namespace llm_decoder
