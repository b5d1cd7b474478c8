// The proof that a cache is in one piece: each part by itself, then what the parts say of each other.
#include "kv_cache_impl.h"
#include "llm_decoder/errors.h"

namespace llm_decoder {
namespace {

using Impl = KvCache::Impl;

constexpr const char* kPlace = "KvCache.check_integrity";
constexpr std::int32_t kNone = PrefixIndex::kNone;

using Counts = std::vector<std::int32_t>;

// How many tables hold each page, and each slot of the tier.
struct Holds {
  Counts pages, slots;
};

void check_entry(const PageGroup& group, std::int64_t seq_id, const Sequence& sequence, std::size_t entry,
                 Holds* holds) {
  const PageTable& table = group.table_of(sequence);
  const std::int32_t page = table.pages[entry];
  if (entry < static_cast<std::size_t>(table.n_dead)) {
    check_state(page == kNone, kPlace, "sequence ", seq_id, " has page ", page, " left of its window");
    return;
  }
  if (page == kNone && table.is_waiting) return;  // check_chain looks for it
  check_state(0 <= page && page < group.pool.pages.n_pages(), kPlace, "sequence ", seq_id, " names page ", page);
  ++holds->pages[static_cast<std::size_t>(page)];
  const bool is_full = entry < static_cast<std::size_t>(sequence.length / group.page_size);
  check_state(is_full == (group.pool.node_of(page) != kNone), kPlace, "page ", page, " of sequence ", seq_id,
              is_full ? " is full and not in the index" : " is not full and in the index");
  check_state(is_full || sequence.n_reserved == 0 || group.pool.pages.n_holders(page) == 1, kPlace, "sequence ", seq_id,
              " may write to page ", page, ", which others hold");
}

// Where the table waits for the page of a node, the sequence has a hold on wherever its content is.
void check_waiting(const PageGroup& group, std::int64_t seq_id, std::int32_t node, Holds* holds) {
  check_state(group.has(node), kPlace, "sequence ", seq_id, " waits for a page that is nowhere");
  const std::int32_t page = group.pool.page_of(node);
  ++(page != kNone ? holds->pages[static_cast<std::size_t>(page)]
                   : holds->slots[static_cast<std::size_t>(group.tier.page_of(node))]);
}

// The table's full pages are those of the nodes from the sequence's node up to the root.
void check_chain(const Impl& self, const PageGroup& group, std::int64_t seq_id, const Sequence& sequence,
                 Holds* holds) {
  const PageTable& table = group.table_of(sequence);
  bool is_waiting = false;
  std::int32_t node = sequence.node;
  for (std::int32_t entry = sequence.length / group.page_size - 1; entry >= 0; --entry) {
    check_state(node != kNone && self.index.depth(node) == entry + 1, kPlace, "sequence ", seq_id,
                " does not stand on its last full page");
    const std::int32_t page = table.pages[static_cast<std::size_t>(entry)];
    if (entry >= table.n_dead && page == kNone) {
      is_waiting = true;
      check_waiting(group, seq_id, node, holds);
    } else if (entry >= table.n_dead) {
      check_state(group.pool.page_of(node) == page, kPlace, "sequence ", seq_id,
                  " and the index differ on its full page ", entry);
    }
    node = self.index.parent(node);
  }
  check_state(node != kNone && self.index.depth(node) == 0, kPlace, "sequence ", seq_id, " does not start at a root");
  check_state(is_waiting == table.is_waiting, kPlace, "sequence ", seq_id,
              is_waiting ? " does not know that it waits for a page" : " waits for no page");
  check_state(!is_waiting || (sequence.n_reserved == 0 && sequence.tail.empty()), kPlace, "sequence ", seq_id,
              " goes on while it waits for a page");
}

void check_table(const Impl& self, const PageGroup& group, std::int64_t seq_id, const Sequence& sequence,
                 Holds* holds) {
  const PageTable& table = group.table_of(sequence);
  const std::int32_t n_pages = group.pages_for(std::int64_t{sequence.length} + sequence.n_reserved);
  check_state(static_cast<std::int32_t>(table.pages.size()) == n_pages, kPlace, "sequence ", seq_id, " needs ", n_pages,
              " table entries, has ", table.pages.size());
  const std::int32_t n_dead = group.n_dead_at(sequence.length);
  check_state(table.n_dead == n_dead, kPlace, "sequence ", seq_id, " has ", table.n_dead,
              " pages left of its window, not ", n_dead);
  for (std::size_t entry = 0; entry < table.pages.size(); ++entry) check_entry(group, seq_id, sequence, entry, holds);
  check_chain(self, group, seq_id, sequence, holds);
}

void check_sequence(const Impl& self, std::int64_t seq_id, const Sequence& sequence) {
  check_state(sequence.length >= 0 && sequence.n_reserved >= 0, kPlace, "sequence ", seq_id, " has a negative count");
  check_state(sequence.tables.size() == self.groups.size(), kPlace, "sequence ", seq_id, " has ",
              sequence.tables.size(), " tables");
  check_state(static_cast<std::int32_t>(sequence.tail.size()) == sequence.length % self.config.page_size, kPlace,
              "sequence ", seq_id, " remembers ", sequence.tail.size(), " tokens of its partial page");
}

// `name`: what its pages are called.
void check_books(const PageBooks& books, const char* name, const Counts& holds) {
  books.pages.check_integrity();
  books.lru.check_integrity();
  for (std::int32_t page = 0; page < books.pages.n_pages(); ++page) {
    const std::int32_t n_holders = books.pages.n_holders(page);
    const bool is_free = books.pages.is_free(page);
    const bool is_held = n_holders > 0;
    const bool is_cached = !is_held && books.node_of(page) != kNone;
    check_state(is_free + is_held + is_cached == 1, kPlace, name, " ", page, " must be free, held or cached, is in ",
                is_free + is_held + is_cached, " of these");
    check_state(n_holders == holds[static_cast<std::size_t>(page)], kPlace, name, " ", page, " has ", n_holders,
                " holders, is needed by ", holds[static_cast<std::size_t>(page)], " tables");
    check_state(books.lru.contains(page) == (is_cached && books.n_pins(page) == 0), kPlace, name, " ", page,
                " must be in the LRU list when it is cached and not pinned, and only then");
  }
}

// What is known is in one place, and what the tier has is known.
void check_places(const Impl& self, const PageGroup& group) {
  for (const std::int32_t node : self.index.nodes()) {
    check_state(group.pool.page_of(node) == kNone || group.tier.page_of(node) == kNone, kPlace, "node ", node,
                " has page ", group.pool.page_of(node), " and slot ", group.tier.page_of(node));
  }
  for (std::int32_t slot = 0; slot < group.tier.pages.n_pages(); ++slot) {
    check_state(group.tier.pages.is_free(slot) != (group.tier.node_of(slot) != kNone), kPlace, "slot ", slot,
                " must be free or of a node");
  }
}

std::vector<std::int64_t> ages_of(const LruList& lru, std::int32_t n_pages) {
  std::vector<std::int64_t> ages(static_cast<std::size_t>(n_pages), -1);
  std::int64_t position = 0;
  for (std::int32_t page = lru.oldest(); page != kNone; page = lru.newer(page)) {
    ages[static_cast<std::size_t>(page)] = position++;
  }
  return ages;
}

// Without a window a page is of use only with all its ancestors: they are there, in the pool when it is, held when it
// is, and leave after it.
void check_ancestors_outlive(const Impl& self, const PageGroup& group) {
  for (const PageBooks* books : {&group.pool, &group.tier}) {
    const std::vector<std::int64_t> ages = ages_of(books->lru, books->pages.n_pages());
    for (std::int32_t page = 0; page < books->pages.n_pages(); ++page) {
      const std::int32_t node = books->node_of(page);
      if (node == kNone || self.index.depth(node) == 1) continue;
      const std::int32_t above = self.index.parent(node);
      check_state(group.has(above), kPlace, "the page of node ", node, " has lost its parent");
      const bool is_beside = books->page_of(above) != kNone;
      check_state(is_beside || books == &group.tier, kPlace, "the parent of node ", node,
                  " went to the tier before it");
      const PageBooks& books_above = is_beside ? *books : group.pool;
      const std::int32_t parent = books_above.page_of(above);
      check_state(books_above.pages.n_holders(parent) >= books->pages.n_holders(page), kPlace, "the page of node ",
                  node, " is held by sequences that do not hold its parent");
      if (!is_beside || !books->lru.contains(parent)) continue;
      check_state(
          books->lru.contains(page) && ages[static_cast<std::size_t>(page)] < ages[static_cast<std::size_t>(parent)],
          kPlace, "page ", parent, " would leave before its child ", page);
    }
  }
}

void check_pins(const Impl& self, const PageGroup& group) {
  for (const PageBooks* books : {&group.pool, &group.tier}) {
    Counts pins(static_cast<std::size_t>(books->pages.n_pages()), 0);
    for (const std::int32_t node : self.index.nodes()) {
      if (self.index.n_pins(node) == 0) continue;
      group.for_each_live_node(node, [&](std::int32_t needed) {
        check_state(group.has(needed), kPlace, "a pinned page of node ", node, " is gone");
        const std::int32_t page = books->page_of(needed);
        if (page != kNone) pins[static_cast<std::size_t>(page)] += self.index.n_pins(node);
      });
    }
    std::int64_t n_pinned = 0;
    for (std::int32_t page = 0; page < books->pages.n_pages(); ++page) {
      const std::int32_t n_pins = pins[static_cast<std::size_t>(page)];
      check_state(n_pins == books->n_pins(page), kPlace, "page ", page, " counts ", books->n_pins(page), " pins, has ",
                  n_pins);
      n_pinned += n_pins > 0 ? 1 : 0;
    }
    check_state(n_pinned == books->n_pinned, kPlace, "n_pinned is ", books->n_pinned, ", counted ", n_pinned);
  }
}

void check_group(const Impl& self, const PageGroup& group) {
  Holds holds{Counts(static_cast<std::size_t>(group.pool.pages.n_pages()), 0),
              Counts(static_cast<std::size_t>(group.tier.pages.n_pages()), 0)};
  for (const auto& [seq_id, sequence] : self.sequences.all()) check_table(self, group, seq_id, sequence, &holds);
  check_books(group.pool, "page", holds.pages);
  check_books(group.tier, "slot", holds.slots);
  check_places(self, group);
  check_pins(self, group);
  if (group.window == 0) check_ancestors_outlive(self, group);
  for (const std::int32_t n : group.n_leaving) check_state(n == 0, kPlace, "scratch of reserve was not cleared");
  for (const bool is_in : group.is_coming_in) check_state(!is_in, kPlace, "scratch of reserve was not cleared");
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
