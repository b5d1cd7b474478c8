// The cache through its public verbs, with and without storage.
#include "llm_decoder/kv_cache.h"

#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "check.h"
#include "llm_decoder/types.h"
#include "text_pages.h"

namespace {

using namespace llm_decoder;
constexpr std::int32_t kPage = 16;

KvCacheConfig books_only(std::int32_t n_pages, std::int32_t window = 0) {
  KvCacheConfig config;
  config.groups = {{n_pages, window}};
  config.page_size = kPage;
  return config;
}

KvCacheConfig with_storage(Dtype dtype, std::int32_t n_pages = 4) {
  KvCacheConfig config = books_only(n_pages);
  config.layer_groups = {0, 0, 0};
  config.n_kv_heads = 2;
  config.head_dim = 40;
  config.dtype = dtype;
  return config;
}

Ints count_from(std::int32_t first, std::int32_t n) {
  Ints tokens(static_cast<std::size_t>(n));
  std::iota(tokens.begin(), tokens.end(), first);
  return tokens;
}

KvCache::Admission admit(KvCache& cache, const Ints& tokens, const std::string& salt = "") {
  return cache.admit(tokens, salt);
}

std::int32_t pin(KvCache& cache, const Ints& tokens) { return cache.pin(tokens, ""); }

std::int32_t unpin(KvCache& cache, const Ints& tokens) { return cache.unpin(tokens, ""); }

bool reserve(KvCache& cache, const Ids& ids, const Ints& counts) { return cache.reserve(ids, counts); }

void commit(KvCache& cache, std::int64_t id, const Ints& tokens) {
  const Ids ids = {id};
  const Ints counts = {static_cast<std::int32_t>(tokens.size())};
  cache.commit(ids, counts, tokens);
}

// Gives a living sequence `tokens` more.
void extend(KvCache& cache, std::int64_t id, const Ints& tokens) {
  CHECK(reserve(cache, {id}, {static_cast<std::int32_t>(tokens.size())}));
  commit(cache, id, tokens);
  cache.check_integrity();
}

// A new sequence that holds all of `tokens`.
std::int64_t run(KvCache& cache, const Ints& tokens, const std::string& salt = "") {
  const KvCache::Admission admission = admit(cache, tokens, salt);
  extend(cache, admission.seq_id, Ints(tokens.begin() + admission.n_cached, tokens.end()));
  return admission.seq_id;
}

std::int32_t n_hit(KvCache& cache, const Ints& tokens, const std::string& salt = "") {
  const KvCache::Admission admission = admit(cache, tokens, salt);
  cache.check_integrity();
  cache.release(admission.seq_id);
  cache.check_integrity();
  return admission.n_cached;
}

Ints join(Ints left, const Ints& right) {
  left.insert(left.end(), right.begin(), right.end());
  return left;
}

}  // namespace

TEST(a_new_cache_has_only_free_pages) {
  KvCache cache(books_only(5));
  CHECK_EQ(cache.stats().n_free, 5);
  CHECK_EQ(cache.stats().n_held + cache.stats().n_cached + cache.stats().n_sequences, 0);
  CHECK_EQ(cache.stats().pool_bytes, 0);
  cache.check_integrity();
}

TEST(impossible_configurations_are_refused_by_name) {
  KvCacheConfig config = books_only(0);
  CHECK_THROWS(std::invalid_argument, "n_pages", KvCache(config));
  config = books_only(4);
  config.page_size = 24;
  CHECK_THROWS(std::invalid_argument, "multiple of 16", KvCache(config));
  config = books_only(4, -1);
  CHECK_THROWS(std::invalid_argument, "window", KvCache(config));
  config = books_only(4);
  config.groups[0].n_tier_slots = -1;
  CHECK_THROWS(std::invalid_argument, "n_tier_slots", KvCache(config));
  config = with_storage(Dtype::f32);
  config.head_dim = 0;
  CHECK_THROWS(std::invalid_argument, "head_dim", KvCache(config));
  config = with_storage(Dtype::f32);
  config.layer_groups = {0, 1, 0};
  CHECK_THROWS(std::invalid_argument, "a layer's group must be in [0, 0], got 1", KvCache(config));
  config.groups.clear();
  CHECK_THROWS(std::invalid_argument, "number of groups", KvCache(config));
}

TEST(a_pool_larger_than_any_machine_is_refused_with_its_size) {
  KvCacheConfig config = with_storage(Dtype::f32, 1 << 26);
  config.layer_groups.assign(4096, 0);
  config.n_kv_heads = 4096;
  config.head_dim = 16384;
  CHECK_THROWS(std::bad_alloc, "67108864 pages", KvCache(config));
}

