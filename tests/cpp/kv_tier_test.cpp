// The second tier: what is evicted from the pool, found in a slot and loaded again is what was written.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "check.h"
#include "llm_decoder/kv_cache.h"
#include "text_pages.h"

namespace {

using namespace llm_decoder;

constexpr std::int32_t kPage = 16;

KvCacheConfig with_tier(std::int32_t n_pages, std::int32_t n_tier_slots, std::int32_t window = 0) {
  KvCacheConfig config;
  config.groups = {{n_pages, window, n_tier_slots}};
  config.page_size = kPage;
  return config;
}

Ints count_from(std::int32_t first, std::int32_t n) {
  Ints tokens(static_cast<std::size_t>(n));
  std::iota(tokens.begin(), tokens.end(), first);
  return tokens;
}

// A prompt that is found up to its last full page: one token more than `n_pages` pages.
Ints prompt_of(std::int32_t first, std::int32_t n_pages) { return count_from(first, n_pages * kPage + 1); }

bool reserve(KvCache& cache, const Ids& ids, const Ints& counts) { return cache.reserve(ids, counts); }

std::int32_t pin(KvCache& cache, const Ints& tokens, const std::string& salt = "") { return cache.pin(tokens, salt); }

std::int32_t unpin(KvCache& cache, const Ints& tokens, const std::string& salt = "") {
  return cache.unpin(tokens, salt);
}

// Takes all pages that the pool has left, so that what is cached there leaves it, and gives them back.
void push_out(TextDecoder& decoder, std::int32_t n_pages) {
  static std::int32_t next = 1 << 20;  // tokens that no prompt has
  next += 1 << 12;
  const std::int64_t id = decoder.admit({next});
  CHECK(reserve(decoder.cache, {id}, {n_pages * kPage}));
  decoder.release(id);
}

}  // namespace

TEST(a_page_that_gives_way_is_found_in_the_tier_and_comes_back) {
  TextDecoder decoder(with_tier(3, 4));
  const Ints prompt = prompt_of(0, 2), other = prompt_of(1000, 2);
  decoder.release(decoder.run(prompt));
  const std::int64_t running = decoder.run(other);
  CHECK_EQ(decoder.cache.stats().n_evictions, 2);
  CHECK_EQ(decoder.cache.stats().n_stored, 2);
  CHECK_EQ(decoder.cache.stats().n_tier_used, 2);
  CHECK_EQ(decoder.cache.stats().n_tier_slots, 4);

  const std::int64_t id = decoder.admit(prompt);
  CHECK_EQ(decoder.cache.length(id), 2 * kPage);
  CHECK_EQ(decoder.cache.n_tier_tokens(id), 2 * kPage);
  CHECK_EQ(decoder.cache.page_table(id)[0], -1);
  CHECK_EQ(decoder.cache.stats().n_hit_tokens, 2 * kPage);
  CHECK(!decoder.finish(id, prompt));  // three pages are wanted, all are held
  CHECK_EQ(decoder.cache.n_tier_tokens(id), 2 * kPage);
  decoder.release(running);
  CHECK(decoder.finish(id, prompt));
  CHECK_EQ(decoder.cache.stats().n_loaded, 2);
  CHECK(decoder.cache.page_table(id)[0] >= 0 && decoder.cache.page_table(id)[1] >= 0);
  CHECK_EQ(decoder.cache.stats().n_tier_used, 2);  // the other's
  CHECK_EQ(decoder.cache.stats().groups[0].n_tier_used, 2);
}

TEST(without_slots_nothing_is_stored) {
  TextDecoder decoder(with_tier(2, 0));
  decoder.release(decoder.run(prompt_of(0, 1)));
  push_out(decoder, 2);
  CHECK_EQ(decoder.cache.stats().n_evictions, 1);
  CHECK_EQ(decoder.cache.stats().n_stored, 0);
  CHECK_EQ(decoder.cache.length(decoder.admit(prompt_of(0, 1))), 0);
}

TEST(a_reserve_with_nothing_to_compute_loads_too) {
  TextDecoder decoder(with_tier(2, 2));
  decoder.release(decoder.run(prompt_of(0, 1)));
  push_out(decoder, 2);
  const std::int64_t id = decoder.admit(prompt_of(0, 1));
  CHECK_EQ(decoder.cache.n_tier_tokens(id), kPage);
  CHECK(decoder.step({id}, {{}}));
  CHECK(decoder.cache.page_table(id)[0] >= 0);
}

