#include "lru.h"

#include "llm_decoder/errors.h"

namespace llm_decoder {

LruList::LruList(std::int32_t n_pages)
    : next_(static_cast<std::size_t>(n_pages) + 1, kNone), previous_(static_cast<std::size_t>(n_pages) + 1, kNone) {
  next_[end()] = previous_[end()] = n_pages;
}

void LruList::push_newest(std::int32_t page) {
  check_state(!contains(page), "LruList.push_newest", "page ", page, " is already in the list");
  const auto slot = static_cast<std::size_t>(page);
  const std::int32_t newest = previous_[end()];
  previous_[slot] = newest;
  next_[slot] = static_cast<std::int32_t>(end());
  next_[static_cast<std::size_t>(newest)] = page;
  previous_[end()] = page;
  ++size_;
}

void LruList::remove(std::int32_t page) {
  check_state(contains(page), "LruList.remove", "page ", page, " is not in the list");
  const auto slot = static_cast<std::size_t>(page);
  next_[static_cast<std::size_t>(previous_[slot])] = next_[slot];
  previous_[static_cast<std::size_t>(next_[slot])] = previous_[slot];
  next_[slot] = previous_[slot] = kNone;
  --size_;
}

void LruList::check_integrity() const {
  const char* place = "LruList.check_integrity";
  std::int32_t n_walked = 0;
  std::int32_t before = static_cast<std::int32_t>(end());
  for (std::int32_t page = oldest(); page != kNone; page = newer(page)) {
    check_state(++n_walked <= size_, place, "walked past its ", size_, " pages: a cycle");
    check_state(previous_[static_cast<std::size_t>(page)] == before, place, "page ", page, " does not point back");
    before = page;
  }
  check_state(n_walked == size_, place, "size is ", size_, ", walked ", n_walked);
  std::int32_t n_marked = 0;
  for (std::size_t slot = 0; slot < end(); ++slot) n_marked += contains(static_cast<std::int32_t>(slot)) ? 1 : 0;
  check_state(n_marked == size_, place, "size is ", size_, ", linked are ", n_marked);
}

}  // namespace llm_decoder
