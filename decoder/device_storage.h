// Pages of the KV cache in a device's memory, and their slots of the second tier in pinned host memory.
//
// A group has one array, a page after the other, each with all layers of the group, so that a page moves as one:
//
//   [n_pages][n_layers][2 of K, V][page_size][n_kv_heads][head_dim]
//
// Elements of a byte have a float32 scale a slot and head. Kernels find these without a page's stride, so each layer
// has two arrays of them, [n_pages][page_size][n_kv_heads]. Where there is a tier, some pages more lie behind both, for
// moves between the two (page_moves.h).
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "append_kv.h"
#include "device_memory.h"
#include "llm_decoder/kv_cache.h"
#include "llm_decoder/page_storage.h"
#include "page_moves.h"
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
  // On the device that this thread uses; steps are queued on the stream, which the pages keep alive. config.dtype:
  // bf16, f16, fp8 or s8. Throws std::invalid_argument for another, OutOfMemory.
  DevicePages(const KvCacheConfig& config, std::shared_ptr<OwnedStream> stream);
  ~DevicePages() override;  // when what is queued on the stream, and of moves, is over

  std::int64_t page_bytes(std::int32_t group) const override;
  void copy_page(std::int32_t group, std::int32_t from, std::int32_t to) override;
  void store(std::int32_t group, std::int32_t page, std::int32_t slot) override;
  void load(std::int32_t group, std::int32_t slot, std::int32_t page) override;
  void queue_moves() override;
  MoveTimes load_times() const override;

  PagedLayer layer(std::int32_t layer) const;  // of the cache
  Stream stream() const { return stream_->get(); }
  std::uint64_t id() const { return id_; }  // no other pages of the process have it, or had it

 private:
  struct Group {
    std::int32_t n_layers = 0;
    DeviceArray<std::byte> pages;
    DeviceArray<float> scales;    // [n_layers][2 of K, V][n_all_pages][page_size][n_kv_heads], or empty
    DeviceArray<PagePool> pools;  // the pages, then each array of scales
    GroupMemory memory;           // where these are
    std::unique_ptr<PageMoves> moves;
  };
  struct LayerPlace {
    std::int32_t group, index;  // which layer of its group
  };

  Group make_group(const KvGroupConfig& config, std::int32_t n_layers) const;
  const Group& group_at(std::int32_t group) const { return groups_[static_cast<std::size_t>(group)]; }
  PageMoves& moves_of(std::int32_t group) { return *group_at(group).moves; }

  const std::uint64_t id_;
  const int device_;
  const std::shared_ptr<OwnedStream> stream_;
  const OwnedStream stores_, loads_;  // of moves
  const Dtype dtype_;
  const std::int32_t page_size_, n_kv_heads_, head_dim_;
  std::vector<Group> groups_;
  std::vector<LayerPlace> places_;
};

}  // namespace gpu
}  // namespace llm_decoder
