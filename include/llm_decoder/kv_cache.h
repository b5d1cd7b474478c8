// The paged KV cache: who holds which page, which pages can be found again, which leave first. Policy (who is
// preempted, who waits) is above; the verbs here are the mechanism. Not thread-safe: one thread owns a cache.
//
// A page is always exactly one of: free (content meaningless), held (in the table of at least one sequence), or cached
// (held by nobody, found through the prefix index, evictable in LRU order, leaves before their parents unless pinned).
// Layers with the same window form a group. A group has pages of its own: a page id names page_size positions in all
// layers of its group, and a sequence has one page table a group. The prefix index is one for all groups. In a group
// with a window, a page that a sequence has left behind may leave before its children: a prefix is found as long as the
// pages that every group still needs are there.
//
// Beside its pages a group may have slots of a second tier, in slower memory of which there is more. A cached page that
// gives way to another is stored in a slot, as long as there is one that is free or cached itself, and its tokens are
// found there as they are in pages. A sequence that was admitted on slots keeps them; the next reserve that names it
// takes pages for them, into which they are loaded, and the slots are free again. So a sequence that must make room is
// released and admitted again later, and computes only its last, partial page once more.
//
// After Kwon et al. 2023, "Efficient Memory Management for Large Language Model Serving with PagedAttention"; the
// prefix tree after Zheng et al. 2024, "SGLang", section 3.
//
// Errors are std::invalid_argument: an unknown or released sequence, a sequence named twice in one call, negative
// counts, more tokens than were reserved, a sequence past 2^31 - 1 tokens, a group or layer that is not there. A call
// that throws has changed nothing.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "llm_decoder/page_storage.h"
#include "llm_decoder/paged_kv.h"
#include "llm_decoder/types.h"

namespace llm_decoder {

struct KvGroupConfig {
  std::int32_t n_pages = 0;
  std::int32_t window = 0;        // in tokens, the query itself included; 0: its layers see everything
  std::int32_t n_tier_slots = 0;  // pages that the second tier has room for; 0: there is none
};

struct KvCacheConfig {
  std::vector<KvGroupConfig> groups;
  std::vector<std::int32_t> layer_groups;  // [n_layers], the group of each layer; empty: bookkeeping only, no storage
  std::int32_t page_size = 0;              // in tokens, a multiple of 16
  std::int32_t n_kv_heads = 0;
  std::int32_t head_dim = 0;
  Dtype dtype = Dtype::f32;
  std::uint64_t hash_mask = ~std::uint64_t{0};  // tests force collisions with few bits
};

struct KvGroupStats {
  std::int64_t n_pages, n_free, n_held, n_cached, n_pinned;
  std::int64_t n_tier_slots, n_tier_used;  // slots of the second tier; those that hold a page
  std::int64_t page_bytes;                 // of one page over all layers of the group: K, V and scales
};

// How many durations, in seconds, are at most each bound and above the one before it; the last count is of those above
// all bounds.
struct DurationCounts {
  static constexpr std::array<double, 21> kBounds = {0.001, 0.002, 0.005, 0.01,  0.02,  0.05,   0.1,
                                                     0.2,   0.5,   1.0,   2.0,   5.0,   10.0,   20.0,
                                                     30.0,  60.0,  120.0, 300.0, 600.0, 1200.0, 1800.0};

  std::array<std::int64_t, kBounds.size() + 1> counts{};
  double sum = 0.0;

  void add(double duration) {
    std::size_t i = 0;
    while (i < kBounds.size() && duration > kBounds[i]) ++i;
    ++counts[i];
    sum += duration;
  }
  void add(const DurationCounts& others) {
    for (std::size_t i = 0; i < counts.size(); ++i) counts[i] += others.counts[i];
    sum += others.sum;
  }
};

// Of pages in the prefix index. lifetimes: from when a page was taken to its eviction, to the tier or for good;
// idle_times: of these, the part since its last holder let it go; reuse_gaps: how long a page had no holder before it
// found one again.
struct KvDurations {
  DurationCounts lifetimes, idle_times, reuse_gaps;
};

// What is known of one page that is not free. n_holders: page tables that have it. taken_s, idle_s: how long ago it was
// taken, and its last holder let it go; idle_s is 0 while it has one.
struct KvPageState {
  std::int32_t group, page, n_holders, n_pins;
  bool is_indexed;  // found again by its tokens
  double taken_s, idle_s;
};

struct KvCacheStats {
  std::vector<KvGroupStats> groups;
  std::int64_t n_pages, n_free, n_held, n_cached, n_pinned;  // of all groups together
  std::int64_t n_evictable;                                  // of n_cached, those that nobody pinned
  std::int64_t n_sequences;
  std::int64_t n_query_tokens, n_hit_tokens;  // prefix look-ups since construction
  std::int64_t n_evictions, n_cleared;        // cached pages that gave way to others; that clear_prefix_index forgot
  std::int64_t n_copies;                      // pages copied on write
  std::int64_t n_tier_slots, n_tier_used;     // of all groups together
  std::int64_t n_stored, n_loaded;            // evicted pages that the tier took; pages that came back from it
  std::int64_t pool_bytes;
};

class KvCache {
 public:
  // With pages in host memory. Throws std::bad_alloc, with a message, when the system refuses the memory. It is taken
  // from the system page by page, as it is first written.
  explicit KvCache(const KvCacheConfig& config);
  // With pages that lie in `storage`, which must have what `config` says.
  KvCache(const KvCacheConfig& config, std::unique_ptr<PageStorage> storage);
  ~KvCache();
  KvCache(const KvCache&) = delete;
  KvCache& operator=(const KvCache&) = delete;