TEST(room_is_counted_in_pages_that_sequences_would_take) {
  KvCache cache(books_only(4));
  const auto has_room = [&](const Ints& n_now, const Ints& n_then) { return cache.has_room(n_now, n_then, 8); };
  CHECK(has_room({0}, {4 * kPage}));
  CHECK(!has_room({0}, {4 * kPage + 1}));
  CHECK(has_room({kPage, 0}, {4 * kPage, 1}));
  CHECK(!has_room({kPage, 0}, {4 * kPage, kPage + 1}));
  CHECK(has_room({0}, {0}));
  CHECK_THROWS(std::invalid_argument, "grows", has_room({2}, {1}));
  CHECK_THROWS(std::invalid_argument, "equally many", has_room({2}, {3, 4}));
  CHECK_EQ(cache.max_tokens(8), 4 * kPage);
  const std::int64_t one = run(cache, count_from(0, 2 * kPage));
  CHECK(!has_room({0}, {3 * kPage}));
  cache.release(one);  // cached pages count, they can be evicted
  CHECK(has_room({0}, {4 * kPage}));
  CHECK_EQ(pin(cache, count_from(0, kPage)), kPage);
  CHECK(!has_room({0}, {4 * kPage}));
}

TEST(a_window_bounds_the_room_that_a_sequence_takes) {
  KvCacheConfig config = books_only(100);
  config.groups.push_back({5, 2 * kPage});
  const KvCache cache(config);
  // The window and a step of 32 tokens cover four pages, or five when they begin within one.
  const Ints nothing = {0}, long_text = {99 * kPage};
  CHECK(cache.has_room(nothing, long_text, 32));
  CHECK(!cache.has_room(nothing, long_text, 33));
  CHECK_EQ(cache.max_tokens(32), 100 * kPage);
  CHECK_EQ(cache.max_tokens(33), 5 * kPage);
}

TEST(a_prompt_seen_before_is_found_in_full_pages_and_never_whole) {
  KvCache cache(books_only(8));
  const Ints prompt = count_from(0, 2 * kPage + 5);
  cache.release(run(cache, prompt));
  CHECK_EQ(n_hit(cache, prompt), 2 * kPage);
  CHECK_EQ(n_hit(cache, count_from(0, 2 * kPage + 1)), 2 * kPage);
  CHECK_EQ(n_hit(cache, count_from(0, 2 * kPage)), kPage);  // the last token is always computed
  CHECK_EQ(n_hit(cache, count_from(0, kPage)), 0);
  CHECK_EQ(n_hit(cache, count_from(1, 40)), 0);
  CHECK_EQ(n_hit(cache, {}), 0);
}

TEST(a_second_page_alone_is_no_prefix) {
  KvCache cache(books_only(8));
  const Ints first = count_from(0, kPage), second = count_from(100, kPage);
  cache.release(run(cache, join(first, second)));
  CHECK_EQ(n_hit(cache, join(second, {1})), 0);
  CHECK_EQ(n_hit(cache, join(count_from(7, kPage), join(second, {1}))), 0);
}

TEST(a_salt_sees_only_its_own_pages) {
  KvCache cache(books_only(8));
  const Ints prompt = count_from(0, kPage + 1);
  cache.release(run(cache, prompt, std::string("a\0b", 3)));
  CHECK_EQ(n_hit(cache, prompt, std::string("a\0b", 3)), kPage);
  CHECK_EQ(n_hit(cache, prompt, std::string("a\0c", 3)), 0);
  CHECK_EQ(n_hit(cache, prompt), 0);
}

TEST(colliding_hashes_never_give_a_wrong_page) {
  KvCacheConfig config = books_only(64);
  config.hash_mask = 0;  // all pages of all salts collide
  KvCache cache(config);
  for (std::int32_t i = 0; i < 8; ++i)
    cache.release(run(cache, count_from(i * 100, 2 * kPage + 1), i % 2 ? "odd" : ""));
  for (std::int32_t i = 0; i < 8; ++i) {
    CHECK_EQ(n_hit(cache, count_from(i * 100, 2 * kPage + 1), i % 2 ? "odd" : ""), 2 * kPage);
    CHECK_EQ(n_hit(cache, count_from(i * 100, 2 * kPage + 1), i % 2 ? "" : "odd"), 0);
  }
}

TEST(sequences_with_one_prefix_hold_the_same_pages) {
  KvCache cache(books_only(8));
  const Ints prompt = count_from(0, 2 * kPage + 1);
  const std::int64_t first = run(cache, prompt);
  const std::int64_t second = run(cache, prompt);
  CHECK_EQ(cache.page_table(first)[0], cache.page_table(second)[0]);
  CHECK_EQ(cache.page_table(first)[1], cache.page_table(second)[1]);
  CHECK(cache.page_table(first)[2] != cache.page_table(second)[2]);
  CHECK_EQ(cache.stats().n_held, 4);
}

TEST(the_same_pages_committed_at_once_are_kept_once) {
  KvCache cache(books_only(8));
  const Ints prompt = count_from(0, 2 * kPage + 1);
  const Ids ids = {admit(cache, prompt).seq_id, admit(cache, prompt).seq_id};
  const Ints counts = {2 * kPage + 1, 2 * kPage + 1};
  CHECK(cache.reserve(ids, counts));
  CHECK_EQ(cache.stats().n_held, 6);
  const Ints tokens = join(prompt, prompt);
  cache.commit(ids, counts, tokens);
  cache.check_integrity();
  CHECK_EQ(cache.stats().n_held, 4);
  CHECK_EQ(cache.page_table(ids[0])[1], cache.page_table(ids[1])[1]);
  CHECK(cache.page_table(ids[0])[2] != cache.page_table(ids[1])[2]);
}

