#include "llm_decoder/kv_cache.h"

#include <algorithm>
#include <limits>

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
  check_range(config.n_pages, 1, 1 << 26, "n_pages");
  check_range(config.page_size, 16, 1 << 16, "page_size");
  check_arg(config.page_size % 16 == 0, "KvCache", "page_size must be a multiple of 16, got ", config.page_size);
  check_range(config.n_layers, 0, 1 << 12, "n_layers");
  check_range(config.window, 0, std::numeric_limits<std::int32_t>::max(), "window");
  if (config.n_layers > 0) {
    check_range(config.n_kv_heads, 1, 1 << 12, "n_kv_heads");
    check_range(config.head_dim, 1, 1 << 14, "head_dim");
  }
  return config;
}

}  // namespace

KvCache::Impl::Impl(const KvCacheConfig& config_)
    : config(checked(config_)),
      storage(config),
      pages(config.n_pages),
      lru(config.n_pages),
      index(config.n_pages, config.page_size, config.hash_mask),
      page_pins(static_cast<std::size_t>(config.n_pages), 0),
      n_leaving(static_cast<std::size_t>(config.n_pages), 0) {}

std::int32_t KvCache::Impl::pages_for(std::int64_t n_tokens) const {
  return static_cast<std::int32_t>(ceil_div(n_tokens, config.page_size));
}

std::int32_t KvCache::Impl::n_dead_at(std::int32_t length) const {
  // The query at position `length` sees (length - window, length].
  if (config.window == 0 || length < config.window) return 0;
  return (length - config.window + 1) / config.page_size;
}

bool KvCache::Impl::must_copy(const PageTable& table) const {
  return table.length % config.page_size != 0 && pages.n_holders(page_at(table, table.length)) > 1;
}

KvCache::Impl::Match KvCache::Impl::longest_match(Span<const std::int32_t> tokens, std::string_view salt,
                                                  std::int32_t max_pages) const {
  std::int32_t node = index.find_root(salt);
  Match best{node, 0};
  if (node == kNone) return best;
  std::int32_t n_present = 0;  // pages that follow each other without a gap up to this depth
  for (std::int32_t depth = 1; depth <= max_pages; ++depth) {
    node = index.find_child(node, tokens.data + static_cast<std::size_t>(depth - 1) * config.page_size);
    if (node == kNone) break;
    n_present = index.page(node) == kNone ? 0 : n_present + 1;
    if (n_present >= depth - n_dead_at(depth * config.page_size)) best = {node, depth};
  }
  return best;
}

void KvCache::Impl::hold(std::int32_t page) {
  if (lru.contains(page)) lru.remove(page);
  pages.hold(page);
}

void KvCache::Impl::let_go(std::int32_t page) {
  if (!pages.let_go(page)) return;
  if (index.node_of(page) == kNone) {
    pages.put_back(page);
  } else if (page_pins[static_cast<std::size_t>(page)] == 0) {
    lru.push_newest(page);
  }
}

std::int32_t KvCache::Impl::take_page() {
  if (pages.n_free() > 0) return pages.take();
  const std::int32_t page = lru.oldest();
  check_state(page != kNone, "KvCache.reserve", "needs a free or cached page, there is none");
  lru.remove(page);
  index.forget_page(page);
  ++n_evictions;
  pages.hold(page);
  return page;
}

void KvCache::Impl::pin_page(std::int32_t page) {
  if (page_pins[static_cast<std::size_t>(page)]++ > 0) return;
  ++n_pinned;
  if (lru.contains(page)) lru.remove(page);
}

void KvCache::Impl::unpin_page(std::int32_t page) {
  if (--page_pins[static_cast<std::size_t>(page)] > 0) return;
  --n_pinned;
  if (pages.n_holders(page) == 0) lru.push_newest(page);
}

void KvCache::Impl::resolve(Span<const std::int64_t> seq_ids, Span<const std::int32_t> counts, const char* place) {
  check_arg(seq_ids.size == counts.size, place, "seq_ids and counts must be equally many, got ", seq_ids.size, " and ",
            counts.size);
  ++batch_number;
  batch.clear();
  for (std::size_t i = 0; i < seq_ids.size; ++i) {
    PageTable& table = sequences.find(seq_ids[i], place);
    check_arg(table.batch != batch_number, place, "a sequence may be named once, got ", seq_ids[i], " twice");
    check_arg(counts[i] >= 0, place, "counts must be >= 0, got ", counts[i], " for sequence ", seq_ids[i]);
    check_arg(std::int64_t{table.length} + counts[i] <= kMaxTokens, place, "a sequence has at most ", kMaxTokens,
              " tokens, got ", table.length, " + ", counts[i], " for sequence ", seq_ids[i]);
    table.batch = batch_number;
    batch.push_back(&table);
  }
}