TEST(a_sequence_that_made_room_computes_only_its_last_page_again) {
  TextDecoder decoder(with_tier(4, 4));
  const Ints text = count_from(0, 3 * kPage + 5);
  decoder.release(decoder.run(text));
  push_out(decoder, 4);
  const std::int64_t again = decoder.admit(text);
  CHECK_EQ(decoder.cache.length(again), 3 * kPage);
  CHECK(decoder.finish(again, text));
  CHECK_EQ(decoder.cache.stats().n_loaded, 3);
}

TEST(slots_give_way_oldest_first_and_leaves_before_their_parents) {
  TextDecoder decoder(with_tier(3, 2));
  decoder.release(decoder.run(prompt_of(0, 2)));
  push_out(decoder, 3);  // both pages are in the tier
  decoder.release(decoder.run(prompt_of(1000, 1)));
  push_out(decoder, 3);  // the leaf of the first prompt made room
  CHECK_EQ(decoder.cache.stats().n_stored, 3);
  CHECK_EQ(decoder.cache.stats().n_tier_used, 2);
  const std::int64_t first = decoder.admit(prompt_of(0, 2)), second = decoder.admit(prompt_of(1000, 1));
  CHECK_EQ(decoder.cache.length(first), kPage);
  CHECK_EQ(decoder.cache.length(second), kPage);
}

TEST(a_slot_that_an_admitted_sequence_waits_for_never_gives_way) {
  TextDecoder decoder(with_tier(3, 2));
  decoder.release(decoder.run(prompt_of(0, 2)));
  push_out(decoder, 3);
  const std::int64_t waiting = decoder.admit(prompt_of(0, 2));
  decoder.release(decoder.run(prompt_of(1000, 2)));
  push_out(decoder, 3);
  CHECK_EQ(decoder.cache.stats().n_stored, 2);  // the tier had no slot for these
  CHECK_EQ(decoder.cache.n_tier_tokens(waiting), 2 * kPage);
  CHECK(decoder.finish(waiting, prompt_of(0, 2)));
  CHECK_EQ(decoder.cache.length(decoder.admit(prompt_of(1000, 2))), 0);
}

TEST(a_sequence_that_is_released_while_it_waits_leaves_its_slots_to_others) {
  TextDecoder decoder(with_tier(2, 1));
  decoder.release(decoder.run(prompt_of(0, 1)));
  push_out(decoder, 2);
  const std::int64_t waiting = decoder.admit(prompt_of(0, 1));
  decoder.release(waiting);
  CHECK_EQ(decoder.cache.stats().n_tier_used, 1);
  decoder.release(decoder.run(prompt_of(1000, 1)));
  push_out(decoder, 2);
  CHECK_EQ(decoder.cache.length(decoder.admit(prompt_of(1000, 1))), kPage);
  CHECK_EQ(decoder.cache.length(decoder.admit(prompt_of(0, 1))), 0);
}

TEST(sequences_that_wait_for_one_slot_get_one_page) {
  TextDecoder decoder(with_tier(4, 4));
  const Ints prompt = prompt_of(0, 2);
  decoder.release(decoder.run(prompt));
  push_out(decoder, 4);
  const std::int64_t one = decoder.admit(prompt), two = decoder.admit(prompt);
  CHECK(decoder.step({one, two}, {{1}, {2}}));  // two pages to share, and one each: exactly the pool
  CHECK_EQ(decoder.cache.stats().n_loaded, 2);
  CHECK_EQ(decoder.cache.page_table(one)[1], decoder.cache.page_table(two)[1]);
}

TEST(a_page_loaded_for_another_stays_for_the_one_that_still_waits) {
  TextDecoder decoder(with_tier(3, 3));
  const Ints prompt = prompt_of(0, 2);
  decoder.release(decoder.run(prompt));
  push_out(decoder, 3);
  const std::int64_t first = decoder.admit(prompt), second = decoder.admit(prompt);
  CHECK(decoder.finish(first, prompt));
  decoder.release(first);
  CHECK_EQ(decoder.cache.n_tier_tokens(second), 0);
  CHECK_EQ(decoder.cache.page_table(second)[0], -1);
  CHECK_EQ(decoder.cache.stats().n_held, 2);
  const std::int64_t other = decoder.admit({7});
  CHECK(!reserve(decoder.cache, {other}, {2 * kPage}));
  CHECK(decoder.finish(second, prompt));
  CHECK_EQ(decoder.cache.stats().n_loaded, 2);
}