  struct Admission {
    std::int64_t seq_id;
    // Leading tokens whose KV is in pages or in the tier, at most size - 1, a multiple of page_size.
    std::int32_t n_cached;
  };

  // A new sequence that will hold `tokens`; takes hold of the longest chain of cached full pages with the same tokens,
  // parents and salt. Takes no page: what is in the tier stays there until the sequence is reserved for. Without the
  // tier only pages count: what is in slots will be computed again, and the slots are free when it is.
  // length(seq_id) is n_cached afterwards.
  Admission admit(Span<const std::int32_t> tokens, std::string_view salt, bool with_tier = true);

  // Makes room for counts[i] more tokens of every sequence past its length, evicting cached pages, copying a shared
  // partial page where one would be written to and loading what the sequence has in the tier; for all of them or, when
  // pages run short, for none (returns false, nothing changed). A second reserve before the commit replaces the first.
  bool reserve(Span<const std::int64_t> seq_ids, Span<const std::int32_t> counts);

  // The KV of counts[i] tokens (<= what was reserved) has been written: lengths grow, full pages enter the prefix
  // index, unused reservations are given back, pages wholly left of the window are let go. tokens: [sum(counts)],
  // sequences in order. A full page whose tokens are in the index already is exchanged for the page that is there, so
  // page tables may change.
  void commit(Span<const std::int64_t> seq_ids, Span<const std::int32_t> counts, Span<const std::int32_t> tokens);

  std::int64_t fork(std::int64_t seq_id);  // a second sequence on the same pages; none of its tokens may be uncommitted
  void release(std::int64_t seq_id);       // its pages become cached if they are in the index, free otherwise
  // The pages that a sequence going on from the longest known prefix of `tokens` needs stay until unpinned. Counted:
  // pin twice, unpin twice. Returns the tokens (a multiple of page_size) of the prefix that was pinned, or unpinned:
  // unpin takes back one pin of the longest pinned prefix.
  std::int32_t pin(Span<const std::int32_t> tokens, std::string_view salt);
  std::int32_t unpin(Span<const std::int32_t> tokens, std::string_view salt);
  void clear_prefix_index();  // forgets every cached page that nobody holds and nobody pinned, in the tier too

  std::int32_t length(std::int64_t seq_id) const;  // tokens committed
  // Of these, those in pages that the next reserve of the sequence brings back from the tier; 0 after it.
  std::int32_t n_tier_tokens(std::int64_t seq_id) const;
  // Page ids of [0, length + reserved) in a group, -1 left of its window and where the page is in the tier. Valid until
  // the next verb that changes the cache.
  const std::vector<std::int32_t>& page_table(std::int64_t seq_id, std::int32_t group = 0) const;
  PagedKvView layer(std::int32_t layer) const;  // of pages in host memory; std::logic_error where they lie elsewhere
  PageStorage& storage();
  const PageStorage& storage() const;

  // Whether pages are left, free or evictable, for sequences that grow from n_now[i] to n_then[i] tokens, each in steps
  // of at most max_step tokens, when none of them shares a page past n_now[i]. An estimate on the safe side.
  bool has_room(Span<const std::int32_t> n_now, Span<const std::int32_t> n_then, std::int32_t max_step) const;
  // The most tokens that one sequence can have when it has all pages to itself and takes steps of max_step tokens.
  std::int64_t max_tokens(std::int32_t max_step) const;
  const KvCacheConfig& config() const;
  KvCacheStats stats() const;
  MoveTimes load_times() const;  // of pages that came back from the tier, as far as the storage measures

  std::vector<KvPageState> pages() const;  // those that are not free, group by group, by their ids

  // What time it is for the verbs that follow, in seconds of a clock that never goes back; without it no time passes.
  void set_time(double now_s);
  KvDurations durations() const;  // since construction

  // Proves every page is in exactly one state, counts add up, parents exist, no cycle. Throws std::logic_error saying
  // what is broken.
  void check_integrity() const;

  struct Impl;

 private:
  std::unique_ptr<Impl> impl_;
};

}  // namespace llm_decoder
