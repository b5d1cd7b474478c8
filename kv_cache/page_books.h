// The books of a group's pages, and once more of the slots of its tier: who holds each page, who pinned it, which node
// of the index found it, which leave first. Where a page goes that leaves is the group's to know.
//
// A page is
//
//   free      in the allocator's free list, of no node
//   held      in a table: partial (one writer, no node) or full (with a node)
//   cached    held by nobody, with a node: in the LRU list, or pinned
#pragma once

#include <cstdint>
#include <vector>

#include "lru.h"
#include "page_ages.h"
#include "page_allocator.h"
#include "prefix_index.h"

namespace llm_decoder {

class PageBooks {
 public:
  static constexpr std::int32_t kNone = PrefixIndex::kNone;

  PageBooks(std::int32_t n_pages, PrefixIndex& index);  // makes itself known to `index`, which must outlive it

  const std::int32_t number;  // as the index counts

  std::int32_t n_available() const { return pages.n_free() + lru.size(); }
  std::int32_t n_pins(std::int32_t page) const { return pins_[static_cast<std::size_t>(page)]; }
  std::int32_t node_of(std::int32_t page) const { return index_.node_of(number, page); }
  std::int32_t page_of(std::int32_t node) const { return index_.page(node, number); }  // or kNone

  void hold(std::int32_t page);
  void let_go(std::int32_t page);  // becomes cached or free when that was its last holder
  void pin(std::int32_t page);
  void unpin(std::int32_t page);
  void drop(std::int32_t page);  // one of the LRU list: its node loses it, it is free

  PageAllocator pages;
  LruList lru;
  PageAges ages;
  std::int64_t n_pinned = 0;

 private:
  std::vector<std::int32_t> pins_;  // [n_pages], pins that need this page
  PrefixIndex& index_;
};

}  // namespace llm_decoder