TEST(a_fork_waits_for_the_same_slots) {
  TextDecoder decoder(with_tier(4, 4));
  const Ints prompt = prompt_of(0, 2);
  decoder.release(decoder.run(prompt));
  push_out(decoder, 4);
  const std::int64_t parent = decoder.admit(prompt), child = decoder.fork(parent);
  decoder.release(parent);
  CHECK_EQ(decoder.cache.n_tier_tokens(child), 2 * kPage);
  const std::int64_t grandchild = decoder.fork(child);
  CHECK(decoder.step({child, grandchild}, {{1}, {2}}));
}

TEST(a_page_computed_again_takes_the_place_of_its_slot) {
  TextDecoder decoder(with_tier(3, 3));
  const Ints page = count_from(0, kPage);
  decoder.release(decoder.run(page));
  push_out(decoder, 3);
  const std::int64_t waiting = decoder.admit(prompt_of(0, 1));
  const std::int64_t again = decoder.run(page);  // a prompt's last token is always computed, here with its whole page
  CHECK_EQ(decoder.cache.stats().n_tier_used, 0);
  CHECK_EQ(decoder.cache.n_tier_tokens(waiting), 0);
  decoder.release(again);
  CHECK_EQ(decoder.cache.stats().n_held, 1);
  CHECK(decoder.finish(waiting, prompt_of(0, 1)));
  CHECK_EQ(decoder.cache.stats().n_loaded, 0);
}

TEST(a_sequence_that_computes_again_takes_no_slots_and_frees_them_as_it_goes) {
  TextDecoder decoder(with_tier(4, 4));
  const Ints prompt = prompt_of(0, 3);
  decoder.release(decoder.run(prompt));
  push_out(decoder, 4);
  decoder.release(decoder.run(prompt_of(0, 1)));  // its first page is in the pool again
  CHECK_EQ(decoder.cache.stats().n_loaded, 1);
  const std::int64_t id = decoder.admit(prompt, "", /*with_tier=*/false);
  CHECK_EQ(decoder.cache.length(id), kPage);
  CHECK_EQ(decoder.cache.n_tier_tokens(id), 0);
  CHECK_EQ(decoder.cache.stats().n_tier_used, 2);
  CHECK(decoder.finish(id, prompt));
  CHECK_EQ(decoder.cache.stats().n_loaded, 1);
  CHECK_EQ(decoder.cache.stats().n_tier_used, 0);
}

TEST(a_pinned_prefix_stays_in_the_tier_and_in_the_page_it_comes_back_to) {
  TextDecoder decoder(with_tier(3, 2));
  KvCache& cache = decoder.cache;
  const Ints prompt = prompt_of(0, 2);
  decoder.release(decoder.run(prompt));
  push_out(decoder, 3);
  CHECK_EQ(pin(cache, prompt), 2 * kPage);
  CHECK_EQ(cache.stats().n_pinned, 0);  // of the pool's pages
  decoder.release(decoder.run(prompt_of(1000, 2)));
  push_out(decoder, 3);
  cache.clear_prefix_index();
  decoder.check();
  const std::int64_t id = decoder.run(prompt);
  CHECK_EQ(cache.stats().n_loaded, 2);
  CHECK_EQ(cache.stats().n_pinned, 2);
  decoder.release(id);
  const std::int64_t other = decoder.admit({7});
  CHECK(!reserve(cache, {other}, {2 * kPage}));
  CHECK_EQ(unpin(cache, prompt), 2 * kPage);
  CHECK(reserve(cache, {other}, {2 * kPage}));
  decoder.check();
}

TEST(an_unpinned_slot_gives_way_again) {
  TextDecoder decoder(with_tier(2, 1));
  decoder.release(decoder.run(prompt_of(0, 1)));
  push_out(decoder, 2);
  CHECK_EQ(pin(decoder.cache, prompt_of(0, 1)), kPage);
  CHECK_EQ(unpin(decoder.cache, prompt_of(0, 1)), kPage);
  decoder.release(decoder.run(prompt_of(1000, 1)));
  push_out(decoder, 2);
  CHECK_EQ(decoder.cache.length(decoder.admit(prompt_of(0, 1))), 0);
}

TEST(room_is_kept_for_pages_that_sequences_wait_for) {
  TextDecoder decoder(with_tier(4, 4));
  decoder.release(decoder.run(prompt_of(0, 2)));
  push_out(decoder, 4);
  const Ints nothing = {0}, two_pages = {2 * kPage}, three_pages = {3 * kPage};
  CHECK(decoder.cache.has_room(nothing, three_pages, kPage));
  const std::int64_t waiting = decoder.admit(prompt_of(0, 2));
  CHECK(!decoder.cache.has_room(nothing, three_pages, kPage));
  CHECK(decoder.cache.has_room(nothing, two_pages, kPage));
  CHECK(decoder.cache.has_room(two_pages, three_pages, kPage));  // of the one that waits
  decoder.release(waiting);
  CHECK(decoder.cache.has_room(nothing, three_pages, kPage));
}