TEST(a_refused_reserve_changes_nothing) {
  KvCache cache(books_only(4));
  const Ints old = count_from(0, 2 * kPage);
  cache.release(run(cache, old));  // two cached, two free
  const std::int64_t a = admit(cache, count_from(100, 3)).seq_id;
  const std::int64_t b = admit(cache, count_from(200, 3)).seq_id;
  CHECK(!reserve(cache, {a, b}, {2 * kPage, 2 * kPage + 1}));
  cache.check_integrity();
  CHECK_EQ(cache.stats().n_free, 2);
  CHECK_EQ(cache.stats().n_evictions, 0);
  CHECK_EQ(cache.page_table(a).size(), std::size_t{0});
  CHECK_EQ(n_hit(cache, join(old, {1})), 2 * kPage);
  CHECK(reserve(cache, {a, b}, {2 * kPage, 2 * kPage}));  // and what fits, fits
  cache.check_integrity();
  CHECK_EQ(cache.stats().n_evictions, 2);
}

TEST(a_second_reserve_replaces_the_first) {
  KvCache cache(books_only(4));
  const std::int64_t id = admit(cache, count_from(0, 3)).seq_id;
  CHECK(reserve(cache, {id}, {3 * kPage}));
  CHECK(reserve(cache, {id}, {kPage}));
  cache.check_integrity();
  CHECK_EQ(cache.stats().n_held, 1);
  CHECK_THROWS(std::invalid_argument, "room for 16", commit(cache, id, count_from(0, kPage + 1)));
  CHECK(reserve(cache, {id}, {0}));
  CHECK_EQ(cache.stats().n_free, 4);
}

TEST(a_commit_of_fewer_tokens_gives_the_other_pages_back) {
  KvCache cache(books_only(4));
  const std::int64_t id = admit(cache, count_from(0, 3)).seq_id;
  CHECK(reserve(cache, {id}, {4 * kPage}));
  commit(cache, id, count_from(0, kPage + 1));
  cache.check_integrity();
  CHECK_EQ(cache.length(id), kPage + 1);
  CHECK_EQ(cache.stats().n_free, 2);
}

TEST(a_failed_request_leaves_nothing_in_the_index) {
  KvCache cache(books_only(4));
  const Ints prompt = count_from(0, 2 * kPage + 1);
  const std::int64_t id = admit(cache, prompt).seq_id;
  CHECK(reserve(cache, {id}, {2 * kPage + 1}));
  cache.release(id);  // the step that was to fill these pages failed
  cache.check_integrity();
  CHECK_EQ(cache.stats().n_free, 4);
  CHECK_EQ(n_hit(cache, prompt), 0);
}

TEST(pages_leave_oldest_first_and_leaves_before_their_parents) {
  KvCache cache(books_only(6));
  const Ints old = count_from(0, 3 * kPage), young = count_from(1000, 3 * kPage);
  cache.release(run(cache, old));
  cache.release(run(cache, young));
  const std::int64_t id = admit(cache, count_from(5000, 1)).seq_id;
  extend(cache, id, {5000});
  CHECK_EQ(n_hit(cache, join(young, {1})), 3 * kPage);
  CHECK_EQ(n_hit(cache, join(old, {1})), 2 * kPage);  // its leaf went; and this look-up makes what is left the youngest
  extend(cache, id, count_from(0, 3 * kPage));
  CHECK_EQ(n_hit(cache, join(young, {1})), 0);
  CHECK_EQ(n_hit(cache, join(old, {1})), 2 * kPage);
}

std::int64_t n_of(const DurationCounts& part) {
  std::int64_t n = 0;
  for (const std::int64_t count : part.counts) n += count;
  return n;
}

TEST(ages_of_pages_are_counted_when_they_leave_and_when_they_are_used_again) {
  KvCache cache(books_only(2));
  const Ints prompt = count_from(0, 2 * kPage);
  cache.set_time(100.0);
  const std::int64_t first = run(cache, prompt);
  cache.set_time(103.0);
  cache.release(first);  // both pages lie unused from here on
  CHECK_EQ(n_of(cache.durations().reuse_gaps), 0);
  CHECK_EQ(cache.stats().n_evictable, 2);
  cache.set_time(107.0);
  CHECK_EQ(n_hit(cache, prompt), kPage);  // a prompt's last token is always computed
  CHECK_EQ(n_of(cache.durations().reuse_gaps), 1);
  CHECK_EQ(cache.durations().reuse_gaps.sum, 4.0);
  CHECK_EQ(n_of(cache.durations().lifetimes), 0);

  cache.set_time(110.0);
  run(cache, count_from(1000, kPage));  // the page that nobody has used again gives way
  CHECK_EQ(cache.durations().lifetimes.sum, 10.0);
  CHECK_EQ(cache.durations().idle_times.sum, 7.0);
  CHECK_EQ(cache.durations().idle_times.counts[12], 1);  // 5 < 7 <= 10
  cache.clear_prefix_index();
  CHECK_EQ(n_of(cache.durations().lifetimes), 2);
  CHECK_EQ(cache.durations().idle_times.sum, 7.0 + 3.0);
  CHECK_EQ(cache.stats().n_evictions, 1);
  CHECK_EQ(cache.stats().n_cleared, 1);
  CHECK_EQ(cache.stats().n_evictable, 0);
  cache.check_integrity();
}

