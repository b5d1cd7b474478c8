// The proof that a cache is in one piece: each part by itself, then what the parts say of each other.
#include "kv_cache_impl.h"
#include "llm_decoder/errors.h"

namespace llm_decoder {
namespace {

using Impl = KvCache::Impl;

constexpr const char* kPlace = "KvCache.check_integrity";
constexpr std::int32_t kNone = PrefixIndex::kNone;

using Counts = std::vector<std::int32_t>;

void check_entry(const Impl& self, const PageGroup& group, std::int64_t seq_id, const Sequence& sequence,
                 std::size_t entry, Counts* table_entries) {
  const PageTable& table = group.table_of(sequence);
  const std::int32_t page = table.pages[entry];
  if (entry < static_cast<std::size_t>(table.n_dead)) {
    check_state(page == kNone, kPlace, "sequence ", seq_id, " has page ", page, " left of its window");
    return;
  }
  check_state(0 <= page && page < group.pages.n_pages(), kPlace, "sequence ", seq_id, " names page ", page);
  ++(*table_entries)[static_cast<std::size_t>(page)];
  const bool is_full = entry < static_cast<std::size_t>(sequence.length / group.page_size);
  check_state(is_full == (self.index.node_of(group.number, page) != kNone), kPlace, "page ", page, " of sequence ",
              seq_id, is_full ? " is full and not in the index" : " is not full and in the index");
  check_state(is_full || sequence.n_reserved == 0 || group.pages.n_holders(page) == 1, kPlace, "sequence ", seq_id,
              " may write to page ", page, ", which others hold");
}

// The table's full pages are those of the nodes from the sequence's node up to the root.
void check_chain(const Impl& self, const PageGroup& group, std::int64_t seq_id, const Sequence& sequence) {
  const PageTable& table = group.table_of(sequence);
  std::int32_t node = sequence.node;
  for (std::int32_t entry = sequence.length / group.page_size - 1; entry >= 0; --entry) {
    check_state(node != kNone && self.index.depth(node) == entry + 1, kPlace, "sequence ", seq_id,
                " does not stand on its last full page");
    if (entry >= table.n_dead) {
      check_state(self.index.page(node, group.number) == table.pages[static_cast<std::size_t>(entry)], kPlace,
                  "sequence ", seq_id, " and the index differ on its full page ", entry);
    }
    node = self.index.parent(node);
  }
  check_state(node != kNone && self.index.depth(node) == 0, kPlace, "sequence ", seq_id, " does not start at a root");
}

void check_table(const Impl& self, const PageGroup& group, std::int64_t seq_id, const Sequence& sequence,
                 Counts* table_entries) {
  const PageTable& table = group.table_of(sequence);
  const std::int32_t n_pages = group.pages_for(std::int64_t{sequence.length} + sequence.n_reserved);
  check_state(static_cast<std::int32_t>(table.pages.size()) == n_pages, kPlace, "sequence ", seq_id, " needs ", n_pages,
              " table entries, has ", table.pages.size());
  const std::int32_t n_dead = group.n_dead_at(sequence.length);
  check_state(table.n_dead == n_dead, kPlace, "sequence ", seq_id, " has ", table.n_dead,
              " pages left of its window, not ", n_dead);
  for (std::size_t entry = 0; entry < table.pages.size(); ++entry) {
    check_entry(self, group, seq_id, sequence, entry, table_entries);
  }
  check_chain(self, group, seq_id, sequence);
}

void check_sequence(const Impl& self, std::int64_t seq_id, const Sequence& sequence) {
  check_state(sequence.length >= 0 && sequence.n_reserved >= 0, kPlace, "sequence ", seq_id, " has a negative count");
  check_state(sequence.tables.size() == self.groups.size(), kPlace, "sequence ", seq_id, " has ",
              sequence.tables.size(), " tables");
  check_state(static_cast<std::int32_t>(sequence.tail.size()) == sequence.length % self.config.page_size, kPlace,
              "sequence ", seq_id, " remembers ", sequence.tail.size(), " tokens of its partial page");
}

void check_page(const Impl& self, const PageGroup& group, std::int32_t page, const Counts& table_entries) {
  const std::int32_t n_holders = group.pages.n_holders(page);
  const bool is_free = group.pages.is_free(page);
  const bool is_held = n_holders > 0;
  const bool is_cached = !is_held && self.index.node_of(group.number, page) != kNone;
  check_state(is_free + is_held + is_cached == 1, kPlace, "page ", page, " must be free, held or cached, is in ",
              is_free + is_held + is_cached, " of these");
  check_state(n_holders == table_entries[static_cast<std::size_t>(page)], kPlace, "page ", page, " has ", n_holders,
              " holders, stands in ", table_entries[static_cast<std::size_t>(page)], " tables");
  const bool is_pinned = group.page_pins[static_cast<std::size_t>(page)] > 0;
  check_state(group.lru.contains(page) == (is_cached && !is_pinned), kPlace, "page ", page,
              " must be in the LRU list when it is cached and not pinned, and only then");
}

// Without a window a page is of use only with all its ancestors: they are there, held when it is, and leave after it.
void check_ancestors_outlive(const Impl& self, const PageGroup& group) {
  std::vector<std::int64_t> age(group.page_pins.size(), -1);
  std::int64_t position = 0;
  for (std::int32_t page = group.lru.oldest(); page != kNone; page = group.lru.newer(page)) {
    age[static_cast<std::size_t>(page)] = position++;
  }
  for (std::int32_t page = 0; page < group.pages.n_pages(); ++page) {
    const std::int32_t node = self.index.node_of(group.number, page);
    if (node == kNone || self.index.depth(node) == 1) continue;
    const std::int32_t parent = self.index.page(self.index.parent(node), group.number);
    check_state(parent != kNone, kPlace, "page ", page, " has lost its parent");
    check_state(group.pages.n_holders(parent) >= group.pages.n_holders(page), kPlace, "page ", page,
                " is held by sequences that do not hold its parent");
    check_state(!group.lru.contains(parent) || (group.lru.contains(page) && age[static_cast<std::size_t>(page)] <
                                                                                age[static_cast<std::size_t>(parent)]),
                kPlace, "page ", parent, " would be evicted before its child ", page);
  }
}

void check_pins(const Impl& self, const PageGroup& group) {
  Counts page_pins(group.page_pins.size(), 0);
  for (const std::int32_t node : self.index.nodes()) {
    const std::int32_t n_pins = self.index.n_pins(node);
    if (n_pins == 0) continue;
    group.for_each_live_page(node, [&](std::int32_t page) {
      check_state(page != kNone, kPlace, "a pinned page of node ", node, " is gone");
      page_pins[static_cast<std::size_t>(page)] += n_pins;
    });
  }
  std::int64_t n_pinned = 0;
  for (std::size_t page = 0; page < page_pins.size(); ++page) {
    check_state(page_pins[page] == group.page_pins[page], kPlace, "page ", page, " counts ", group.page_pins[page],
                " pins, has ", page_pins[page]);
    n_pinned += page_pins[page] > 0 ? 1 : 0;
  }
  check_state(n_pinned == group.n_pinned, kPlace, "n_pinned is ", group.n_pinned, ", counted ", n_pinned);
}

void check_group(const Impl& self, const PageGroup& group) {
  group.pages.check_integrity();
  group.lru.check_integrity();
  Counts table_entries(group.page_pins.size(), 0);
  for (const auto& [seq_id, sequence] : self.sequences.all())
    check_table(self, group, seq_id, sequence, &table_entries);
  for (std::int32_t page = 0; page < group.pages.n_pages(); ++page) check_page(self, group, page, table_entries);
  check_pins(self, group);
  if (group.window == 0) check_ancestors_outlive(self, group);
  for (const std::int32_t n : group.n_leaving) check_state(n == 0, kPlace, "scratch of reserve was not cleared");
}

}  // namespace

void KvCache::check_integrity() const {
  const Impl& self = *impl_;
  self.index.check_integrity();
  Counts anchors(self.index.n_slots(), 0);
  for (const auto& [seq_id, sequence] : self.sequences.all()) {
    check_sequence(self, seq_id, sequence);
    ++anchors[static_cast<std::size_t>(sequence.node)];
  }
  for (const std::int32_t node : self.index.nodes()) {
    check_state(self.index.n_anchors(node) == anchors[static_cast<std::size_t>(node)], kPlace, "node ", node, " has ",
                self.index.n_anchors(node), " anchors, ", anchors[static_cast<std::size_t>(node)],
                " sequences stand on it");
  }
  for (const PageGroup& group : self.groups) check_group(self, group);
}

}  // namespace llm_decoder
