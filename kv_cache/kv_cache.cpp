#include "llm_decoder/kv_cache.h"

#include <algorithm>
#include <limits>
#include <unordered_set>
#include <utility>

#include "host_storage.h"
#include "kv_cache_impl.h"
#include "llm_decoder/errors.h"

namespace llm_decoder {
namespace {

constexpr std::int32_t kNone = PrefixIndex::kNone;
constexpr std::int64_t kMaxTokens = std::numeric_limits<std::int32_t>::max();

void check_range(std::int32_t value, std::int32_t low, std::int32_t high, const char* name) {
  check_arg(low <= value && value <= high, "KvCache", name, " must be in [", low, ", ", high, "], got ", value);
}

// The upper ends are far beyond any model and keep the byte counts of storage within 64 bits.
const KvCacheConfig& checked(const KvCacheConfig& config) {
  constexpr const char* kPlace = "KvCache";
  const auto n_groups = static_cast<std::int32_t>(config.groups.size());
  check_range(n_groups, 1, 1 << 12, "the number of groups");
  for (const KvGroupConfig& group : config.groups) {
    check_range(group.n_pages, 1, 1 << 26, "n_pages");
    check_range(group.window, 0, std::numeric_limits<std::int32_t>::max(), "window");
    check_range(group.n_tier_slots, 0, 1 << 26, "n_tier_slots");
  }
  check_range(config.page_size, 16, 1 << 16, "page_size");
  check_arg(config.page_size % 16 == 0, kPlace, "page_size must be a multiple of 16, got ", config.page_size);
  check_range(static_cast<std::int32_t>(config.layer_groups.size()), 0, 1 << 12, "n_layers");
  for (const std::int32_t group : config.layer_groups) check_range(group, 0, n_groups - 1, "a layer's group");
  if (!config.layer_groups.empty()) {
    check_range(config.n_kv_heads, 1, 1 << 12, "n_kv_heads");
    check_range(config.head_dim, 1, 1 << 14, "head_dim");
  }
  return config;
}

}  // namespace

KvCache::Impl::Impl(const KvCacheConfig& config_, std::unique_ptr<PageStorage> storage_)
    : config(checked(config_)), storage(std::move(storage_)), index(config.page_size, config.hash_mask) {
  check_arg(storage != nullptr, "KvCache", "needs a storage, got none");
  const auto n_groups = static_cast<std::int32_t>(config.groups.size());
  for (std::int32_t number = 0; number < n_groups; ++number) groups.emplace_back(config, number, *storage, index);
  std::vector<std::int32_t> n_layers(config.groups.size(), 0);
  for (const std::int32_t group : config.layer_groups) {
    layer_places.push_back({group, n_layers[static_cast<std::size_t>(group)]++});
  }
}

KvCache::Impl::Match KvCache::Impl::longest_match(Span<const std::int32_t> tokens, std::string_view salt,
                                                  std::int32_t max_pages, bool with_tier) const {
  std::int32_t node = index.find_root(salt);
  Match best{node, 0};
  if (node == kNone) return best;
  std::vector<std::int32_t> n_present(groups.size(), 0);  // pages that follow each other without a gap up to this depth
  for (std::int32_t depth = 1; depth <= max_pages; ++depth) {
    node = index.find_child(node, tokens.data + static_cast<std::size_t>(depth - 1) * config.page_size);
    if (node == kNone) break;
    bool is_whole = true;
    for (const PageGroup& group : groups) {
      std::int32_t& n = n_present[static_cast<std::size_t>(group.number)];
      const bool is_known = with_tier ? group.has(node) : group.pool.page_of(node) != kNone;
      n = is_known ? n + 1 : 0;
      is_whole = is_whole && n >= depth - group.n_dead_at(depth * config.page_size);
    }
    if (is_whole) best = {node, depth};
  }
  return best;
}

void KvCache::Impl::resolve(Span<const std::int64_t> seq_ids, Span<const std::int32_t> counts, const char* place) {
  check_arg(seq_ids.size == counts.size, place, "seq_ids and counts must be equally many, got ", seq_ids.size, " and ",
            counts.size);
  ++batch_number;
  batch.clear();
  for (std::size_t i = 0; i < seq_ids.size; ++i) {
    Sequence& sequence = sequences.find(seq_ids[i], place);
    check_arg(sequence.batch != batch_number, place, "a sequence may be named once, got ", seq_ids[i], " twice");
    check_arg(counts[i] >= 0, place, "counts must be >= 0, got ", counts[i], " for sequence ", seq_ids[i]);
    check_arg(std::int64_t{sequence.length} + counts[i] <= kMaxTokens, place, "a sequence has at most ", kMaxTokens,
              " tokens, got ", sequence.length, " + ", counts[i], " for sequence ", seq_ids[i]);
    sequence.batch = batch_number;
    batch.push_back(&sequence);
  }
}

void KvCache::Impl::append(Sequence& sequence, const std::int32_t* tokens, std::int32_t count) {
  while (count > 0) {
    const auto n_room = config.page_size - static_cast<std::int32_t>(sequence.tail.size());
    const std::int32_t n = std::min(count, n_room);
    sequence.tail.insert(sequence.tail.end(), tokens, tokens + n);
    sequence.length += n;
    tokens += n;
    count -= n;
    if (n < n_room) return;
    index_full_page(sequence);
    sequence.tail.clear();
  }
}

void KvCache::Impl::index_full_page(Sequence& sequence) {
  std::int32_t node = index.find_child(sequence.node, sequence.tail.data());
  if (node == kNone) node = index.add_child(sequence.node, sequence.tail.data());
  index.anchor(node);
  for (PageGroup& group : groups) group.index_full_page(sequence, node);
  index.unanchor(sequence.node);
  sequence.node = node;
}

KvCache::KvCache(const KvCacheConfig& config) : KvCache(config, std::make_unique<HostStorage>(checked(config))) {}

KvCache::KvCache(const KvCacheConfig& config, std::unique_ptr<PageStorage> storage)
    : impl_(std::make_unique<Impl>(config, std::move(storage))) {}

KvCache::~KvCache() = default;

KvCache::Admission KvCache::admit(Span<const std::int32_t> tokens, std::string_view salt, bool with_tier) {
  Impl& self = *impl_;
  check_arg(static_cast<std::int64_t>(tokens.size) <= kMaxTokens, "KvCache.admit", "a sequence has at most ",
            kMaxTokens, " tokens, got ", tokens.size);
  const auto n_tokens = static_cast<std::int32_t>(tokens.size);
  const std::int32_t max_pages = std::max(0, n_tokens - 1) / self.config.page_size;
  const Impl::Match match = self.longest_match(tokens, salt, max_pages, with_tier);

  Admission admission{0, match.n_pages * self.config.page_size};
  Sequence& sequence = self.sequences.create(&admission.seq_id);
  sequence.node = match.node == kNone ? self.index.make_root(salt) : match.node;
  self.index.anchor(sequence.node);
  sequence.length = admission.n_cached;
  sequence.tail.reserve(static_cast<std::size_t>(self.config.page_size));
  sequence.tables.resize(self.groups.size());
  for (PageGroup& group : self.groups) {
    group.table_of(sequence).pages.reserve(static_cast<std::size_t>(group.pages_for(n_tokens)));
    group.start(sequence);
  }

  self.n_query_tokens += n_tokens;
  self.n_hit_tokens += admission.n_cached;
  return admission;
}

bool KvCache::reserve(Span<const std::int64_t> seq_ids, Span<const std::int32_t> counts) {
  Impl& self = *impl_;
  self.resolve(seq_ids, counts, "KvCache.reserve");
  for (PageGroup& group : self.groups) {
    if (group.n_pages_wanted(self.batch, counts) > group.pool.n_available()) return false;
  }
  for (std::size_t i = 0; i < self.batch.size(); ++i) {
    for (PageGroup& group : self.groups) group.make_room(*self.batch[i], counts[i]);
    self.batch[i]->n_reserved = counts[i];
  }
  self.storage->queue_moves();
  return true;
}

void KvCache::commit(Span<const std::int64_t> seq_ids, Span<const std::int32_t> counts,
                     Span<const std::int32_t> tokens) {
  Impl& self = *impl_;
  const char* place = "KvCache.commit";
  self.resolve(seq_ids, counts, place);
  std::int64_t n_tokens = 0;
  for (std::size_t i = 0; i < self.batch.size(); ++i) {
    check_arg(counts[i] <= self.batch[i]->n_reserved, place, "sequence ", seq_ids[i], " has room for ",
              self.batch[i]->n_reserved, " tokens, got ", counts[i], "; reserve first");
    n_tokens += counts[i];
  }
  check_arg(n_tokens == static_cast<std::int64_t>(tokens.size), place, "tokens must be as many as counts say, ",
            n_tokens, ", got ", tokens.size);
  const std::int32_t* next = tokens.data;
  for (std::size_t i = 0; i < self.batch.size(); ++i) {
    Sequence& sequence = *self.batch[i];
    self.append(sequence, next, counts[i]);
    for (PageGroup& group : self.groups) {
      group.trim(group.table_of(sequence), sequence.length);
      group.pass_window(sequence);
    }
    sequence.n_reserved = 0;
    next += counts[i];
  }
}

std::int64_t KvCache::fork(std::int64_t seq_id) {
  Impl& self = *impl_;
  const Sequence& parent = self.sequences.find(seq_id, "KvCache.fork");
  check_arg(parent.n_reserved == 0, "KvCache.fork", "needs a sequence between steps, got ", seq_id, " with ",
            parent.n_reserved, " tokens reserved; commit first");
  std::int64_t child_id = 0;
  Sequence& child = self.sequences.create(&child_id);
  child = parent;
  child.tail.reserve(static_cast<std::size_t>(self.config.page_size));
  self.index.anchor(child.node);
  for (PageGroup& group : self.groups) group.hold_all(child);
  return child_id;
}

void KvCache::release(std::int64_t seq_id) {
  Impl& self = *impl_;
  Sequence& sequence = self.sequences.find(seq_id, "KvCache.release");
  for (PageGroup& group : self.groups) group.let_go_all(sequence);
  self.index.unanchor(sequence.node);
  self.sequences.erase(seq_id);
}

std::int32_t KvCache::pin(Span<const std::int32_t> tokens, std::string_view salt) {
  Impl& self = *impl_;
  const auto max_pages = static_cast<std::int32_t>(tokens.size / static_cast<std::size_t>(self.config.page_size));
  const Impl::Match match = self.longest_match(tokens, salt, max_pages);
  if (match.n_pages == 0) return 0;
  self.index.pin(match.node);
  for (PageGroup& group : self.groups) group.pin(match.node);
  return match.n_pages * self.config.page_size;
}

std::int32_t KvCache::unpin(Span<const std::int32_t> tokens, std::string_view salt) {
  Impl& self = *impl_;
  const auto page_size = static_cast<std::size_t>(self.config.page_size);
  std::int32_t pinned = kNone;  // the deepest pinned node on the way
  std::int32_t node = self.index.find_root(salt);
  for (std::size_t begin = 0; node != kNone && begin + page_size <= tokens.size; begin += page_size) {
    node = self.index.find_child(node, tokens.data + begin);
    if (node != kNone && self.index.n_pins(node) > 0) pinned = node;
  }
  if (pinned == kNone) return 0;
  const std::int32_t n_tokens = self.index.depth(pinned) * self.config.page_size;
  for (PageGroup& group : self.groups) group.unpin(pinned);
  self.index.unpin(pinned);
  return n_tokens;
}

void KvCache::clear_prefix_index() {
  for (PageGroup& group : impl_->groups) group.forget_cached();
}

std::int32_t KvCache::length(std::int64_t seq_id) const {
  return impl_->sequences.find(seq_id, "KvCache.length").length;
}

const std::vector<std::int32_t>& KvCache::page_table(std::int64_t seq_id, std::int32_t group) const {
  const Sequence& sequence = impl_->sequences.find(seq_id, "KvCache.page_table");
  const auto n_groups = static_cast<std::int32_t>(sequence.tables.size());
  check_arg(0 <= group && group < n_groups, "KvCache.page_table", "group must be in [0, ", n_groups, "), got ", group);
  return sequence.tables[static_cast<std::size_t>(group)].pages;
}

std::int32_t KvCache::n_tier_tokens(std::int64_t seq_id) const {
  const Impl& self = *impl_;
  const Sequence& sequence = self.sequences.find(seq_id, "KvCache.n_tier_tokens");
  std::unordered_set<std::int32_t> nodes;  // a page that several groups miss is one
  for (const PageGroup& group : self.groups) {
    if (!group.table_of(sequence).is_waiting) continue;
    group.for_each_live_node(sequence.node, [&](std::int32_t node) {
      if (group.tier.page_of(node) != kNone) nodes.insert(node);
    });
  }
  return static_cast<std::int32_t>(nodes.size()) * self.config.page_size;
}

PagedKvView KvCache::layer(std::int32_t layer) const {
  const auto n_layers = static_cast<std::int32_t>(impl_->layer_places.size());
  check_arg(0 <= layer && layer < n_layers, "KvCache.layer", "layer must be in [0, ", n_layers, "), got ", layer);
  const Impl::LayerPlace place = impl_->layer_places[static_cast<std::size_t>(layer)];
  const auto* host = dynamic_cast<const HostStorage*>(impl_->storage.get());
  check_state(host != nullptr, "KvCache.layer", "needs pages in host memory, these lie elsewhere; ask their storage");
  return host->layer(place.group, place.index);
}

PageStorage& KvCache::storage() { return *impl_->storage; }

const PageStorage& KvCache::storage() const { return *impl_->storage; }

bool KvCache::has_room(Span<const std::int32_t> n_now, Span<const std::int32_t> n_then, std::int32_t max_step) const {
  const char* place = "KvCache.has_room";
  check_arg(n_now.size == n_then.size, place, "n_now and n_then must be equally many, got ", n_now.size, " and ",
            n_then.size);
  check_arg(max_step > 0, place, "max_step must be > 0, got ", max_step);
  for (const PageGroup& group : impl_->groups) {
    std::int64_t n_wanted = group.tier.pages.n_held();  // to come back for sequences that were admitted
    for (std::size_t i = 0; i < n_now.size; ++i) {
      check_arg(0 <= n_now[i] && n_now[i] <= n_then[i], place, "a sequence grows from n_now >= 0 to n_then, got ",
                n_now[i], " and ", n_then[i]);
      const std::int32_t n_held = group.pages_for(n_now[i]) - group.n_dead_at(n_now[i]);
      n_wanted += std::clamp(group.most_pages_for(n_then[i], max_step) - n_held, 0,
                             group.pages_for(n_then[i]) - group.pages_for(n_now[i]));
    }
    if (n_wanted > group.pool.n_available()) return false;
  }
  return true;
}

std::int64_t KvCache::max_tokens(std::int32_t max_step) const {
  check_arg(max_step > 0, "KvCache.max_tokens", "max_step must be > 0, got ", max_step);
  std::int64_t n_tokens = kMaxTokens;
  for (const PageGroup& group : impl_->groups) {
    const std::int32_t n_pages = group.pool.pages.n_pages();
    if (n_pages >= group.most_pages_for(kMaxTokens, max_step)) continue;
    n_tokens = std::min(n_tokens, std::int64_t{n_pages} * config().page_size);
  }
  return n_tokens;
}

const KvCacheConfig& KvCache::config() const { return impl_->config; }

KvCacheStats KvCache::stats() const {
  const Impl& self = *impl_;
  KvCacheStats stats{};
  for (const PageGroup& group : self.groups) {
    KvGroupStats part{};
    part.n_pages = group.pool.pages.n_pages();
    part.n_free = group.pool.pages.n_free();
    part.n_held = group.pool.pages.n_held();
    part.n_cached = part.n_pages - part.n_free - part.n_held;
    part.n_pinned = group.pool.n_pinned;
    part.page_bytes = self.storage->page_bytes(group.number);
    stats.n_pages += part.n_pages;
    stats.n_free += part.n_free;
    stats.n_held += part.n_held;
    stats.n_cached += part.n_cached;
    stats.n_pinned += part.n_pinned;
    stats.n_evictable += group.pool.lru.size();
    stats.n_evictions += group.n_evictions;
    stats.n_cleared += group.n_cleared;
    stats.n_copies += group.n_copies;
    part.n_tier_slots = group.tier.pages.n_pages();
    part.n_tier_used = part.n_tier_slots - group.tier.pages.n_free();
    stats.n_tier_slots += part.n_tier_slots;
    stats.n_tier_used += part.n_tier_used;
    stats.n_stored += group.n_stored;
    stats.n_loaded += group.n_loaded;
    stats.pool_bytes += part.n_pages * part.page_bytes;
    stats.groups.push_back(part);
  }
  stats.n_sequences = self.sequences.size();
  stats.n_query_tokens = self.n_query_tokens;
  stats.n_hit_tokens = self.n_hit_tokens;
  return stats;
}

MoveTimes KvCache::load_times() const { return impl_->storage->load_times(); }

std::vector<KvPageState> KvCache::pages() const {
  std::vector<KvPageState> states;
  for (const PageGroup& group : impl_->groups) {
    const PageAges& ages = group.pool.ages;
    for (std::int32_t page = 0; page < group.pool.pages.n_pages(); ++page) {
      if (group.pool.pages.is_free(page)) continue;
      const std::int32_t n_holders = group.pool.pages.n_holders(page);
      states.push_back({group.number, page, n_holders, group.pool.n_pins(page), group.pool.node_of(page) != kNone,
                        ages.now_s - ages.since_s(page), n_holders > 0 ? 0.0 : ages.now_s - ages.idle_since_s(page)});
    }
  }
  return states;
}

void KvCache::set_time(double now_s) {
  for (PageGroup& group : impl_->groups) group.pool.ages.now_s = group.tier.ages.now_s = now_s;
}

KvDurations KvCache::durations() const {
  KvDurations durations;
  for (const PageGroup& group : impl_->groups) {
    group.pool.ages.add_to(&durations);
    group.tier.ages.add_to(&durations);
  }
  return durations;
}

}  // namespace llm_decoder
