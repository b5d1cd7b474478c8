// Which pages are free, and how many sequences hold each of the others. No policy: who may have a page, and what
// becomes of one that nobody holds any more, is decided above.
#pragma once

#include <cstdint>
#include <vector>

namespace llm_decoder {

// A page is free, held (n_holders > 0) or idle: neither, its content still worth something to the caller.
class PageAllocator {
 public:
  explicit PageAllocator(std::int32_t n_pages);

  std::int32_t take();               // a free page with one holder; n_free() must be > 0
  void hold(std::int32_t page);      // one holder more, of a held or an idle page
  bool let_go(std::int32_t page);    // one holder fewer; true when that was the last: the page is idle now
  void put_back(std::int32_t page);  // idle -> free

  std::int32_t n_pages() const { return static_cast<std::int32_t>(n_holders_.size()); }
  std::int32_t n_free() const { return static_cast<std::int32_t>(free_.size()); }
  std::int32_t n_held() const { return n_held_; }
  std::int32_t n_holders(std::int32_t page) const { return n_holders_[static_cast<std::size_t>(page)]; }
  bool is_free(std::int32_t page) const { return is_free_[static_cast<std::size_t>(page)] != 0; }

  void check_integrity() const;

 private:
  std::vector<std::int32_t>
      free_;  // a stack: the page freed last is the one most likely still in the processor's cache
  std::vector<std::int32_t> n_holders_;
  std::vector<std::uint8_t> is_free_;
  std::int32_t n_held_ = 0;
};

}  // namespace llm_decoder