std::int64_t KvCache::Impl::n_pages_wanted(Span<const std::int32_t> counts) {
  std::int64_t n_wanted = 0;
  for (std::size_t i = 0; i < batch.size(); ++i) {
    const PageTable& table = *batch[i];
    const auto n_present = static_cast<std::int32_t>(table.pages.size());
    n_wanted += std::max(0, pages_for(std::int64_t{table.length} + counts[i]) - n_present);
    if (counts[i] == 0 || !must_copy(table)) continue;
    // Of the sequences that share a partial page, the last one to write keeps it when no other holder is left.
    const std::int32_t page = page_at(table, table.length);
    if (++n_leaving[static_cast<std::size_t>(page)] < pages.n_holders(page)) ++n_wanted;
  }
  for (const PageTable* table : batch) {
    if (must_copy(*table)) n_leaving[static_cast<std::size_t>(page_at(*table, table->length))] = 0;
  }
  return n_wanted;
}

void KvCache::Impl::make_room(PageTable& table, std::int32_t count) {
  if (count > 0 && must_copy(table)) {
    std::int32_t& shared = page_at(table, table.length);
    const std::int32_t copy = take_page();
    storage.copy_page(shared, copy);
    ++n_copies;
    let_go(shared);
    shared = copy;
  }
  const std::int64_t n_tokens = std::int64_t{table.length} + count;
  trim(table, n_tokens);
  const auto n_pages = static_cast<std::size_t>(pages_for(n_tokens));
  while (table.pages.size() < n_pages) {
    table.pages.push_back(kNone);  // before the page is taken, so that no page is lost when the vector cannot grow
    table.pages.back() = take_page();
  }
  table.n_reserved = count;
}

void KvCache::Impl::trim(PageTable& table, std::int64_t n_tokens) {
  const auto n_pages = static_cast<std::size_t>(pages_for(n_tokens));
  while (table.pages.size() > n_pages) {
    let_go(table.pages.back());
    table.pages.pop_back();
  }
}

void KvCache::Impl::append(PageTable& table, const std::int32_t* tokens, std::int32_t count) {
  while (count > 0) {
    const auto n_room = config.page_size - static_cast<std::int32_t>(table.tail.size());
    const std::int32_t n = std::min(count, n_room);
    table.tail.insert(table.tail.end(), tokens, tokens + n);
    table.length += n;
    tokens += n;
    count -= n;
    if (n < n_room) return;
    index_full_page(table);
    table.tail.clear();
  }
}

// When the index knows these tokens already, the sequence changes over to the page that it knows, and its own page is
// free again. That is the exchange a prefix hit makes: KV is a function of the tokens before it, so both pages hold the
// same. Nobody else can be looking at the page given up, for a page being filled has one holder.
void KvCache::Impl::index_full_page(PageTable& table) {
  std::int32_t& own = page_at(table, table.length - 1);
  std::int32_t node = index.find_child(table.node, table.tail.data());
  if (node == kNone) {
    node = index.add_child(table.node, table.tail.data(), own);
  } else if (index.page(node) == kNone) {
    index.set_page(node, own);
  } else {
    hold(index.page(node));
    let_go(own);
    own = index.page(node);
  }
  index.anchor(node);
  index.unanchor(table.node);
  table.node = node;
}

void KvCache::Impl::pass_window(PageTable& table) {
  const std::int32_t n_dead = n_dead_at(table.length);
  for (std::int32_t entry = n_dead - 1; entry >= table.n_dead; --entry) {
    let_go(table.pages[static_cast<std::size_t>(entry)]);
    table.pages[static_cast<std::size_t>(entry)] = kNone;
  }
  table.n_dead = n_dead;
}

KvCache::KvCache(const KvCacheConfig& config) : impl_(std::make_unique<Impl>(config)) {}

KvCache::~KvCache() = default;

KvCache::Admission KvCache::admit(Span<const std::int32_t> tokens, std::string_view salt) {
  Impl& self = *impl_;
  check_arg(static_cast<std::int64_t>(tokens.size) <= kMaxTokens, "KvCache.admit", "a sequence has at most ",
            kMaxTokens, " tokens, got ", tokens.size);
  const auto n_tokens = static_cast<std::int32_t>(tokens.size);
  const Impl::Match match = self.longest_match(tokens, salt, std::max(0, n_tokens - 1) / self.config.page_size);

  Admission admission{0, match.n_pages * self.config.page_size};
  PageTable& table = self.sequences.create(&admission.seq_id);
  table.node = match.node == kNone ? self.index.make_root(salt) : match.node;
  self.index.anchor(table.node);
  table.length = admission.n_cached;
  table.n_dead = self.n_dead_at(table.length);
  table.tail.reserve(static_cast<std::size_t>(self.config.page_size));
  table.pages.reserve(static_cast<std::size_t>(self.pages_for(n_tokens)));
  table.pages.resize(static_cast<std::size_t>(match.n_pages), kNone);
  std::size_t entry = table.pages.size();
  self.for_each_live_page(table.node, [&](std::int32_t page) {
    self.hold(page);
    table.pages[--entry] = page;
  });

  self.n_query_tokens += n_tokens;
  self.n_hit_tokens += admission.n_cached;
  return admission;
}