TEST(clearing_the_index_forgets_the_slots_that_nobody_waits_for) {
  TextDecoder decoder(with_tier(3, 4));
  decoder.release(decoder.run(prompt_of(0, 1)));
  push_out(decoder, 3);
  decoder.release(decoder.run(prompt_of(1000, 2)));
  push_out(decoder, 3);
  const std::int64_t waiting = decoder.admit(prompt_of(0, 1));
  decoder.cache.clear_prefix_index();
  decoder.check();
  CHECK_EQ(decoder.cache.stats().n_tier_used, 1);
  CHECK_EQ(decoder.cache.stats().n_cleared, 2);
  CHECK_EQ(decoder.cache.length(decoder.admit(prompt_of(1000, 2))), 0);
  CHECK(decoder.finish(waiting, prompt_of(0, 1)));
}

TEST(with_a_window_only_the_pages_it_still_needs_come_back) {
  TextDecoder decoder(with_tier(5, 8, /*window=*/kPage));
  const Ints prompt = prompt_of(0, 4);
  decoder.release(decoder.run(prompt));
  push_out(decoder, 5);
  CHECK_EQ(decoder.cache.stats().n_stored, 4);
  const std::int64_t id = decoder.admit(prompt);
  CHECK_EQ(decoder.cache.n_tier_tokens(id), kPage);
  CHECK(decoder.finish(id, prompt));
  CHECK_EQ(decoder.cache.stats().n_loaded, 1);
}

TEST(a_page_that_one_group_lost_and_another_has_is_counted_once) {
  KvCacheConfig config = with_tier(8, 0);
  config.groups.push_back({3, 0, 3});
  TextDecoder decoder(config);
  const Ints prompt = prompt_of(0, 2);
  decoder.release(decoder.run(prompt));
  decoder.release(decoder.run(prompt_of(1000, 2)));
  CHECK_EQ(decoder.cache.stats().n_stored, 2);
  const std::int64_t id = decoder.admit(prompt);
  CHECK_EQ(decoder.cache.length(id), 2 * kPage);
  CHECK_EQ(decoder.cache.n_tier_tokens(id), 2 * kPage);
  CHECK(decoder.cache.page_table(id, 0)[0] >= 0);
  CHECK_EQ(decoder.cache.page_table(id, 1)[0], -1);
  CHECK(decoder.finish(id, prompt));
}

TEST(the_time_that_a_page_lay_unused_goes_on_in_the_tier) {
  TextDecoder decoder(with_tier(2, 2));
  decoder.cache.set_time(100.0);
  decoder.release(decoder.run(prompt_of(0, 1)));
  decoder.cache.set_time(103.0);
  push_out(decoder, 2);
  CHECK_EQ(decoder.cache.durations().lifetimes.sum, 3.0);  // it has left the pool
  decoder.cache.set_time(110.0);
  decoder.run(prompt_of(0, 1));
  CHECK_EQ(decoder.cache.durations().reuse_gaps.sum, 10.0);
}

TEST(host_memory_keeps_the_bytes_of_a_page_in_its_slot) {
  for (const Dtype dtype : {Dtype::f32, Dtype::s8}) {
    KvCacheConfig config = with_tier(2, 3);
    config.layer_groups = {0, 0};
    config.n_kv_heads = 2;
    config.head_dim = 40;
    config.dtype = dtype;
    KvCache cache(config);
    const Ints prompt = prompt_of(0, 1), page = count_from(0, kPage), n_tokens = {kPage}, stranger = {900};
    const Ids id = {cache.admit(prompt, "").seq_id};
    CHECK(reserve(cache, id, n_tokens));
    const auto page_bytes = static_cast<std::size_t>(cache.stats().groups[0].page_bytes);
    std::vector<unsigned char> bytes(page_bytes);
    for (std::size_t i = 0; i < page_bytes; ++i) bytes[i] = static_cast<unsigned char>(i * 31 % 251);
    const auto first_byte = [&](std::int32_t of) { return cache.layer(0).k + of * cache.stats().groups[0].page_bytes; };
    std::memcpy(first_byte(cache.page_table(id[0])[0]), bytes.data(), page_bytes);
    cache.commit(id, n_tokens, page);
    cache.release(id[0]);
    const Ids other = {cache.admit(stranger, "").seq_id};
    CHECK(reserve(cache, other, {2 * kPage}));
    for (const std::int32_t of : cache.page_table(other[0])) std::memset(first_byte(of), 0, page_bytes);
    cache.release(other[0]);
    CHECK_EQ(cache.stats().n_stored, 1);
    const Ids again = {cache.admit(prompt, "").seq_id};
    CHECK(reserve(cache, again, {1}));
    CHECK_EQ(cache.stats().n_loaded, 1);
    CHECK(std::memcmp(first_byte(cache.page_table(again[0])[0]), bytes.data(), page_bytes) == 0);
    CHECK_EQ(cache.stats().pool_bytes, 2 * static_cast<std::int64_t>(page_bytes));
  }
}