TEST(a_duration_is_counted_by_the_first_bound_that_is_not_below_it) {
  DurationCounts counts;
  counts.add(0.0);
  counts.add(0.001);
  counts.add(0.0011);
  counts.add(1e9);
  CHECK_EQ(counts.counts[0], 2);
  CHECK_EQ(counts.counts[1], 1);
  CHECK_EQ(counts.counts.back(), 1);
  CHECK(counts.counts.size() == DurationCounts::kBounds.size() + 1);
}

TEST(a_parent_stays_while_a_younger_branch_needs_it) {
  KvCache cache(books_only(4));
  const Ints stem = count_from(0, kPage);
  const Ints left = join(stem, count_from(100, kPage)), right = join(stem, count_from(200, kPage));
  cache.release(run(cache, left));
  cache.release(run(cache, right));
  const std::int64_t id = admit(cache, count_from(5000, 1)).seq_id;
  extend(cache, id, count_from(5000, 2 * kPage));
  CHECK_EQ(n_hit(cache, join(left, {1})), kPage);
  CHECK_EQ(n_hit(cache, join(right, {1})), 2 * kPage);
}

TEST(what_a_newcomer_found_is_not_evicted_for_it) {
  KvCache cache(books_only(3));
  const Ints prompt = count_from(0, 2 * kPage + 1);
  cache.release(run(cache, prompt));
  const KvCache::Admission admission = admit(cache, prompt);
  CHECK_EQ(admission.n_cached, 2 * kPage);
  CHECK(!reserve(cache, {admission.seq_id}, {kPage + 1}));
  CHECK(reserve(cache, {admission.seq_id}, {kPage}));
  CHECK_EQ(cache.stats().n_evictions, 0);
}

TEST(a_fork_shares_pages_and_copies_only_the_partial_one) {
  KvCache cache(books_only(8));
  const std::int64_t parent = run(cache, count_from(0, 2 * kPage + 3));
  const std::int64_t child = cache.fork(parent);
  cache.check_integrity();
  CHECK_EQ(cache.length(child), 2 * kPage + 3);
  CHECK_EQ(cache.stats().n_held, 3);
  extend(cache, child, {7});
  CHECK_EQ(cache.stats().n_copies, 1);
  CHECK_EQ(cache.stats().n_held, 4);
  CHECK_EQ(cache.page_table(child)[1], cache.page_table(parent)[1]);
  CHECK(cache.page_table(child)[2] != cache.page_table(parent)[2]);
  extend(cache, parent, {8});  // alone on its page by now
  CHECK_EQ(cache.stats().n_copies, 1);
}

TEST(of_three_that_share_a_partial_page_two_copy_it) {
  KvCache cache(books_only(3));
  const std::int64_t a = run(cache, count_from(0, 3));
  const std::int64_t b = cache.fork(a), c = cache.fork(b);
  CHECK(reserve(cache, {a, b, c}, {1, 1, 1}));  // exactly the two free pages
  cache.check_integrity();
  CHECK_EQ(cache.stats().n_copies, 2);
  CHECK_EQ(cache.stats().n_free, 0);
}

TEST(a_fork_of_a_full_page_copies_nothing) {
  KvCache cache(books_only(4));
  const std::int64_t parent = run(cache, count_from(0, kPage));
  const std::int64_t child = cache.fork(parent);
  extend(cache, child, {1});
  extend(cache, parent, {2});
  CHECK_EQ(cache.stats().n_copies, 0);
  CHECK_EQ(cache.stats().n_held, 3);
}

TEST(a_fork_that_finds_no_page_to_copy_to_changes_nothing) {
  KvCache cache(books_only(1));
  const std::int64_t parent = run(cache, count_from(0, 3));
  const std::int64_t child = cache.fork(parent);
  CHECK(!reserve(cache, {child}, {1}));
  cache.check_integrity();
  CHECK_EQ(cache.page_table(child)[0], cache.page_table(parent)[0]);
  cache.release(parent);
  CHECK(reserve(cache, {child}, {1}));
}

TEST(release_keeps_a_page_shared_by_a_fork) {
  KvCache cache(books_only(4));
  const std::int64_t parent = run(cache, count_from(0, kPage + 3));
  const std::int64_t child = cache.fork(parent);
  cache.release(parent);
  cache.check_integrity();
  CHECK_EQ(cache.stats().n_held, 2);
  cache.release(child);
  CHECK_EQ(cache.stats().n_held, 0);
  CHECK_EQ(cache.stats().n_cached, 1);
  CHECK_EQ(cache.stats().n_free, 3);
}

