// What a product of rows with the weights of their experts is asked, as kernels see it.
#pragma once

#include "moe.h"

namespace llm_decoder {
namespace gpu {

// out[p, :] = weight of p * a[p, :] w[expert of p]^T for the sorted positions p, or, gated, with the product of both
// halves of w: silu(gate) * up. Rows of a and out are found through pairs, so that nothing is moved to be sorted.
// Without tiles, either position p is the pair p of a single token, each a tile, or there is one expert and position p
// is row p: a dense product.
struct GroupedProductArgs {
  const void* a = nullptr;  // [any, k]
  std::int64_t a_stride = 0;
  const int* a_pairs = nullptr;  // position p reads row a_pairs[p] / pairs_per_a_row; null: p / pairs_per_a_row
  int pairs_per_a_row = 1;
  const void* w = nullptr;         // [n_experts, n, k]; gated [n_experts, 2 n, k], the rows of the gate first
  const float* w_scale = nullptr;  // a row of w: [n_experts, n] or [n_experts, 2 n]; null: 1
  void* out = nullptr;             // [any, n]
  std::int64_t out_stride = 0;
  const int* out_pairs = nullptr;  // position p writes row out_pairs[p]; null: row p
  const float* weights = nullptr;  // of the rows of out; null: 1
  // Of a dense product alone:
  const void* bias = nullptr;  // [n] of the type of out, added last; null: none
  bool out_is_float = false;   // out is of float32, else of the type of a
  const MoeTile* tiles = nullptr;
  const int* n_tiles = nullptr;  // [1]
  int max_tiles = 0;             // room of tiles: blocks are launched for all
  MoePairs pairs;                // without tiles: of one token
  int n_rows = 0;                // without tiles and pairs: of one expert
  int n = 0, k = 0;              // multiples of 8

  // False where there is no such tile.
  GPU_FUNCTION bool find_tile(int i, int tile_rows, MoeTile& tile) const {
    if (tiles != nullptr) {
      tile = tiles[i];  // there is room for it, so that it need not wait for n_tiles
      return i < *n_tiles;
    }
    if (pairs.ids != nullptr) {
      tile = {pairs.expert_of(i), i, 1};
      return tile.expert != kNotHere;
    }
    const int left = n_rows - i * tile_rows;
    tile = {0, i * tile_rows, left < tile_rows ? left : tile_rows};
    return left > 0;
  }

  GPU_FUNCTION std::int64_t a_row(int position) const {
    return (a_pairs != nullptr ? a_pairs[position] : position) / pairs_per_a_row;
  }
  GPU_FUNCTION std::int64_t out_row(int position) const {
    return out_pairs != nullptr ? out_pairs[position] : position;
  }
  GPU_FUNCTION float weight(std::int64_t row) const { return weights != nullptr ? weights[row] : 1.0f; }

  template <class T>
  GPU_FUNCTION float bias_of(int column) const {
    if (out_is_float) return static_cast<const float*>(bias)[column];
    return to_float(static_cast<const T*>(bias)[column]);
  }
};

}  // namespace gpu
}  // namespace llm_decoder