bool KvCache::reserve(Span<const std::int64_t> seq_ids, Span<const std::int32_t> counts) {
  Impl& self = *impl_;
  self.resolve(seq_ids, counts, "KvCache.reserve");
  if (self.n_pages_wanted(counts) > self.pages.n_free() + self.lru.size()) return false;
  for (std::size_t i = 0; i < self.batch.size(); ++i) self.make_room(*self.batch[i], counts[i]);
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
    PageTable& table = *self.batch[i];
    self.append(table, next, counts[i]);
    self.trim(table, table.length);
    self.pass_window(table);
    table.n_reserved = 0;
    next += counts[i];
  }
}

std::int64_t KvCache::fork(std::int64_t seq_id) {
  Impl& self = *impl_;
  const PageTable& parent = self.sequences.find(seq_id, "KvCache.fork");
  check_arg(parent.n_reserved == 0, "KvCache.fork", "needs a sequence between steps, got ", seq_id, " with ",
            parent.n_reserved, " tokens reserved; commit first");
  std::int64_t child_id = 0;
  PageTable& child = self.sequences.create(&child_id);
  child = parent;
  child.tail.reserve(static_cast<std::size_t>(self.config.page_size));
  self.index.anchor(child.node);
  for (std::size_t entry = static_cast<std::size_t>(child.n_dead); entry < child.pages.size(); ++entry) {
    self.hold(child.pages[entry]);
  }
  return child_id;
}

void KvCache::release(std::int64_t seq_id) {
  Impl& self = *impl_;
  PageTable& table = self.sequences.find(seq_id, "KvCache.release");
  // From the last page to the first: so children are older than their parents in the LRU order, and leave before them.
  while (table.pages.size() > static_cast<std::size_t>(table.n_dead)) {
    self.let_go(table.pages.back());
    table.pages.pop_back();
  }
  self.index.unanchor(table.node);
  self.sequences.erase(seq_id);
}

std::int32_t KvCache::pin(Span<const std::int32_t> tokens, std::string_view salt) {
  Impl& self = *impl_;
  const auto max_pages = static_cast<std::int32_t>(tokens.size / static_cast<std::size_t>(self.config.page_size));
  const Impl::Match match = self.longest_match(tokens, salt, max_pages);
  if (match.n_pages == 0) return 0;
  self.index.pin(match.node);
  self.for_each_live_page(match.node, [&](std::int32_t page) { self.pin_page(page); });
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
  self.for_each_live_page(pinned, [&](std::int32_t page) { self.unpin_page(page); });
  self.index.unpin(pinned);
  return n_tokens;
}

void KvCache::clear_prefix_index() {
  Impl& self = *impl_;
  while (self.lru.size() > 0) {
    const std::int32_t page = self.lru.oldest();
    self.lru.remove(page);
    self.index.forget_page(page);
    self.pages.put_back(page);
  }
}

std::int32_t KvCache::length(std::int64_t seq_id) const {
  return impl_->sequences.find(seq_id, "KvCache.length").length;
}

const std::vector<std::int32_t>& KvCache::page_table(std::int64_t seq_id) const {
  return impl_->sequences.find(seq_id, "KvCache.page_table").pages;
}

std::int32_t KvCache::n_pages_for(std::int32_t n_tokens) const {
  check_arg(n_tokens >= 0, "KvCache.n_pages_for", "n_tokens must be >= 0, got ", n_tokens);
  return impl_->pages_for(n_tokens);
}

std::int64_t KvCache::page_bytes() const { return impl_->storage.page_bytes(); }

PagedKvView KvCache::layer(std::int32_t layer) const {
  check_arg(0 <= layer && layer < config().n_layers, "KvCache.layer", "layer must be in [0, ", config().n_layers,
            "), got ", layer);
  return impl_->storage.layer(layer);
}

const KvCacheConfig& KvCache::config() const { return impl_->config; }

KvCacheStats KvCache::stats() const {
  const Impl& self = *impl_;
  KvCacheStats stats{};
  stats.n_pages = self.pages.n_pages();
  stats.n_free = self.pages.n_free();
  stats.n_held = self.pages.n_held();
  stats.n_cached = stats.n_pages - stats.n_free - stats.n_held;
  stats.n_pinned = self.n_pinned;
  stats.n_sequences = self.sequences.size();
  stats.n_query_tokens = self.n_query_tokens;
  stats.n_hit_tokens = self.n_hit_tokens;
  stats.n_evictions = self.n_evictions;
  stats.n_copies = self.n_copies;
  stats.pool_bytes = stats.n_pages * self.storage.page_bytes();
  return stats;
}

}  // namespace llm_decoder