TEST(a_fork_waits_for_the_commit) {
  KvCache cache(books_only(4));
  const std::int64_t id = run(cache, count_from(0, 3));
  CHECK(reserve(cache, {id}, {1}));
  CHECK_THROWS(std::invalid_argument, "commit first", cache.fork(id));
  commit(cache, id, {3});
  CHECK(cache.fork(id) != id);
}

TEST(a_pinned_prefix_outlives_everything_but_its_unpin) {
  KvCache cache(books_only(4));
  const Ints prompt = count_from(0, 2 * kPage + 1);
  CHECK_EQ(pin(cache, prompt), 0);
  cache.release(run(cache, prompt));
  CHECK_EQ(pin(cache, prompt), 2 * kPage);
  CHECK_EQ(pin(cache, prompt), 2 * kPage);
  CHECK_EQ(cache.stats().n_pinned, 2);
  cache.clear_prefix_index();
  cache.check_integrity();
  const std::int64_t other = admit(cache, count_from(500, 1)).seq_id;
  CHECK(!reserve(cache, {other}, {2 * kPage + 1}));
  CHECK_EQ(n_hit(cache, prompt), 2 * kPage);
  CHECK_EQ(unpin(cache, prompt), 2 * kPage);
  CHECK(!reserve(cache, {other}, {2 * kPage + 1}));
  CHECK_EQ(unpin(cache, prompt), 2 * kPage);
  CHECK_EQ(unpin(cache, prompt), 0);
  cache.check_integrity();
  CHECK(reserve(cache, {other}, {2 * kPage + 1}));
}

TEST(clearing_the_index_keeps_what_sequences_hold) {
  KvCache cache(books_only(8));
  const Ints held = count_from(0, kPage + 1), cached = count_from(100, kPage + 1);
  const std::int64_t id = run(cache, held);
  cache.release(run(cache, cached));
  cache.clear_prefix_index();
  cache.check_integrity();
  CHECK_EQ(n_hit(cache, cached), 0);
  CHECK_EQ(n_hit(cache, held), kPage);
  cache.release(id);
  CHECK_EQ(n_hit(cache, held), kPage);
}

TEST(pages_left_of_the_window_are_let_go_without_renumbering) {
  KvCache cache(books_only(8, /*window=*/kPage));
  const std::int64_t id = run(cache, count_from(0, 2 * kPage - 2));
  CHECK_EQ(cache.page_table(id)[0] == -1, false);  // position 30 still sees position 15
  extend(cache, id, {1});
  CHECK_EQ(cache.page_table(id)[0], -1);  // position 31 sees 16 to 31
  CHECK_EQ(cache.page_table(id).size(), std::size_t{2});
  extend(cache, id, count_from(0, 2 * kPage + 2));
  CHECK_EQ(cache.page_table(id)[2], -1);  // position 65 sees 50 to 65
  CHECK(cache.page_table(id)[3] >= 0 && cache.page_table(id)[4] >= 0);
  CHECK_EQ(cache.stats().n_held, 2);
}

TEST(a_windowed_prefix_is_found_when_the_pages_it_still_needs_are_there) {
  KvCache cache(books_only(4, /*window=*/kPage));
  const Ints prompt = count_from(0, 4 * kPage);
  std::int64_t id = run(cache, prompt);
  cache.release(id);
  id = admit(cache, count_from(900, 1)).seq_id;
  CHECK(reserve(cache, {id}, {2 * kPage}));  // takes the third and the second page of the prompt, let go in this order
  cache.check_integrity();
  const KvCache::Admission again = admit(cache, join(prompt, {1}));
  CHECK_EQ(again.n_cached, 4 * kPage);
  CHECK_EQ(cache.page_table(again.seq_id)[2], -1);
  CHECK(cache.page_table(again.seq_id)[3] >= 0);
  CHECK_EQ(n_hit(cache, count_from(0, 3 * kPage + 1)), kPage);
  cache.check_integrity();
}

TEST(a_lost_page_comes_back_to_its_place_in_the_tree) {
  KvCache cache(books_only(6, /*window=*/kPage));
  const Ints prompt = count_from(0, 3 * kPage);
  const std::int64_t id = run(cache, prompt);  // its first two pages are cached, left of the window
  const std::int64_t other = admit(cache, count_from(900, 1)).seq_id;
  CHECK(reserve(cache, {other}, {5 * kPage}));
  cache.release(other);
  CHECK_EQ(n_hit(cache, count_from(0, 2 * kPage + 1)), 0);
  const std::int64_t again = run(cache, count_from(0, 2 * kPage + 1));
  CHECK_EQ(n_hit(cache, count_from(0, 2 * kPage + 1)), 2 * kPage);
  cache.release(id);
  cache.release(again);
  cache.check_integrity();
}

