#include "page_allocator.h"

#include "llm_decoder/errors.h"

namespace llm_decoder {

PageAllocator::PageAllocator(std::int32_t n_pages)
    : n_holders_(static_cast<std::size_t>(n_pages), 0), is_free_(static_cast<std::size_t>(n_pages), 1) {
  free_.reserve(static_cast<std::size_t>(n_pages));
  for (std::int32_t page = n_pages - 1; page >= 0; --page) free_.push_back(page);
}

std::int32_t PageAllocator::take() {
  check_state(!free_.empty(), "PageAllocator.take", "needs a free page, there is none");
  const std::int32_t page = free_.back();
  free_.pop_back();
  is_free_[static_cast<std::size_t>(page)] = 0;
  hold(page);
  return page;
}

void PageAllocator::hold(std::int32_t page) {
  check_state(!is_free(page), "PageAllocator.hold", "page ", page, " is free");
  if (n_holders_[static_cast<std::size_t>(page)]++ == 0) ++n_held_;
}

bool PageAllocator::let_go(std::int32_t page) {
  std::int32_t& n_holders = n_holders_[static_cast<std::size_t>(page)];
  check_state(n_holders > 0, "PageAllocator.let_go", "nobody holds page ", page);
  if (--n_holders > 0) return false;
  --n_held_;
  return true;
}

void PageAllocator::put_back(std::int32_t page) {
  check_state(n_holders(page) == 0 && !is_free(page), "PageAllocator.put_back", "page ", page, " is not idle");
  is_free_[static_cast<std::size_t>(page)] = 1;
  free_.push_back(page);
}

void PageAllocator::check_integrity() const {
  const char* place = "PageAllocator.check_integrity";
  std::int32_t n_held = 0, n_free = 0;
  for (std::int32_t page = 0; page < n_pages(); ++page) {
    check_state(n_holders(page) >= 0, place, "page ", page, " has ", n_holders(page), " holders");
    check_state(n_holders(page) == 0 || !is_free(page), place, "page ", page, " is free and held");
    n_held += n_holders(page) > 0 ? 1 : 0;
    n_free += is_free(page) ? 1 : 0;
  }
  check_state(n_held == n_held_, place, "n_held is ", n_held_, ", counted ", n_held);
  check_state(n_free == this->n_free(), place, "free list has ", this->n_free(), " pages, marked free are ", n_free);
  std::vector<std::uint8_t> is_listed(n_holders_.size(), 0);
  for (const std::int32_t page : free_) {
    check_state(is_free(page), place, "page ", page, " is in the free list but not marked free");
    check_state(is_listed[static_cast<std::size_t>(page)]++ == 0, place, "page ", page, " is twice in the free list");
  }
}

}  // namespace llm_decoder
