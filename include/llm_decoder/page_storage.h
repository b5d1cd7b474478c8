// Where pages lie. The cache says which page is whose; what a page holds it moves by these verbs alone and never looks
// at, so that pages lie as well on a device as in host memory.
//
// A page id names the page of every layer of a group. Beside the pages a group may have slots of a second tier, in
// slower memory of which there is more: KvGroupConfig says how many of each. Ids are in range, the cache sees to that.
//
// Moves take effect as if one after the other, in the order of calls, and before anything that the caller launches on
// the same pages later: a slot that was loaded from may be stored to at once. What nobody has written holds anything.
// A storage may put moves off until queue_moves. What one throws comes out of the verb of the cache that asked for it,
// and the cache is not to be used after that.
#pragma once

#include <cstdint>

namespace llm_decoder {

struct MoveTimes {
  std::int64_t n_bytes = 0;
  double seconds = 0.0;
};

class PageStorage {
 public:
  PageStorage() = default;
  virtual ~PageStorage() = default;
  PageStorage(const PageStorage&) = delete;
  PageStorage& operator=(const PageStorage&) = delete;

  virtual std::int64_t page_bytes(std::int32_t group) const = 0;  // of one page, over all layers of the group
  virtual void copy_page(std::int32_t group, std::int32_t from, std::int32_t to) = 0;
  virtual void store(std::int32_t group, std::int32_t page, std::int32_t slot) = 0;  // page -> slot
  virtual void load(std::int32_t group, std::int32_t slot, std::int32_t page) = 0;   // slot -> page
  virtual void queue_moves() {}  // the cache calls it at the end of each verb that moves pages

  // Of loads so far, those that were measured; none in a storage that has no clock.
  virtual MoveTimes load_times() const { return {}; }
};

}  // namespace llm_decoder
