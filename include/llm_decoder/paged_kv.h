// What kernels may know of the KV cache: one layer's pages as a view, never the cache itself.
//
// A page holds `page_size` positions of every KV head. Its CPU tile, per KV head (hd = head_dim_padded):
//
//   f32   K [hd][page_size]          positions along the vector      V [page_size][hd]      channels along the vector
//   bf16  the same, rounded to the nearest, ties to even
//   s8    K [hd/4][page_size][4]     four channels a dot product     V [page_size/4][hd][4] four positions a dot
//   product
//
// s8 K is stored biased by 128 (as unsigned bytes, q + 128), so that it is the unsigned operand of vpdpbusd; V is
// signed. One float32 scale per position and KV head, for K and for V: x ~ q * scale. Channels past head_dim are zero
// (K: bias). Slots past a sequence's end may hold anything, NaN included; kernels must never let them reach a result.
#pragma once

#include <cstdint>

#include "llm_decoder/types.h"

namespace llm_decoder {

constexpr std::int32_t kHeadDimAlign = 16;

struct PagedKvView {
  Dtype dtype = Dtype::f32;
  std::int32_t page_size = 0;  // a multiple of 16
  std::int32_t n_kv_heads = 0;
  std::int32_t head_dim = 0;
  std::int32_t head_dim_padded = 0;    // round_up(head_dim, kHeadDimAlign)
  std::int64_t page_stride_bytes = 0;  // between the same tile of two pages, the same for K and V
  std::int64_t head_stride_bytes = 0;  // between KV heads inside a page: head_dim_padded * page_size * sizeof(element)
  std::int64_t scale_stride_floats = 0;  // between the same scales of two pages
  std::byte* k = nullptr;                // of page 0, [n_kv_heads] tiles, 64-byte aligned
  std::byte* v = nullptr;
  float* k_scale = nullptr;  // of page 0, [n_kv_heads][page_size]; s8 only, else null
  float* v_scale = nullptr;

  std::byte* k_tile(std::int32_t page, std::int32_t kv_head) const {
    return k + page * page_stride_bytes + kv_head * head_stride_bytes;
  }
  std::byte* v_tile(std::int32_t page, std::int32_t kv_head) const {
    return v + page * page_stride_bytes + kv_head * head_stride_bytes;
  }
  float* k_scales(std::int32_t page, std::int32_t kv_head) const {
    return k_scale + page * scale_stride_floats + std::int64_t{kv_head} * page_size;
  }
  float* v_scales(std::int32_t page, std::int32_t kv_head) const {
    return v_scale + page * scale_stride_floats + std::int64_t{kv_head} * page_size;
  }
};

}  // namespace llm_decoder