namespace {

// One verb after the other at random, on texts that share stems. After each, every sequence reads what was written for
// it (TextDecoder::check).
class RandomWalk {
 public:
  RandomWalk(const KvCacheConfig& config, std::uint64_t seed) : decoder(config), random_(seed) {}

  void take(int n_steps) {
    for (int i = 0; i < n_steps; ++i) {
      const int verb = below(100);
      if (verb < 25) {
        if (decoder.ids().size() < 6) serve();
      } else if (verb < 55) {
        step();
      } else if (verb < 62) {
        if (!decoder.ids().empty() && decoder.ids().size() < 8) decoder.fork(any());
      } else if (verb < 88) {
        if (!decoder.ids().empty()) decoder.release(any());
      } else if (verb < 89) {
        pin(decoder.cache, text(), salt());
      } else if (verb < 99) {
        unpin(decoder.cache, text(), salt());
      } else {
        decoder.cache.clear_prefix_index();
      }
      decoder.check();
    }
  }

  TextDecoder decoder;

 private:
  int below(int n) { return static_cast<int>(random_() % static_cast<std::uint64_t>(n)); }
  std::string salt() { return below(4) == 0 ? "other" : ""; }
  std::int64_t any() {
    const Ids living = decoder.ids();
    return living[static_cast<std::size_t>(below(static_cast<int>(living.size())))];
  }
  // Runs of pages of few kinds, so that texts meet and part.
  Ints text() {
    Ints tokens;
    for (int n = 1 + below(4); n > 0; --n) tokens.insert(tokens.end(), kPage, below(2));
    tokens.resize(tokens.size() - static_cast<std::size_t>(below(kPage)));
    return tokens;
  }
  // A request begins, and computes its prompt at once or later.
  void serve() {
    const Ints prompt = text();
    const std::int64_t id = decoder.admit(prompt, salt(), below(3) > 0);
    if (below(4) > 0) decoder.finish(id, prompt);
  }
  // Some of the sequences go on, each by a few tokens or by pages.
  void step() {
    Ids some;
    std::vector<Ints> tokens;
    for (const std::int64_t id : decoder.ids()) {
      if (below(3) > 0 || decoder.cache.length(id) > 8 * kPage) continue;
      constexpr int kCounts[] = {0, 1, 2, kPage - 1, kPage, 2 * kPage};
      some.push_back(id);
      tokens.emplace_back(static_cast<std::size_t>(kCounts[below(6)]), below(2));
    }
    decoder.step(some, tokens);
  }

  std::mt19937_64 random_;
};

}  // namespace

TEST(whatever_was_stored_loaded_forked_and_copied_is_read_back_as_written) {
  std::int64_t n_stored = 0, n_loaded = 0, n_copies = 0;
  for (std::uint64_t seed = 0; seed < 60; ++seed) {
    std::mt19937_64 random(seed);
    KvCacheConfig config;
    config.page_size = kPage;
    config.hash_mask = seed % 3 == 0 ? 1 : ~std::uint64_t{0};
    for (std::uint64_t group = 0; group <= seed % 2; ++group) {
      constexpr std::int32_t kWindows[] = {0, 0, kPage + 4, 40};
      config.groups.push_back({static_cast<std::int32_t>(4 + random() % 9), kWindows[random() % 4],
                               static_cast<std::int32_t>(random() % 8)});
    }
    RandomWalk walk(config, seed);
    walk.take(600);
    n_stored += walk.decoder.cache.stats().n_stored;
    n_loaded += walk.decoder.cache.stats().n_loaded;
    n_copies += walk.decoder.cache.stats().n_copies;
  }
  CHECK(n_stored > 1000 && n_loaded > 300 && n_copies > 100);
}
