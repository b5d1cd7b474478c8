// The memory behind the pages, in the layout of paged_kv.h. Host memory is host_storage.cpp; who may use which page is
// none of its business.
#pragma once

#include <cstddef>
#include <cstdint>

#include "llm_decoder/kv_cache.h"
#include "llm_decoder/paged_kv.h"

namespace llm_decoder {

// One mapping for all layers of a group, a pool after the other:
//
//   [n_layers][K, V][n_pages] tiles        then, for s8,        [n_layers][K, V][n_pages] scales
//
// The pages of one layer lie together because attention walks them layer by layer. Memory is the system's zero pages
// until it is first written.
class Storage {
 public:
  // The memory of group `number`. Throws std::bad_alloc with a message when the system has too little.
  Storage(const KvCacheConfig& config, std::int32_t number);
  ~Storage();
  Storage(const Storage&) = delete;
  Storage& operator=(const Storage&) = delete;

  PagedKvView layer(std::int32_t layer) const;         // counted within the group
  void copy_page(std::int32_t from, std::int32_t to);  // K, V and scales, in every layer
  std::int64_t page_bytes() const;                     // of one page over all layers of the group

 private:
  std::int32_t n_layers_;
  PagedKvView shape_;                    // everything but the pointers
  std::int64_t scale_stride_bytes_ = 0;  // between pages of a pool of scales
  std::int64_t tile_pool_bytes_ = 0;     // one pool, rounded up to the alignment
  std::int64_t scale_pool_bytes_ = 0;
  std::int64_t mapped_bytes_ = 0;
  std::byte* memory_ = nullptr;
};

}  // namespace llm_decoder
