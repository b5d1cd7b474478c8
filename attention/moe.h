// What a mixture of experts is asked, as kernels see it. All pointers are the device's.
#pragma once

#include <cstdint>

#include "machine.h"

namespace llm_decoder {
namespace gpu {

constexpr int kMaxLocalExperts = 1024;
constexpr int kNotHere = -1;

// Pair p is choice p % top_k of token p / top_k.
struct MoePairs {
  const int* ids = nullptr;         // [n_pairs] experts; any other value is none
  const int* expert_map = nullptr;  // [n_ids] which expert of those here an id is, or kNotHere; null: the id itself
  int n_pairs = 0;
  int n_ids = 0;      // how many ids there are
  int n_experts = 0;  // here

  // The expert here that a pair goes to, or kNotHere.
  GPU_FUNCTION int expert_of(std::int64_t pair) const {
    const int id = ids[pair];
    if (id < 0 || id >= n_ids) return kNotHere;
    const int expert = expert_map != nullptr ? expert_map[id] : id;
    return expert >= 0 && expert < n_experts ? expert : kNotHere;
  }
};

// Pairs [begin, begin + n) of the sorted ones go to one expert.
struct alignas(16) MoeTile {  // one load
  int expert = 0;
  int begin = 0, n = 0;
};

struct MoeSortArgs {
  MoePairs pairs;
  int tile_rows = 0;            // pairs of a tile at most
  int* sorted_pairs = nullptr;  // [n_pairs]; those not here are left out, and what is behind the last stays as it was
  MoeTile* tiles = nullptr;     // [max_moe_tiles], by expert
  int* n_tiles = nullptr;       // [1]
  int* chunk_begin = nullptr;   // workspace: [n_sort_chunks, n_experts]
  int* expert_begin = nullptr;  // workspace: [n_experts]
};

// Tiles that so many pairs can make: every expert ends with one that is not full.
constexpr int max_moe_tiles(int n_pairs, int n_experts, int tile_rows) {
  return n_pairs / tile_rows + (n_pairs < n_experts ? n_pairs : n_experts);
}

constexpr int kSortChunk = 4096;  // pairs that a block sorts

constexpr int n_sort_chunks(int n_pairs) {
  return n_pairs > kSortChunk ? static_cast<int>(ceil_div(n_pairs, kSortChunk)) : 1;
}

}  // namespace gpu
}  // namespace llm_decoder
