// Pages in host memory, in the layout of paged_kv.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>

#include "llm_decoder/kv_cache.h"
#include "llm_decoder/page_storage.h"
#include "llm_decoder/paged_kv.h"

namespace llm_decoder {

// The memory of one group. One mapping, a page after the other, each with all layers of the group, and after the pages
// the slots of the tier, which are like them:
//
//   [n_pages + n_tier_slots][n_layers]   K tiles, V tiles, and for s8 K scales, V scales
//
// A page lies together so that what a sequence takes of the memory is what its tokens need: the system clears memory
// when it is first written, a huge page at a time, and a pool for each layer would have all of them begun by the first
// token.
class HostGroup {
 public:
  // Of group `number`. Throws std::bad_alloc with a message when the system has too little.
  HostGroup(const KvCacheConfig& config, std::int32_t number);
  ~HostGroup();
  HostGroup(const HostGroup&) = delete;
  HostGroup& operator=(const HostGroup&) = delete;

  PagedKvView layer(std::int32_t layer) const;    // counted within the group
  void copy(std::int32_t from, std::int32_t to);  // K, V and scales, in every layer; slots are counted past the pages
  std::int32_t n_pages() const { return n_pages_; }
  std::int64_t page_bytes() const { return layer_bytes_ * n_layers_; }

 private:
  std::int32_t n_pages_, n_layers_;
  PagedKvView shape_;             // everything but the pointers
  std::int64_t tile_bytes_ = 0;   // of the K tiles of one page and layer; the V tiles take as many
  std::int64_t scale_bytes_ = 0;  // of their scales
  std::int64_t layer_bytes_ = 0;  // of one page and layer
  std::int64_t mapped_bytes_ = 0;
  std::byte* memory_ = nullptr;
  std::byte* first_page_ = nullptr;
};

class HostStorage final : public PageStorage {
 public:
  // Throws std::bad_alloc with a message when the system has too little.
  explicit HostStorage(const KvCacheConfig& config);

  PagedKvView layer(std::int32_t group, std::int32_t layer) const { return at(group).layer(layer); }

  std::int64_t page_bytes(std::int32_t group) const override { return at(group).page_bytes(); }
  void copy_page(std::int32_t group, std::int32_t from, std::int32_t to) override { at(group).copy(from, to); }
  void store(std::int32_t group, std::int32_t page, std::int32_t slot) override {
    at(group).copy(page, at(group).n_pages() + slot);
  }
  void load(std::int32_t group, std::int32_t slot, std::int32_t page) override {
    at(group).copy(at(group).n_pages() + slot, page);
  }

 private:
  HostGroup& at(std::int32_t group) { return groups_[static_cast<std::size_t>(group)]; }
  const HostGroup& at(std::int32_t group) const { return groups_[static_cast<std::size_t>(group)]; }

  std::deque<HostGroup> groups_;  // they stay where they are made
};

}  // namespace llm_decoder
