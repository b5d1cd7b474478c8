#include "page_books.h"

namespace llm_decoder {

PageBooks::PageBooks(std::int32_t n_pages, PrefixIndex& index)
    : number(index.add_group(n_pages)),
      pages(n_pages),
      lru(n_pages),
      ages(n_pages),
      pins_(static_cast<std::size_t>(n_pages), 0),
      index_(index) {}

void PageBooks::hold(std::int32_t page) {
  if (lru.contains(page)) lru.remove(page);
  if (pages.n_holders(page) == 0) ages.wake(page);
  pages.hold(page);
}

void PageBooks::let_go(std::int32_t page) {
  if (!pages.let_go(page)) return;
  if (node_of(page) == kNone) {
    pages.put_back(page);
    return;
  }
  ages.rest(page);
  if (n_pins(page) == 0) lru.push_newest(page);
}

void PageBooks::pin(std::int32_t page) {
  if (pins_[static_cast<std::size_t>(page)]++ > 0) return;
  ++n_pinned;
  if (lru.contains(page)) lru.remove(page);
}

void PageBooks::unpin(std::int32_t page) {
  if (--pins_[static_cast<std::size_t>(page)] > 0) return;
  --n_pinned;
  if (pages.n_holders(page) == 0) lru.push_newest(page);
}

void PageBooks::drop(std::int32_t page) {
  lru.remove(page);
  index_.forget_page(number, page);
  pages.put_back(page);
}

}  // namespace llm_decoder