TEST(a_window_of_one_needs_no_page_of_the_past) {
  KvCache cache(books_only(4, /*window=*/1));
  const std::int64_t id = run(cache, count_from(0, 2 * kPage));
  CHECK_EQ(cache.stats().n_held, 0);
  CHECK_EQ(pin(cache, count_from(0, 2 * kPage)), 2 * kPage);
  cache.clear_prefix_index();
  cache.check_integrity();
  CHECK_EQ(n_hit(cache, count_from(0, 2 * kPage + 1)), 2 * kPage);
  extend(cache, id, count_from(0, 5));
  cache.release(id);
  CHECK_EQ(unpin(cache, count_from(0, 2 * kPage)), 2 * kPage);
  cache.check_integrity();
  CHECK_EQ(cache.stats().n_free, 4);
}

TEST(a_fork_in_a_window_shares_the_live_pages) {
  KvCache cache(books_only(6, /*window=*/kPage));
  const std::int64_t parent = run(cache, count_from(0, 3 * kPage + 4));
  const std::int64_t child = cache.fork(parent);
  cache.check_integrity();
  extend(cache, child, count_from(0, kPage));
  cache.release(parent);
  cache.check_integrity();
  CHECK_EQ(cache.length(child), 4 * kPage + 4);
}

TEST(what_a_caller_can_get_wrong_is_named_and_changes_nothing) {
  KvCache cache(books_only(4));
  const std::int64_t id = run(cache, count_from(0, 3));
  const std::int64_t gone = run(cache, count_from(0, 3));
  cache.release(gone);
  CHECK_THROWS(std::invalid_argument, "which was released", cache.release(gone));
  CHECK_THROWS(std::invalid_argument, "which never was one", cache.length(99));
  CHECK_THROWS(std::invalid_argument, "KvCache.fork", cache.fork(-1));
  CHECK_THROWS(std::invalid_argument, "KvCache.page_table", cache.page_table(gone));
  CHECK_THROWS(std::invalid_argument, "twice", reserve(cache, {id, id}, {1, 1}));
  CHECK_THROWS(std::invalid_argument, "counts must be >= 0", reserve(cache, {id}, {-1}));
  CHECK_THROWS(std::invalid_argument, "equally many", reserve(cache, {id}, {1, 1}));
  CHECK_THROWS(std::invalid_argument, "at most 2147483647",
               reserve(cache, {id}, {std::numeric_limits<std::int32_t>::max()}));
  CHECK_THROWS(std::invalid_argument, "reserve first", commit(cache, id, {1}));
  CHECK(reserve(cache, {id}, {2}));
  const Ids ids = {id};
  const Ints two = {2}, tokens = {1};
  CHECK_THROWS(std::invalid_argument, "as many as counts say", cache.commit(ids, two, tokens));
  cache.check_integrity();
  CHECK_EQ(cache.length(id), 3);
  CHECK_THROWS(std::invalid_argument, "layer must be in", cache.layer(0));
  CHECK(admit(cache, tokens).seq_id > gone);  // an id is never given twice
}

TEST(a_request_larger_than_the_pool_is_answered_with_no) {
  KvCache cache(books_only(4));
  const std::int64_t id = admit(cache, count_from(0, 3)).seq_id;
  CHECK(!reserve(cache, {id}, {std::numeric_limits<std::int32_t>::max()}));
  cache.check_integrity();
}

// Two groups: one sees everything, the other two pages back.
KvCacheConfig two_groups(std::int32_t n_pages, std::int32_t n_windowed) {
  KvCacheConfig config = books_only(n_pages);
  config.groups.push_back({n_windowed, 2 * kPage});
  return config;
}

TEST(each_group_frees_what_its_own_window_has_passed) {
  KvCache cache(two_groups(8, 8));
  const std::int64_t id = run(cache, count_from(0, 5 * kPage));
  const Ints& all = cache.page_table(id, 0);
  const Ints& windowed = cache.page_table(id, 1);
  CHECK_EQ(all.size(), windowed.size());
  for (std::size_t i = 0; i < 5; ++i) {
    CHECK(all[i] >= 0);
    CHECK_EQ(windowed[i] >= 0, i >= 3);
  }
  CHECK_EQ(cache.stats().groups[0].n_held, 5);
  CHECK_EQ(cache.stats().groups[1].n_held, 2);
  CHECK_EQ(cache.stats().n_pages, 16);
  CHECK_THROWS(std::invalid_argument, "group must be in [0, 2), got 2", cache.page_table(id, 2));
}

TEST(a_prefix_is_found_where_every_group_has_what_it_needs) {
  KvCache cache(two_groups(16, 3));
  const Ints first = count_from(0, 3 * kPage), more = count_from(100, kPage);
  cache.release(run(cache, first));
  CHECK_EQ(n_hit(cache, join(first, more)), 3 * kPage);
  cache.release(run(cache, count_from(500, 2 * kPage)));  // takes windowed pages of the first
  CHECK_EQ(cache.stats().groups[0].n_cached, 5);
  CHECK_EQ(n_hit(cache, join(first, more)), 0);
  cache.release(run(cache, first));  // computed again: the pages of the other group are taken up where they were
  CHECK_EQ(cache.stats().groups[0].n_cached, 5);
  CHECK_EQ(n_hit(cache, join(first, more)), 3 * kPage);
}

