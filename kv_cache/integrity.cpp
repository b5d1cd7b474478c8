// The proof that a cache is in one piece: each part by itself, then what the parts say of each other.
#include "kv_cache_impl.h"
#include "llm_decoder/errors.h"

namespace llm_decoder {
namespace {

using Impl = KvCache::Impl;

constexpr const char* kPlace = "KvCache.check_integrity";
constexpr std::int32_t kNone = PrefixIndex::kNone;

struct Counts {
  std::vector<std::int32_t> table_entries;  // [n_pages], how often tables name the page
  std::vector<std::int32_t> anchors;        // by node, sequences that stand on it
};

void check_entry(const Impl& self, std::int64_t seq_id, const PageTable& table, std::size_t entry, Counts* counts) {
  const std::int32_t page = table.pages[entry];
  if (entry < static_cast<std::size_t>(table.n_dead)) {
    check_state(page == kNone, kPlace, "sequence ", seq_id, " has page ", page, " left of its window");
    return;
  }
  check_state(0 <= page && page < self.pages.n_pages(), kPlace, "sequence ", seq_id, " names page ", page);
  ++counts->table_entries[static_cast<std::size_t>(page)];
  const bool is_full = entry < static_cast<std::size_t>(table.length / self.config.page_size);
  check_state(is_full == (self.index.node_of(page) != kNone), kPlace, "page ", page, " of sequence ", seq_id,
              is_full ? " is full and not in the index" : " is not full and in the index");
  check_state(is_full || table.n_reserved == 0 || self.pages.n_holders(page) == 1, kPlace, "sequence ", seq_id,
              " may write to page ", page, ", which others hold");
}

// The table's full pages are those of the nodes from the sequence's node up to the root.
void check_chain(const Impl& self, std::int64_t seq_id, const PageTable& table) {
  std::int32_t node = table.node;
  for (std::int32_t entry = table.length / self.config.page_size - 1; entry >= 0; --entry) {
    check_state(node != kNone && self.index.depth(node) == entry + 1, kPlace, "sequence ", seq_id,
                " does not stand on its last full page");
    if (entry >= table.n_dead) {
      check_state(self.index.page(node) == table.pages[static_cast<std::size_t>(entry)], kPlace, "sequence ", seq_id,
                  " and the index differ on its full page ", entry);
    }
    node = self.index.parent(node);
  }
  check_state(node != kNone && self.index.depth(node) == 0, kPlace, "sequence ", seq_id, " does not start at a root");
}

void check_sequence(const Impl& self, std::int64_t seq_id, const PageTable& table, Counts* counts) {
  check_state(table.length >= 0 && table.n_reserved >= 0, kPlace, "sequence ", seq_id, " has a negative count");
  const std::int32_t n_pages = self.pages_for(std::int64_t{table.length} + table.n_reserved);
  check_state(static_cast<std::int32_t>(table.pages.size()) == n_pages, kPlace, "sequence ", seq_id, " needs ", n_pages,
              " table entries, has ", table.pages.size());
  check_state(table.n_dead == self.n_dead_at(table.length), kPlace, "sequence ", seq_id, " has ", table.n_dead,
              " pages left of its window, not ", self.n_dead_at(table.length));
  check_state(static_cast<std::int32_t>(table.tail.size()) == table.length % self.config.page_size, kPlace, "sequence ",
              seq_id, " remembers ", table.tail.size(), " tokens of its partial page");
  for (std::size_t entry = 0; entry < table.pages.size(); ++entry) check_entry(self, seq_id, table, entry, counts);
  check_chain(self, seq_id, table);
  ++counts->anchors[static_cast<std::size_t>(table.node)];
}

void check_page(const Impl& self, std::int32_t page, const Counts& counts) {
  const std::int32_t n_holders = self.pages.n_holders(page);
  const bool is_held = n_holders > 0;
  const bool is_cached = !is_held && self.index.node_of(page) != kNone;
  check_state(self.pages.is_free(page) + is_held + is_cached == 1, kPlace, "page ", page,
              " must be free, held or cached, is in ", self.pages.is_free(page) + is_held + is_cached, " of these");
  check_state(n_holders == counts.table_entries[static_cast<std::size_t>(page)], kPlace, "page ", page, " has ",
              n_holders, " holders, stands in ", counts.table_entries[static_cast<std::size_t>(page)], " tables");
  const bool is_pinned = self.page_pins[static_cast<std::size_t>(page)] > 0;
  check_state(self.lru.contains(page) == (is_cached && !is_pinned), kPlace, "page ", page,
              " must be in the LRU list when it is cached and not pinned, and only then");
}

// Without a window a page is of use only with all its ancestors: they are there, held when it is, and leave after it.
void check_ancestors_outlive(const Impl& self) {
  std::vector<std::int64_t> age(self.page_pins.size(), -1);
  std::int64_t position = 0;
  for (std::int32_t page = self.lru.oldest(); page != kNone; page = self.lru.newer(page)) {
    age[static_cast<std::size_t>(page)] = position++;
  }
  for (std::int32_t page = 0; page < self.pages.n_pages(); ++page) {
    const std::int32_t node = self.index.node_of(page);
    if (node == kNone || self.index.depth(node) == 1) continue;
    const std::int32_t parent = self.index.page(self.index.parent(node));
    check_state(parent != kNone, kPlace, "page ", page, " has lost its parent");
    check_state(self.pages.n_holders(parent) >= self.pages.n_holders(page), kPlace, "page ", page,
                " is held by sequences that do not hold its parent");
    check_state(!self.lru.contains(parent) || (self.lru.contains(page) && age[static_cast<std::size_t>(page)] <
                                                                              age[static_cast<std::size_t>(parent)]),
                kPlace, "page ", parent, " would be evicted before its child ", page);
  }
}

// Sequences stand on nodes, pins need pages: both counted afresh.
void check_anchors_and_pins(const Impl& self, const Counts& counts) {
  std::vector<std::int32_t> page_pins(self.page_pins.size(), 0);
  for (const std::int32_t node : self.index.nodes()) {
    check_state(self.index.n_anchors(node) == counts.anchors[static_cast<std::size_t>(node)], kPlace, "node ", node,
                " has ", self.index.n_anchors(node), " anchors, ", counts.anchors[static_cast<std::size_t>(node)],
                " sequences stand on it");
    const std::int32_t n_pins = self.index.n_pins(node);
    if (n_pins == 0) continue;
    self.for_each_live_page(node, [&](std::int32_t page) {
      check_state(page != kNone, kPlace, "a pinned page of node ", node, " is gone");
      page_pins[static_cast<std::size_t>(page)] += n_pins;
    });
  }
  std::int64_t n_pinned = 0;
  for (std::size_t page = 0; page < page_pins.size(); ++page) {
    check_state(page_pins[page] == self.page_pins[page], kPlace, "page ", page, " counts ", self.page_pins[page],
                " pins, has ", page_pins[page]);
    n_pinned += page_pins[page] > 0 ? 1 : 0;
  }
  check_state(n_pinned == self.n_pinned, kPlace, "n_pinned is ", self.n_pinned, ", counted ", n_pinned);
}

}  // namespace

void KvCache::check_integrity() const {
  const Impl& self = *impl_;
  self.pages.check_integrity();
  self.lru.check_integrity();
  self.index.check_integrity();
  Counts counts;
  counts.table_entries.assign(self.page_pins.size(), 0);
  counts.anchors.assign(self.index.n_slots(), 0);
  for (const auto& [seq_id, table] : self.sequences.all()) check_sequence(self, seq_id, table, &counts);
  for (std::int32_t page = 0; page < self.pages.n_pages(); ++page) check_page(self, page, counts);
  check_anchors_and_pins(self, counts);
  if (self.config.window == 0) check_ancestors_outlive(self);
  for (const std::int32_t n : self.n_leaving) check_state(n == 0, kPlace, "scratch of reserve was not cleared");
}

}  // namespace llm_decoder
