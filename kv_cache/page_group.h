// The pages of the layers that share a window: their pool, and the slots of the second tier that pages evicted from the
// pool go to. One question asked of a page at a time; sequences as wholes, all groups together, are kv_cache.cpp's.
//
// Every full page of a living sequence is the page of its node in the index. A node has its content in one place: in a
// page of the pool or in a slot of the tier. Who holds or has pinned a slot holds or has pinned the page that the
// content comes back to, so nothing that a sequence stands on is ever lost.
#pragma once

#include <cstdint>
#include <vector>

#include "llm_decoder/kv_cache.h"
#include "llm_decoder/page_storage.h"
#include "page_books.h"
#include "prefix_index.h"
#include "sequence_table.h"

namespace llm_decoder {

class PageGroup {
 public:
  static constexpr std::int32_t kNone = PrefixIndex::kNone;

  // Group `number` of `config`. Both `storage` and `index` must outlive it.
  PageGroup(const KvCacheConfig& config, std::int32_t number, PageStorage& storage, PrefixIndex& index);

  const std::int32_t number, page_size, window;

  std::int32_t pages_for(std::int64_t n_tokens) const;
  std::int32_t n_dead_at(std::int32_t length) const;  // pages wholly left of the window of position `length`
  // Pages that a sequence of n_tokens holds at most while it takes steps of max_step tokens.
  std::int32_t most_pages_for(std::int64_t n_tokens, std::int32_t max_step) const;

  // Calls fn(node) for the nodes whose pages a sequence going on from `node` needs, the last one first.
  template <class Fn>
  void for_each_live_node(std::int32_t node, const Fn& fn) const;
  // The same, with fn(books, page): the pool and its page, or the tier and its slot.
  template <class Fn>
  void for_each_home(std::int32_t node, const Fn& fn);
  bool has(std::int32_t node) const { return pool.page_of(node) != kNone || tier.page_of(node) != kNone; }

  void forget_cached();  // every page and slot that is cached and not pinned is free

  PageTable& table_of(Sequence& sequence) const { return sequence.tables[static_cast<std::size_t>(number)]; }
  const PageTable& table_of(const Sequence& sequence) const {
    return sequence.tables[static_cast<std::size_t>(number)];
  }

  // The pages that a sequence going on from a node needs, wherever they are.
  void start(Sequence& sequence);     // the table of a new one that stands on its node
  void hold_all(Sequence& sequence);  // once more, for a copy of its table
  void let_go_all(Sequence& sequence);
  void pin(std::int32_t node);
  void unpin(std::int32_t node);

  // Reserve and commit, on the tables of this group.
  std::int64_t n_pages_wanted(const std::vector<Sequence*>& batch, Span<const std::int32_t> counts);
  void make_room(Sequence& sequence, std::int32_t count);  // pool.n_available() must be enough for the whole batch
  void trim(PageTable& table, std::int64_t n_tokens);      // lets go of the pages past n_tokens
  // The page that ends at the sequence's length is the page of `node`, or gives way to the one that is.
  void index_full_page(Sequence& sequence, std::int32_t node);
  void pass_window(Sequence& sequence);

  PageBooks pool, tier;
  std::int64_t n_evictions = 0, n_cleared = 0, n_copies = 0, n_stored = 0, n_loaded = 0;
  // Scratch of n_pages_wanted, zero between calls.
  std::vector<std::int32_t> n_leaving;  // [n_pages]
  std::vector<bool> is_coming_in;       // [n_tier_slots]

 private:
  std::int32_t& page_at(Sequence& sequence, std::int32_t position) const {
    return table_of(sequence).pages[static_cast<std::size_t>(position / page_size)];
  }
  bool must_copy(Sequence& sequence) const;  // its last page is partial and others hold it too
  std::int32_t take_page();                  // a free one, else the oldest cached one; there must be one
  void keep_in_tier(std::int32_t page);      // a cached one that is about to leave, where the tier has a slot for it
  void fetch(Sequence& sequence);            // its table has all its pages then
  std::int32_t load(std::int32_t node);      // its content comes back from the tier to the page returned
  void give_page(std::int32_t node, std::int32_t page);  // to one that has none, in place of its slot if it has one

  PageStorage& storage_;
  PrefixIndex& index_;
};

template <class Fn>
void PageGroup::for_each_live_node(std::int32_t node, const Fn& fn) const {
  const std::int32_t depth = index_.depth(node);
  for (std::int32_t n_left = depth - n_dead_at(depth * page_size); n_left > 0; --n_left) {
    const std::int32_t parent = index_.parent(node);
    fn(node);
    node = parent;
  }
}

template <class Fn>
void PageGroup::for_each_home(std::int32_t node, const Fn& fn) {
  for_each_live_node(node, [&](std::int32_t needed) {
    PageBooks& home = pool.page_of(needed) != kNone ? pool : tier;
    fn(home, home.page_of(needed));
  });
}

}  // namespace llm_decoder