TEST(a_step_has_room_in_every_group_or_in_none) {
  KvCache cache(two_groups(8, 1));
  const KvCache::Admission one = admit(cache, count_from(0, 2 * kPage));
  CHECK(!reserve(cache, {one.seq_id}, {2 * kPage}));
  CHECK_EQ(cache.stats().n_held, 0);
  CHECK(reserve(cache, {one.seq_id}, {kPage}));
  cache.check_integrity();
}

TEST(layers_lie_in_the_pool_of_their_group) {
  KvCacheConfig config = with_storage(Dtype::s8, 4);
  config.groups.push_back({2, kPage});
  config.layer_groups = {1, 0, 1};
  const KvCache cache(config);
  CHECK_EQ(cache.stats().groups[1].page_bytes, 2 * cache.stats().groups[0].page_bytes);
  CHECK_EQ(cache.stats().pool_bytes, (4 + 2 * 2) * cache.stats().groups[0].page_bytes);
  int mark = 0;
  for (const std::int32_t layer : {0, 1, 2}) {
    const PagedKvView view = cache.layer(layer);
    const auto n_bytes = static_cast<std::size_t>(view.head_stride_bytes * view.n_kv_heads);
    for (std::int32_t page = 0; page < (layer == 1 ? 4 : 2); ++page) {
      std::memset(view.k_tile(page, 0), ++mark, n_bytes);
      std::memset(view.v_tile(page, 0), ++mark, n_bytes);
    }
  }
  mark = 0;
  for (const std::int32_t layer : {0, 1, 2}) {
    const PagedKvView view = cache.layer(layer);
    const std::int64_t n_bytes = view.head_stride_bytes * view.n_kv_heads;
    for (std::int32_t page = 0; page < (layer == 1 ? 4 : 2); ++page) {
      const std::byte first{static_cast<unsigned char>(++mark)}, second{static_cast<unsigned char>(++mark)};
      CHECK(view.k_tile(page, 0)[0] == first && view.k_tile(page, 0)[n_bytes - 1] == first);
      CHECK(view.v_tile(page, 0)[0] == second && view.v_tile(page, 0)[n_bytes - 1] == second);
    }
  }
}

// So that a sequence makes the system clear no more memory than its pages have.
TEST(a_page_of_all_layers_lies_together) {
  for (const Dtype dtype : {Dtype::f32, Dtype::s8}) {
    const KvCache cache(with_storage(dtype));
    const std::int64_t page_bytes = cache.stats().groups[0].page_bytes;
    const std::byte* begin = cache.layer(0).k_tile(0, 0);
    for (std::int32_t layer = 0; layer < 3; ++layer) {
      const PagedKvView view = cache.layer(layer);
      for (std::int32_t page = 0; page < 4; ++page) {
        const std::byte* of_page = begin + page * page_bytes;
        CHECK(view.k_tile(page, 0) >= of_page && view.v_tile(page, 0) > view.k_tile(page, 0));
        CHECK(view.v_tile(page, 1) + view.head_stride_bytes <= of_page + page_bytes);
        if (dtype == Dtype::f32) continue;
        CHECK(reinterpret_cast<std::byte*>(view.k_scales(page, 0)) >= of_page);
        CHECK(reinterpret_cast<std::byte*>(view.v_scales(page, 1) + kPage) <= of_page + page_bytes);
      }
    }
  }
}

TEST(tiles_have_the_layout_of_the_view) {
  for (const Dtype dtype : {Dtype::f32, Dtype::s8}) {
    const KvCache cache(with_storage(dtype));
    const std::int64_t element = dtype == Dtype::f32 ? 4 : 1;
    const PagedKvView view = cache.layer(1);
    CHECK_EQ(view.head_dim_padded, 48);
    CHECK_EQ(view.head_stride_bytes, 48 * kPage * element);
    CHECK_EQ(view.page_stride_bytes, cache.stats().groups[0].page_bytes);
    CHECK_EQ(reinterpret_cast<std::uintptr_t>(view.k) % 64, std::uintptr_t{0});
    CHECK_EQ(reinterpret_cast<std::uintptr_t>(view.v) % 64, std::uintptr_t{0});
    CHECK_EQ(view.k_scale == nullptr, dtype == Dtype::f32);
    const std::int64_t scales = dtype == Dtype::f32 ? 0 : 2 * kPage * 4;
    const std::int64_t page_bytes = cache.stats().groups[0].page_bytes;
    CHECK_EQ(page_bytes, 3 * 2 * (2 * view.head_stride_bytes + scales));
    CHECK_EQ(cache.stats().pool_bytes, 4 * page_bytes);
  }
}

