// Decode steps that are repeated as graphs: for how many sequences, and with whose arrays.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "device_step.h"
#include "stream_graph.h"

namespace llm_decoder {
namespace gpu {

// 1, 2, 4, 8, 16, 24, 32, ... and `most` itself.
std::vector<std::int32_t> graph_sizes(std::int32_t most);

struct DecodeGraph {
  StepRoom room;
  StreamGraph graph;
};

struct DecodeGraphs {
  std::map<std::int32_t, DecodeGraph> by_size;  // steps of fewer sequences are padded to the next size
  std::uint64_t pages_id = 0;                   // DevicePages::id() of the pages whose addresses they have
  DeviceStep step;                              // arrays of all of them, and so never moved
  std::string why_not_more;                     // sizes that are not there; empty where nothing is missing

  // Null where there is none for such a step.
  const DecodeGraph* find(std::uint64_t pages, const StepRows& rows, const StepPlans& plans) const;
};

}  // namespace gpu
}  // namespace llm_decoder
