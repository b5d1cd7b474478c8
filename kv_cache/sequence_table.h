// A sequence's positions -> pages. Who else holds the pages is the group's to know.
#pragma once

#include <cstdint>
#include <unordered_map>
#include <vector>

namespace llm_decoder {

// A sequence in one group of layers.
struct PageTable {
  std::vector<std::int32_t> pages;  // page ids of [0, length + n_reserved), -1 left of the window
  std::int32_t n_dead = 0;          // leading entries that the window has passed
  bool is_waiting = false;          // further entries are -1: of pages that the tier had when it was admitted
};

struct Sequence {
  std::vector<PageTable> tables;   // [n_groups]
  std::int32_t length = 0;         // tokens committed
  std::int32_t n_reserved = 0;     // tokens there is room for past length
  std::int32_t node = -1;          // prefix index node of the last full page, or the root of the salt
  std::vector<std::int32_t> tail;  // committed tokens since the last full page, fewer than page_size
  std::uint64_t batch = 0;         // the last batch that named this sequence, to find one named twice
};

// The living sequences by id. An id is never given twice.
class SequenceTable {
 public:
  // References stay valid until the sequence is erased.
  Sequence& create(std::int64_t* seq_id);
  void erase(std::int64_t seq_id);

  // Throws std::invalid_argument when no such sequence lives.
  Sequence& find(std::int64_t seq_id, const char* place);
  const Sequence& find(std::int64_t seq_id, const char* place) const;

  std::int64_t size() const { return static_cast<std::int64_t>(sequences_.size()); }
  const std::unordered_map<std::int64_t, Sequence>& all() const { return sequences_; }

 private:
  std::unordered_map<std::int64_t, Sequence> sequences_;
  std::int64_t next_id_ = 0;
};

}  // namespace llm_decoder
