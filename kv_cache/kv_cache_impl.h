// The parts of a cache and the few moves that every verb is made of. kv_cache.cpp has the verbs, integrity.cpp the
// proof.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "llm_decoder/kv_cache.h"
#include "lru.h"
#include "page_allocator.h"
#include "page_table.h"
#include "prefix_index.h"
#include "storage.h"

namespace llm_decoder {

// Every full page of a living sequence is the page of its node in the index, so a page is
//
//   free      in the allocator's free list, in no node
//   held      in a table: partial (one writer, no node) or full (with a node)
//   cached    held by nobody, with a node: in the LRU list, or pinned
struct KvCache::Impl {
  struct Match {
    std::int32_t node;  // in the index, at depth n_pages; PrefixIndex::kNone when even the salt is unknown
    std::int32_t n_pages;
  };

  explicit Impl(const KvCacheConfig& config);

  std::int32_t pages_for(std::int64_t n_tokens) const;
  std::int32_t& page_at(PageTable& table, std::int32_t position) const {
    return table.pages[static_cast<std::size_t>(position / config.page_size)];
  }
  std::int32_t page_at(const PageTable& table, std::int32_t position) const {
    return table.pages[static_cast<std::size_t>(position / config.page_size)];
  }
  std::int32_t n_dead_at(std::int32_t length) const;  // pages wholly left of the window of position `length`
  bool must_copy(const PageTable& table) const;       // its last page is partial and others hold it too

  // The longest chain of at most max_pages full pages from which a sequence could go on.
  Match longest_match(Span<const std::int32_t> tokens, std::string_view salt, std::int32_t max_pages) const;
  // Calls fn(page) for the pages that a sequence going on from `node` needs, the last one first.
  template <class Fn>
  void for_each_live_page(std::int32_t node, const Fn& fn) const;

  // Holding pages.
  void hold(std::int32_t page);
  void let_go(std::int32_t page);  // becomes cached or free when that was its last holder
  std::int32_t take_page();        // a free one, else the oldest cached one; there must be one
  void pin_page(std::int32_t page);
  void unpin_page(std::int32_t page);

  // Reserve and commit, a sequence at a time. resolve fills `batch`, or throws having changed nothing.
  void resolve(Span<const std::int64_t> seq_ids, Span<const std::int32_t> counts, const char* place);
  std::int64_t n_pages_wanted(Span<const std::int32_t> counts);
  void make_room(PageTable& table, std::int32_t count);
  void trim(PageTable& table, std::int64_t n_tokens);  // lets go of the pages past n_tokens
  void append(PageTable& table, const std::int32_t* tokens, std::int32_t count);
  void index_full_page(PageTable& table);  // the page that ends at its length
  void pass_window(PageTable& table);

  KvCacheConfig config;
  Storage storage;  // first, so that a pool that is too large is refused before its books are opened
  PageAllocator pages;
  LruList lru;
  PrefixIndex index;
  SequenceTable sequences;
  std::vector<std::int32_t> page_pins;  // [n_pages], pins that need this page

  std::int64_t n_pinned = 0, n_query_tokens = 0, n_hit_tokens = 0, n_evictions = 0, n_copies = 0;

  // Scratch of reserve and commit, kept so that a step allocates nothing.
  std::uint64_t batch_number = 0;
  std::vector<PageTable*> batch;
  std::vector<std::int32_t> n_leaving;  // [n_pages], zero between calls
};

template <class Fn>
void KvCache::Impl::for_each_live_page(std::int32_t node, const Fn& fn) const {
  const std::int32_t depth = index.depth(node);
  for (std::int32_t n_left = depth - n_dead_at(depth * config.page_size); n_left > 0; --n_left) {
    const std::int32_t parent = index.parent(node);
    fn(index.page(node));
    node = parent;
  }
}

}  // namespace llm_decoder
