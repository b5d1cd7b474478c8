// Pages of the KV cache in a device's memory, and their slots of the second tier in pinned host memory.
//
// A group has one array, a page after the other, each with all layers of the group, so that a page moves as one:
//
//   [n_pages][n_layers][2 of K, V][page_size][n_kv_heads][head_dim]
//
// Elements of a byte have a float32 scale a slot and head. Kernels find these without a page's stride, so each layer
// has two arrays of them, [n_pages][page_size][n_kv_heads]. In a slot of the tier they lie behind the page's elements.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "append_kv.h"
#include "device_memory.h"
#include "llm_decoder/kv_cache.h"
#include "llm_decoder/page_storage.h"
#include "page_pool.h"
#include "paged_attention.h"

namespace llm_decoder {
namespace gpu {

// K and V of a layer as kernels that read and that append see them.
struct PagedLayer {
  PagedTensor k, v;
  KvScale k_scale, v_scale;
  AppendTarget k_target, v_target;
};

class DevicePages : public PageStorage {
 public:
  // On the device that this thread uses; moves are queued on the stream, which the pages keep alive. config.dtype:
  // bf16, f16, fp8 or s8. Throws std::invalid_argument for another, OutOfMemory.
  DevicePages(const KvCacheConfig& config, std::shared_ptr<OwnedStream> stream);
  ~DevicePages() override;  // when what is queued on the stream is over

  std::int64_t page_bytes(std::int32_t group) const override;
  void copy_page(std::int32_t group, std::int32_t from, std::int32_t to) override;
  void store(std::int32_t group, std::int32_t page, std::int32_t slot) override;
  void load(std::int32_t group, std::int32_t slot, std::int32_t page) override;

  PagedLayer layer(std::int32_t layer) const;  // of the cache
  Stream stream() const { return stream_->get(); }

 private:
  struct Group {
    std::int32_t n_pages = 0, n_layers = 0;
    std::int64_t page_bytes = 0;  // of its elements
    DeviceArray<std::byte> pages;
    DeviceArray<float> scales;     // [n_layers][2 of K, V][n_pages][page_size][n_kv_heads], or empty
    DeviceArray<PagePool> pools;   // the pages, then each array of scales
    PinnedArray<std::byte> slots;  // [n_slots][slot_bytes]
  };
  struct LayerPlace {
    std::int32_t group, index;  // which layer of its group
  };

  Group make_group(const KvGroupConfig& config, std::int32_t n_layers) const;
  std::vector<PagePool> pools_of(const Group& group) const;
  const Group& group_at(std::int32_t group) const { return groups_[static_cast<std::size_t>(group)]; }
  std::int64_t scale_page_bytes() const;  // of a page's scales of K, or of V, in one layer
  template <class Fn>
  void for_each_part(const Group& group, std::int32_t page, std::int32_t slot, const Fn& fn) const;

  const int device_;
  const std::shared_ptr<OwnedStream> stream_;
  const Dtype dtype_;
  const std::int32_t page_size_, n_kv_heads_, head_dim_;
  std::vector<Group> groups_;
  std::vector<LayerPlace> places_;
  DeviceArray<std::int64_t> pair_;  // of the copy that is queued
};

}  // namespace gpu
}  // namespace llm_decoder
