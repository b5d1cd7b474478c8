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
//
// Pages of others lie as `nhd`, [n_pages][page_size][n_kv_heads][head_dim]. Attention makes tiles of them in scratch,
// of one KV head and the pages of one span at a time, never of the pool.
#pragma once

#include <cstdint>

#include "llm_decoder/types.h"

namespace llm_decoder {

constexpr std::int32_t kHeadDimAlign = 16;

// K or V of an nhd pool: head_dim elements of (page, slot, kv_head) follow each other from data + page * page_stride +
// slot * slot_stride + kv_head * head_stride on.
struct NhdTensor {
  std::byte* data = nullptr;
  std::int64_t page_stride_bytes = 0, slot_stride_bytes = 0, head_stride_bytes = 0;
  // x ~ element * scale; strides of 0 where one scale serves many. Null: 1. Never negative.
  float* scale = nullptr;
  std::int64_t scale_page_stride = 0, scale_slot_stride = 0, scale_head_stride = 0;  // floats

  std::byte* row(std::int64_t page, std::int64_t slot, std::int64_t kv_head) const {
    return data + page * page_stride_bytes + slot * slot_stride_bytes + kv_head * head_stride_bytes;
  }
  float scale_of(std::int64_t page, std::int64_t slot, std::int64_t kv_head) const {
    if (scale == nullptr) return 1.0f;
    return scale[page * scale_page_stride + slot * scale_slot_stride + kv_head * scale_head_stride];
  }
};

struct NhdPages {
  Dtype dtype = Dtype::f32;
  NhdTensor k, v;
};

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
  // Where the pages are nhd, the rest says what their tiles are like, of one KV head; k, v and scales are null.
  const NhdPages* nhd = nullptr;

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

// Tiles of nhd pages hold what the pages hold: int8 and bf16 as they are, everything else, and floats with a scale, as
// float32.
inline PagedKvView view_of_nhd(const NhdPages& pages, std::int32_t page_size, std::int32_t n_kv_heads,
                               std::int32_t head_dim) {
  const bool has_scale = pages.k.scale != nullptr || pages.v.scale != nullptr;
  PagedKvView view;
  view.dtype = pages.dtype == Dtype::s8                   ? Dtype::s8
               : pages.dtype == Dtype::bf16 && !has_scale ? Dtype::bf16
                                                          : Dtype::f32;
  view.page_size = page_size;
  view.n_kv_heads = n_kv_heads;
  view.head_dim = head_dim;
  view.head_dim_padded = static_cast<std::int32_t>(round_up(head_dim, kHeadDimAlign));
  view.head_stride_bytes = std::int64_t{view.head_dim_padded} * page_size * element_bytes(view.dtype);
  view.page_stride_bytes = view.head_stride_bytes;
  view.scale_stride_floats = page_size;
  view.nhd = &pages;
  return view;
}

}  // namespace llm_decoder
