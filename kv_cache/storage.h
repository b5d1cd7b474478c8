// The memory behind the pages, in the layout of paged_kv.h. Host memory is host_storage.cpp; who may use which page is
// none of its business.
#pragma once

#include <cstddef>
#include <cstdint>

#include "llm_decoder/kv_cache.h"
#include "llm_decoder/paged_kv.h"

namespace llm_decoder {

// One mapping, a page after the other, each with all layers of the group:
//
//   [n_pages][n_layers]   K tiles, V tiles, and for s8 K scales, V scales
//
// A page lies together so that what a sequence takes of the memory is what its tokens need: the system clears memory
// when it is first written, a huge page at a time, and a pool for each layer would have all of them begun by the first
// token.
class Storage {
 public:
  // The memory of group `number`. Throws std::bad_alloc with a message when the system has too little.
  Storage(const KvCacheConfig& config, std::int32_t number);
  ~Storage();
  Storage(const Storage&) = delete;
  Storage& operator=(const Storage&) = delete;

  PagedKvView layer(std::int32_t layer) const;         // counted within the group
  void copy_page(std::int32_t from, std::int32_t to);  // K, V and scales, in every layer
  std::int64_t page_bytes() const { return layer_bytes_ * n_layers_; }

 private:
  std::int32_t n_layers_;
  PagedKvView shape_;             // everything but the pointers
  std::int64_t tile_bytes_ = 0;   // of the K tiles of one page and layer; the V tiles take as many
  std::int64_t scale_bytes_ = 0;  // of their scales
  std::int64_t layer_bytes_ = 0;  // of one page and layer
  std::int64_t mapped_bytes_ = 0;
  std::byte* memory_ = nullptr;
  std::byte* first_page_ = nullptr;
};

}  // namespace llm_decoder
