// The pages of the layers that share a window: their memory, who holds them, which leave first. One question asked of a
// page at a time; sequences as wholes, all groups together, are kv_cache.cpp's.
//
// Every full page of a living sequence is the page of its node in the index, so a page is
//
//   free      in the allocator's free list, of no node
//   held      in a table: partial (one writer, no node) or full (with a node)
//   cached    held by nobody, with a node: in the LRU list, or pinned
#pragma once

#include <cstdint>
#include <vector>

#include "llm_decoder/kv_cache.h"
#include "lru.h"
#include "page_ages.h"
#include "page_allocator.h"
#include "prefix_index.h"
#include "sequence_table.h"
#include "storage.h"

namespace llm_decoder {

class PageGroup {
 public:
  static constexpr std::int32_t kNone = PrefixIndex::kNone;

  // Group `number` of `config`; makes itself known to `index`, which must outlive it.
  PageGroup(const KvCacheConfig& config, std::int32_t number, PrefixIndex& index);

  const std::int32_t number, page_size, window;

  std::int32_t pages_for(std::int64_t n_tokens) const;
  std::int32_t n_dead_at(std::int32_t length) const;  // pages wholly left of the window of position `length`
  // Pages that a sequence of n_tokens holds at most while it takes steps of max_step tokens.
  std::int32_t most_pages_for(std::int64_t n_tokens, std::int32_t max_step) const;
  std::int32_t n_available() const { return pages.n_free() + lru.size(); }

  // Calls fn(page) for the pages that a sequence going on from `node` needs, the last one first.
  template <class Fn>
  void for_each_live_page(std::int32_t node, const Fn& fn) const;

  void hold(std::int32_t page);
  void let_go(std::int32_t page);  // becomes cached or free when that was its last holder
  void pin(std::int32_t page);
  void unpin(std::int32_t page);
  void forget_cached();  // every page that is cached and not pinned is evicted and free

  PageTable& table_of(Sequence& sequence) const { return sequence.tables[static_cast<std::size_t>(number)]; }
  const PageTable& table_of(const Sequence& sequence) const {
    return sequence.tables[static_cast<std::size_t>(number)];
  }

  // Reserve and commit, on the tables of this group.
  std::int64_t n_pages_wanted(const std::vector<Sequence*>& batch, Span<const std::int32_t> counts);
  void make_room(Sequence& sequence, std::int32_t count);  // n_available() must be enough for the whole batch
  void trim(PageTable& table, std::int64_t n_tokens);      // lets go of the pages past n_tokens
  // The page that ends at the sequence's length is the page of `node`, or gives way to the one that is.
  void index_full_page(Sequence& sequence, std::int32_t node);
  void pass_window(Sequence& sequence);

  Storage storage;  // first, so that a pool that is too large is refused before its books are opened
  PageAllocator pages;
  LruList lru;
  PageAges ages;
  std::vector<std::int32_t> page_pins;  // [n_pages], pins that need this page
  std::int64_t n_pinned = 0, n_evictions = 0, n_cleared = 0, n_copies = 0;
  std::vector<std::int32_t> n_leaving;  // [n_pages], scratch of n_pages_wanted, zero between calls

 private:
  std::int32_t& page_at(Sequence& sequence, std::int32_t position) const {
    return table_of(sequence).pages[static_cast<std::size_t>(position / page_size)];
  }
  bool must_copy(Sequence& sequence) const;  // its last page is partial and others hold it too
  void evict(std::int32_t page);             // a cached one; it is idle and of no node then
  std::int32_t take_page();                  // a free one, else the oldest cached one; there must be one

  PrefixIndex& index_;
};

template <class Fn>
void PageGroup::for_each_live_page(std::int32_t node, const Fn& fn) const {
  const std::int32_t depth = index_.depth(node);
  for (std::int32_t n_left = depth - n_dead_at(depth * page_size); n_left > 0; --n_left) {
    const std::int32_t parent = index_.parent(node);
    fn(index_.page(node, number));
    node = parent;
  }
}

}  // namespace llm_decoder
