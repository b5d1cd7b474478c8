// The order in which evictable pages leave. A doubly linked list threaded through two arrays, so that no verb
// allocates.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace llm_decoder {

class LruList {
 public:
  static constexpr std::int32_t kNone = -1;

  explicit LruList(std::int32_t n_pages);

  void push_newest(std::int32_t page);
  void remove(std::int32_t page);
  std::int32_t oldest() const { return page_at(next_[end()]); }
  std::int32_t newer(std::int32_t page) const { return page_at(next_[static_cast<std::size_t>(page)]); }
  bool contains(std::int32_t page) const { return next_[static_cast<std::size_t>(page)] != kNone; }
  std::int32_t size() const { return size_; }

  void check_integrity() const;

 private:
  // The last slot of both arrays is the list's own: its next is the oldest page, its previous the newest.
  std::size_t end() const { return next_.size() - 1; }
  std::int32_t page_at(std::int32_t slot) const { return static_cast<std::size_t>(slot) == end() ? kNone : slot; }

  std::vector<std::int32_t> next_, previous_;  // [n_pages + 1], kNone: not in the list
  std::int32_t size_ = 0;
};

}  // namespace llm_decoder
