#include "page_group.h"

#include <algorithm>

#include "llm_decoder/errors.h"

namespace llm_decoder {
namespace {

std::int32_t n_pages_of(const KvCacheConfig& config, std::int32_t number) {
  return config.groups[static_cast<std::size_t>(number)].n_pages;
}

}  // namespace

PageGroup::PageGroup(const KvCacheConfig& config, std::int32_t number_, PrefixIndex& index)
    : number(number_),
      page_size(config.page_size),
      window(config.groups[static_cast<std::size_t>(number_)].window),
      storage(config, number_),
      pages(n_pages_of(config, number_)),
      lru(n_pages_of(config, number_)),
      ages(n_pages_of(config, number_)),
      page_pins(static_cast<std::size_t>(n_pages_of(config, number_)), 0),
      n_leaving(static_cast<std::size_t>(n_pages_of(config, number_)), 0),
      index_(index) {
  check_state(index_.add_group(n_pages_of(config, number)) == number, "PageGroup", "groups are made in their order");
}

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

void PageGroup::hold(std::int32_t page) {
  if (lru.contains(page)) lru.remove(page);
  if (pages.n_holders(page) == 0) ages.wake(page);
  pages.hold(page);
}

void PageGroup::let_go(std::int32_t page) {
  if (!pages.let_go(page)) return;
  if (index_.node_of(number, page) == kNone) {
    pages.put_back(page);
    return;
  }
  ages.rest(page);
  if (page_pins[static_cast<std::size_t>(page)] == 0) lru.push_newest(page);
}

void PageGroup::pin(std::int32_t page) {
  if (page_pins[static_cast<std::size_t>(page)]++ > 0) return;
  ++n_pinned;
  if (lru.contains(page)) lru.remove(page);
}

void PageGroup::unpin(std::int32_t page) {
  if (--page_pins[static_cast<std::size_t>(page)] > 0) return;
  --n_pinned;
  if (pages.n_holders(page) == 0) lru.push_newest(page);
}

void PageGroup::forget_cached() {
  while (lru.size() > 0) {
    const std::int32_t page = lru.oldest();
    evict(page);
    ++n_cleared;
    pages.put_back(page);
  }
}

bool PageGroup::must_copy(Sequence& sequence) const {
  return sequence.length % page_size != 0 && pages.n_holders(page_at(sequence, sequence.length)) > 1;
}

void PageGroup::evict(std::int32_t page) {
  lru.remove(page);
  index_.forget_page(number, page);
  ages.evict(page);
}

std::int32_t PageGroup::take_page() {
  std::int32_t page;
  if (pages.n_free() > 0) {
    page = pages.take();
  } else {
    page = lru.oldest();
    check_state(page != kNone, "KvCache.reserve", "needs a free or cached page, there is none");
    evict(page);
    ++n_evictions;
    pages.hold(page);
  }
  ages.take(page);
  return page;
}

std::int64_t PageGroup::n_pages_wanted(const std::vector<Sequence*>& batch, Span<const std::int32_t> counts) {
  std::int64_t n_wanted = 0;
  for (std::size_t i = 0; i < batch.size(); ++i) {
    Sequence& sequence = *batch[i];
    const auto n_present = static_cast<std::int32_t>(table_of(sequence).pages.size());
    n_wanted += std::max(0, pages_for(std::int64_t{sequence.length} + counts[i]) - n_present);
    if (counts[i] == 0 || !must_copy(sequence)) continue;
    // Of the sequences that share a partial page, the last one to write keeps it when no other holder is left.
    const std::int32_t page = page_at(sequence, sequence.length);
    if (++n_leaving[static_cast<std::size_t>(page)] < pages.n_holders(page)) ++n_wanted;
  }
  for (Sequence* sequence : batch) {
    if (must_copy(*sequence)) n_leaving[static_cast<std::size_t>(page_at(*sequence, sequence->length))] = 0;
  }
  return n_wanted;
}

void PageGroup::make_room(Sequence& sequence, std::int32_t count) {
  if (count > 0 && must_copy(sequence)) {
    std::int32_t& shared = page_at(sequence, sequence.length);
    const std::int32_t copy = take_page();
    storage.copy_page(shared, copy);
    ++n_copies;
    let_go(shared);
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
    let_go(table.pages.back());
    table.pages.pop_back();
  }
}

// When the index knows these tokens already, the sequence changes over to the page that it knows, and its own page is
// free again. That is the exchange a prefix hit makes: KV is a function of the tokens before it, so both pages hold the
// same. Nobody else can be looking at the page given up, for a page being filled has one holder.
void PageGroup::index_full_page(Sequence& sequence, std::int32_t node) {
  std::int32_t& own = page_at(sequence, sequence.length - 1);
  const std::int32_t known = index_.page(node, number);
  if (known == kNone) {
    index_.set_page(node, number, own);
  } else {
    hold(known);
    let_go(own);
    own = known;
  }
}

void PageGroup::pass_window(Sequence& sequence) {
  PageTable& table = table_of(sequence);
  const std::int32_t n_dead = n_dead_at(sequence.length);
  for (std::int32_t entry = n_dead - 1; entry >= table.n_dead; --entry) {
    let_go(table.pages[static_cast<std::size_t>(entry)]);
    table.pages[static_cast<std::size_t>(entry)] = kNone;
  }
  table.n_dead = n_dead;
}

}  // namespace llm_decoder
