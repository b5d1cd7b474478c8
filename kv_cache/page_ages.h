// How old pages become: from a page's first token to its eviction, and how long it lay unused before that or before
// somebody needed it again. The time is told by who owns the cache; nothing here looks at a clock.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "llm_decoder/kv_cache.h"

namespace llm_decoder {

class PageAges {
 public:
  explicit PageAges(std::int32_t n_pages)
      : since_s_(static_cast<std::size_t>(n_pages), 0.0), idle_since_s_(static_cast<std::size_t>(n_pages), 0.0) {}

  double now_s = 0.0;

  void take(std::int32_t page) { since_s_[static_cast<std::size_t>(page)] = now_s; }
  void rest(std::int32_t page) { idle_since_s_[static_cast<std::size_t>(page)] = now_s; }  // nobody holds it any more
  void wake(std::int32_t page) { reuse_gaps_.add(now_s - idle_since_s_[static_cast<std::size_t>(page)]); }
  void evict(std::int32_t page) {
    lifetimes_.add(now_s - since_s_[static_cast<std::size_t>(page)]);
    idle_times_.add(now_s - idle_since_s_[static_cast<std::size_t>(page)]);
  }

  // The page has what page `from` of `others` had.
  void take_over(std::int32_t page, const PageAges& others, std::int32_t from) {
    since_s_[static_cast<std::size_t>(page)] = others.since_s(from);
    idle_since_s_[static_cast<std::size_t>(page)] = others.idle_since_s(from);
  }

  double since_s(std::int32_t page) const { return since_s_[static_cast<std::size_t>(page)]; }
  double idle_since_s(std::int32_t page) const { return idle_since_s_[static_cast<std::size_t>(page)]; }

  void add_to(KvDurations* durations) const {
    durations->lifetimes.add(lifetimes_);
    durations->idle_times.add(idle_times_);
    durations->reuse_gaps.add(reuse_gaps_);
  }

 private:
  std::vector<double> since_s_, idle_since_s_;  // [n_pages]
  DurationCounts lifetimes_, idle_times_, reuse_gaps_;
};

}  // namespace llm_decoder