// Writes every byte of every page, tile by tile, so that tiles that overlap would spoil each other.
TEST(no_two_tiles_share_memory) {
  for (const Dtype dtype : {Dtype::f32, Dtype::s8}) {
    const KvCache cache(with_storage(dtype));
    const auto for_each_tile = [&](auto visit) {
      int mark = 0;
      for (std::int32_t layer = 0; layer < 3; ++layer) {
        const PagedKvView view = cache.layer(layer);
        const auto tile_bytes = static_cast<std::size_t>(view.head_stride_bytes);
        for (std::int32_t page = 0; page < 4; ++page) {
          for (std::int32_t head = 0; head < 2; ++head) {
            visit(view.k_tile(page, head), tile_bytes, ++mark);
            visit(view.v_tile(page, head), tile_bytes, ++mark);
            if (view.k_scale == nullptr) continue;
            visit(view.k_scales(page, head), kPage * sizeof(float), ++mark);
            visit(view.v_scales(page, head), kPage * sizeof(float), ++mark);
          }
        }
      }
    };
    for_each_tile([](void* memory, std::size_t n_bytes, int mark) { std::memset(memory, mark, n_bytes); });
    for_each_tile([](const void* memory, std::size_t n_bytes, int mark) {
      const std::vector<unsigned char> want(n_bytes, static_cast<unsigned char>(mark));
      CHECK(std::memcmp(memory, want.data(), n_bytes) == 0);
    });
  }
}

TEST(a_copied_page_has_the_same_bytes_in_every_layer) {
  for (const Dtype dtype : {Dtype::f32, Dtype::s8}) {
    KvCache cache(with_storage(dtype));
    const std::int64_t parent = run(cache, count_from(0, 3));
    const std::int32_t from = cache.page_table(parent)[0];
    for (std::int32_t layer = 0; layer < 3; ++layer) {
      const PagedKvView view = cache.layer(layer);
      const auto tile_bytes = static_cast<std::size_t>(2 * view.head_stride_bytes);
      std::memset(view.k_tile(from, 0), 10 + layer, tile_bytes);
      std::memset(view.v_tile(from, 0), 20 + layer, tile_bytes);
      if (dtype == Dtype::f32) continue;
      std::memset(view.k_scales(from, 0), 30 + layer, 2 * kPage * sizeof(float));
      std::memset(view.v_scales(from, 0), 40 + layer, 2 * kPage * sizeof(float));
    }
    const std::int64_t child = cache.fork(parent);
    extend(cache, child, {1});
    const std::int32_t to = cache.page_table(child)[0];
    CHECK(to != from);
    for (std::int32_t layer = 0; layer < 3; ++layer) {
      const PagedKvView view = cache.layer(layer);
      const auto tile_bytes = static_cast<std::size_t>(2 * view.head_stride_bytes);
      CHECK(std::memcmp(view.k_tile(to, 0), view.k_tile(from, 0), tile_bytes) == 0);
      CHECK(std::memcmp(view.v_tile(to, 0), view.v_tile(from, 0), tile_bytes) == 0);
      if (dtype == Dtype::f32) continue;
      CHECK(std::memcmp(view.k_scales(to, 0), view.k_scales(from, 0), 2 * kPage * sizeof(float)) == 0);
      CHECK(std::memcmp(view.v_scales(to, 0), view.v_scales(from, 0), 2 * kPage * sizeof(float)) == 0);
    }
  }
}

TEST(pages_may_lie_elsewhere_than_in_host_memory) {
  const KvCacheConfig config = with_storage(Dtype::f16);
  KvCache cache(config, std::make_unique<TextPages>(config));
  const std::int64_t parent = run(cache, count_from(0, 3));
  texts_of(cache).page(0, cache.page_table(parent)[0]) = "three tokens";
  const std::int64_t child = cache.fork(parent);
  extend(cache, child, {1});
  CHECK(cache.page_table(child)[0] != cache.page_table(parent)[0]);
  CHECK_EQ(texts_of(cache).page(0, cache.page_table(child)[0]), "three tokens");
  CHECK_EQ(cache.stats().groups[0].page_bytes, 1000);
  CHECK_THROWS(std::logic_error, "these lie elsewhere", cache.layer(0));
  CHECK_THROWS(std::invalid_argument, "needs a storage", KvCache(config, nullptr));
}

// More address space than 32 bits can count; only the pages touched cost memory.
TEST(the_last_page_of_a_large_pool_can_be_written) {
  KvCacheConfig config = with_storage(Dtype::s8, (1 << 16) + 1);
  config.layer_groups = {0};
  config.n_kv_heads = 16;
  config.head_dim = 128;
  const KvCache cache(config);
  const PagedKvView view = cache.layer(0);
  const std::int32_t last = config.groups[0].n_pages - 1;
  CHECK(view.page_stride_bytes * last > std::int64_t{std::numeric_limits<std::int32_t>::max()});
  std::memset(view.v_tile(last, config.n_kv_heads - 1), 1, static_cast<std::size_t>(view.head_stride_bytes));
  view.v_scales(last, config.n_kv_heads - 1)[kPage - 1] = 1.0f;
}
