// Pools of pages as copies by tensor map see them: four axes, of which a box of some channels and slots is copied at
// once. Plain arithmetic; machine_hopper.h makes a map of it.
#pragma once

#include <cstdint>

#include "matrix_descriptor.h"
#include "paged_attention.h"

namespace llm_decoder {
namespace gpu {

// A tensor of 16-bit elements. Axis 0 has no gaps; the strides of the others are in bytes.
struct TensorBoxes {
  const void* data = nullptr;
  std::int64_t size[4] = {};
  std::int64_t stride_bytes[4] = {};
  int box[4] = {};  // elements that a copy takes along each axis
};

// Where a box begins, in elements along each axis.
struct BoxPlace {
  int at[4];
};

// Keys that one copy brings: pages must hold a whole number of such boxes.
constexpr int kBoxKeys = 64;
constexpr int kBoxBytes = kBoxKeys * kBlockRowBytes;

// Heads lie within slots (pages [slots, heads, channels]) or slots within heads. A single head is within.
constexpr bool heads_within_slots(const PagedTensor& pages, int n_kv_heads) {
  return n_kv_heads == 1 || pages.head_stride <= pages.slot_stride;
}

// The pool as boxes of 64 channels and kBoxKeys slots of one head. Channels past head_dim are zeros.
constexpr TensorBoxes boxes_of(const PagedTensor& pages, int n_kv_heads, int head_dim, int page_size) {
  constexpr int kBytes = 2;
  const bool within = heads_within_slots(pages, n_kv_heads);
  const int head = within ? 1 : 2, slot = within ? 2 : 1;
  TensorBoxes boxes;
  boxes.data = pages.data;
  boxes.size[0] = head_dim;
  boxes.stride_bytes[0] = kBytes;
  boxes.size[head] = n_kv_heads;
  boxes.stride_bytes[head] = (n_kv_heads == 1 ? head_dim : pages.head_stride) * kBytes;
  boxes.size[slot] = page_size;
  boxes.stride_bytes[slot] = pages.slot_stride * kBytes;
  boxes.size[3] = pages.n_pages;
  boxes.stride_bytes[3] = pages.page_stride * kBytes;
  boxes.box[0] = kBlockColumns;
  boxes.box[head] = 1;
  boxes.box[slot] = kBoxKeys;
  boxes.box[3] = 1;
  return boxes;
}

constexpr BoxPlace box_of(bool heads_within, int channel, int kv_head, int slot, int page) {
  return heads_within ? BoxPlace{{channel, kv_head, slot, page}} : BoxPlace{{channel, slot, kv_head, page}};
}

// Whether a tensor map can be made: the rules of the driver's manual. Each stride is a whole number of those before it
// and goes past all that they span.
inline bool can_be_mapped(const TensorBoxes& boxes) {
  constexpr std::int64_t kMostElements = std::int64_t{1} << 32, kMostBytes = std::int64_t{1} << 40;
  if (reinterpret_cast<std::uintptr_t>(boxes.data) % 16 != 0) return false;
  for (int axis = 0; axis < 4; ++axis) {
    if (boxes.size[axis] < 1 || boxes.size[axis] > kMostElements) return false;
    if (axis == 0) continue;
    const std::int64_t stride = boxes.stride_bytes[axis], before = boxes.stride_bytes[axis - 1];
    if (stride % 16 != 0 || stride >= kMostBytes || stride % before != 0) return false;
    if (stride < boxes.size[axis - 1] * before) return false;
  }
  return true;
}

}  // namespace gpu
}  // namespace llm_decoder
