#include "page_group.h"

#include <algorithm>

#include "llm_decoder/errors.h"

namespace llm_decoder {
namespace {

const KvGroupConfig& group_of(const KvCacheConfig& config, std::int32_t number) {
  return config.groups[static_cast<std::size_t>(number)];
}

}  // namespace

PageGroup::PageGroup(const KvCacheConfig& config, std::int32_t number_, PageStorage& storage, PrefixIndex& index)
    : number(number_),
      page_size(config.page_size),
      window(group_of(config, number_).window),
      pool(group_of(config, number_).n_pages, index),
      tier(group_of(config, number_).n_tier_slots, index),
      n_leaving(static_cast<std::size_t>(pool.pages.n_pages()), 0),
      is_coming_in(static_cast<std::size_t>(tier.pages.n_pages()), false),
      storage_(storage),
      index_(index) {}

std::int32_t PageGroup::pages_for(std::int64_t n_tokens) const {
  return static_cast<std::int32_t>(ceil_div(n_tokens, page_size));
}

std::int32_t PageGroup::n_dead_at(std::int32_t length) const {
  // The query at position `length` sees (length - window, length].
  if (window == 0 || length < window) return 0;
  return (length - window + 1) / page_size;
}

std::int32_t PageGroup::most_pages_for(std::int64_t n_tokens, std::int32_t max_step) const {
  if (window == 0) return pages_for(n_tokens);
  // Before a step window - 1 tokens are needed, max_step more come; neither end need meet the edge of a page.
  return std::min(pages_for(n_tokens), pages_for(std::int64_t{window} + max_step) + 1);
}

void PageGroup::start(Sequence& sequence) {
  PageTable& table = table_of(sequence);
  table.n_dead = n_dead_at(sequence.length);
  table.pages.resize(static_cast<std::size_t>(index_.depth(sequence.node)), kNone);
  std::size_t entry = table.pages.size();
  for_each_home(sequence.node, [&](PageBooks& home, std::int32_t page) {
    home.hold(page);
    const bool is_here = &home == &pool;
    table.pages[--entry] = is_here ? page : kNone;
    table.is_waiting = table.is_waiting || !is_here;
  });
}

void PageGroup::hold_all(Sequence& sequence) {
  const PageTable& table = table_of(sequence);
  if (table.is_waiting) {
    for_each_home(sequence.node, [](PageBooks& home, std::int32_t page) { home.hold(page); });
    return;
  }
  for (std::size_t entry = static_cast<std::size_t>(table.n_dead); entry < table.pages.size(); ++entry) {
    pool.hold(table.pages[entry]);
  }
}

// From the last page to the first: so children are older than their parents in the LRU order, and leave before them.
void PageGroup::let_go_all(Sequence& sequence) {
  PageTable& table = table_of(sequence);
  if (table.is_waiting) {
    for_each_home(sequence.node, [](PageBooks& home, std::int32_t page) { home.let_go(page); });
    return;
  }
  while (table.pages.size() > static_cast<std::size_t>(table.n_dead)) {
    pool.let_go(table.pages.back());
    table.pages.pop_back();
  }
}

void PageGroup::pin(std::int32_t node) {
  for_each_home(node, [](PageBooks& home, std::int32_t page) { home.pin(page); });
}

void PageGroup::unpin(std::int32_t node) {
  for_each_home(node, [](PageBooks& home, std::int32_t page) { home.unpin(page); });
}

void PageGroup::forget_cached() {
  for (; pool.lru.size() > 0; ++n_cleared) {
    pool.ages.evict(pool.lru.oldest());
    pool.drop(pool.lru.oldest());
  }
  for (; tier.lru.size() > 0; ++n_cleared) tier.drop(tier.lru.oldest());
}

bool PageGroup::must_copy(Sequence& sequence) const {
  return sequence.length % page_size != 0 && pool.pages.n_holders(page_at(sequence, sequence.length)) > 1;
}

std::int32_t PageGroup::take_page() {
  if (pool.pages.n_free() == 0) {
    const std::int32_t oldest = pool.lru.oldest();
    check_state(oldest != kNone, "KvCache.reserve", "needs a free or cached page, there is none");
    keep_in_tier(oldest);
    pool.ages.evict(oldest);
    pool.drop(oldest);
    ++n_evictions;
  }
  const std::int32_t page = pool.pages.take();
  pool.ages.take(page);
  return page;
}

// Children leave the pool before their parents, so they are the older ones in the tier too, and leave it first.
void PageGroup::keep_in_tier(std::int32_t page) {
  if (tier.n_available() == 0) return;
  if (tier.pages.n_free() == 0) tier.drop(tier.lru.oldest());
  const std::int32_t slot = tier.pages.take();
  storage_.store(number, page, slot);
  ++n_stored;
  index_.set_page(pool.node_of(page), tier.number, slot);
  tier.let_go(slot);
  tier.ages.take_over(slot, pool.ages, page);
}

void PageGroup::fetch(Sequence& sequence) {
  PageTable& table = table_of(sequence);
  if (!table.is_waiting) return;
  auto entry = static_cast<std::size_t>(index_.depth(sequence.node));
  for_each_live_node(sequence.node, [&](std::int32_t node) {
    const std::int32_t page = pool.page_of(node);
    table.pages[--entry] = page != kNone ? page : load(node);
  });
  table.is_waiting = false;
}

std::int32_t PageGroup::load(std::int32_t node) {
  const std::int32_t page = take_page();
  storage_.load(number, tier.page_of(node), page);
  ++n_loaded;
  give_page(node, page);
  pool.let_go(page);  // the hold of take_page: the sequence that asked brought its own along from the slot
  return page;
}

void PageGroup::give_page(std::int32_t node, std::int32_t page) {
  index_.set_page(node, pool.number, page);
  const std::int32_t slot = tier.page_of(node);
  if (slot == kNone) return;
  for (; tier.pages.n_holders(slot) > 0; tier.let_go(slot)) pool.hold(page);
  for (; tier.n_pins(slot) > 0; tier.unpin(slot)) pool.pin(page);
  tier.drop(slot);
}

std::int64_t PageGroup::n_pages_wanted(const std::vector<Sequence*>& batch, Span<const std::int32_t> counts) {
  std::int64_t n_wanted = 0;
  for (std::size_t i = 0; i < batch.size(); ++i) {
    Sequence& sequence = *batch[i];
    if (table_of(sequence).is_waiting) {
      for_each_live_node(sequence.node, [&](std::int32_t node) {
        const std::int32_t slot = tier.page_of(node);
        if (slot == kNone || is_coming_in[static_cast<std::size_t>(slot)]) return;
        is_coming_in[static_cast<std::size_t>(slot)] = true;
        ++n_wanted;
      });
    }
    const auto n_present = static_cast<std::int32_t>(table_of(sequence).pages.size());
    n_wanted += std::max(0, pages_for(std::int64_t{sequence.length} + counts[i]) - n_present);
    if (counts[i] == 0 || !must_copy(sequence)) continue;
    // Of the sequences that share a partial page, the last one to write keeps it when no other holder is left.
    const std::int32_t page = page_at(sequence, sequence.length);
    if (++n_leaving[static_cast<std::size_t>(page)] < pool.pages.n_holders(page)) ++n_wanted;
  }
  for (Sequence* sequence : batch) {
    if (must_copy(*sequence)) n_leaving[static_cast<std::size_t>(page_at(*sequence, sequence->length))] = 0;
    if (!table_of(*sequence).is_waiting) continue;
    for_each_live_node(sequence->node, [&](std::int32_t node) {
      if (tier.page_of(node) != kNone) is_coming_in[static_cast<std::size_t>(tier.page_of(node))] = false;
    });
  }
  return n_wanted;
}

void PageGroup::make_room(Sequence& sequence, std::int32_t count) {
  fetch(sequence);
  if (count > 0 && must_copy(sequence)) {
    std::int32_t& shared = page_at(sequence, sequence.length);
    const std::int32_t copy = take_page();
    storage_.copy_page(number, shared, copy);
    ++n_copies;
    pool.let_go(shared);
    shared = copy;
  }
  PageTable& table = table_of(sequence);
  const std::int64_t n_tokens = std::int64_t{sequence.length} + count;
  trim(table, n_tokens);
  const auto n_pages = static_cast<std::size_t>(pages_for(n_tokens));
  while (table.pages.size() < n_pages) {
    table.pages.push_back(kNone);  // before the page is taken, so that no page is lost when the vector cannot grow
    table.pages.back() = take_page();
  }
}

void PageGroup::trim(PageTable& table, std::int64_t n_tokens) {
  const auto n_pages = static_cast<std::size_t>(pages_for(n_tokens));
  while (table.pages.size() > n_pages) {
    pool.let_go(table.pages.back());
    table.pages.pop_back();
  }
}

// When the index knows these tokens already, the sequence changes over to the page that it knows, and its own page is
// free again. That is the exchange a prefix hit makes: KV is a function of the tokens before it, so both pages hold the
// same. Nobody else can be looking at the page given up, for a page being filled has one holder.
void PageGroup::index_full_page(Sequence& sequence, std::int32_t node) {
  std::int32_t& own = page_at(sequence, sequence.length - 1);
  const std::int32_t known = pool.page_of(node);
  if (known == kNone) {
    give_page(node, own);
  } else {
    pool.hold(known);
    pool.let_go(own);
    own = known;
  }
}

void PageGroup::pass_window(Sequence& sequence) {
  PageTable& table = table_of(sequence);
  const std::int32_t n_dead = n_dead_at(sequence.length);
  for (std::int32_t entry = n_dead - 1; entry >= table.n_dead; --entry) {
    pool.let_go(table.pages[static_cast<std::size_t>(entry)]);
    table.pages[static_cast<std::size_t>(entry)] = kNone;
  }
  table.n_dead = n_dead;
}

}  // namespace llm_decoder
