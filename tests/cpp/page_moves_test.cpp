// Moves of pages between a pool and its slots, with streams that do their work in any order that their waits allow.
#include "page_moves.h"

#include <array>
#include <cstring>
#include <random>
#include <utility>
#include <vector>

#include "check.h"
#include "host_block.h"
#include "host_stream.h"

namespace {

using namespace llm_decoder;
using namespace llm_decoder::gpu;

// A batch has no more moves than there are slots, nor more than 256.
constexpr std::int32_t kPages = 6, kSlots = 5;
constexpr std::int32_t kManyPages = 300;
constexpr std::int64_t kPageBytes = 64, kScaleBytes = 16;
constexpr int kScaleArrays = 3;
constexpr int kUnknown = -1;

// A pool whose pages hold one byte over and over, the machine that moves them, and what each page and slot must hold.
class Pool {
 public:
  explicit Pool(std::uint64_t seed, int n_scale_arrays = kScaleArrays, std::int32_t n_pages = kPages,
                std::int32_t n_slots = kSlots)
      : n_scale_arrays_(n_scale_arrays),
        n_pages_(n_pages),
        n_all_(n_pages + PageMoves::n_stage_pages(kPageBytes, n_slots)),
        pages_(n_all_ * kPageBytes),
        scales_(n_scale_arrays * n_all_ * kScaleBytes),
        pools_(pools()),
        random_(seed),
        moves_(memory(), n_slots, {steps_.get(), stores_.get(), loads_.get()}),
        page_(static_cast<std::size_t>(n_pages), kUnknown),
        slot_(static_cast<std::size_t>(n_slots), kUnknown) {
    set_late_streams(true);
    set_host_order({Order::Kind::shuffled, seed});  // moves of a launch are at once
  }
  ~Pool() {
    finish();
    set_host_order({});
    set_late_streams(false);
  }

  void copy(int from, int to) {
    moves_.copy(from, to);
    page_at(to) = page_at(from);
  }
  void store(int page, int slot) {
    moves_.store(page, slot);
    slot_at(slot) = page_at(page);
  }
  void load(int slot, int page) {
    moves_.load(slot, page);
    page_at(page) = slot_at(slot);
  }

  // A step writes to a page.
  void write(int page) {
    moves_.queue();
    const int tag = next_tag_++ % 200;
    gpu::queue(steps_.get(), [this, page, tag] {
      for_each_part(page,
                    [tag](std::byte* part, std::int64_t n) { std::memset(part, tag, static_cast<std::size_t>(n)); });
    });
    page_at(page) = tag;
  }
  // A step reads all pages.
  void read() {
    moves_.queue();
    gpu::queue(steps_.get(), [this, want = page_] {
      for (int page = 0; page < n_pages_; ++page) n_wrong_ += !holds(page, want[static_cast<std::size_t>(page)]);
    });
  }
  // Stream `which`, of steps, stores or loads, does some of its work, or all.
  void let_run_all(int which) { synchronize(stream(which)); }
  void let_run(int which) {
    const Stream stream = this->stream(which);
    stream->run_until(random_() % (stream->n_queued() + 1));
  }
  // Steps do all their work; whether stores have to do theirs for that.
  bool steps_wait_for_stores() {
    moves_.queue();
    bool are_over = false;
    gpu::queue(stores_.get(), [&are_over] { are_over = true; });
    synchronize(steps_.get());
    const bool were_over = are_over;
    synchronize(stores_.get());
    return were_over;
  }
  int finish() {
    read();
    for (const OwnedStream* stream : {&steps_, &stores_, &loads_}) synchronize(stream->get());
    return n_wrong_;
  }

  int below(int n) { return static_cast<int>(random_() % static_cast<std::uint64_t>(n)); }
  bool is_known(int slot) { return slot_at(slot) != kUnknown; }
  PageMoves& moves() { return moves_; }

 private:
  Stream stream(int which) const {
    return std::array{&steps_, &stores_, &loads_}[static_cast<std::size_t>(which)]->get();
  }
  int& page_at(int page) { return page_[static_cast<std::size_t>(page)]; }
  int& slot_at(int slot) { return slot_[static_cast<std::size_t>(slot)]; }
  std::byte* scales() const { return scales_.data(); }
  DeviceArray<PagePool> pools() const {
    DeviceArray<PagePool> all(1 + n_scale_arrays_);
    all.data()[0] = {pages_.data(), kPageBytes};
    for (int i = 0; i < n_scale_arrays_; ++i) all.data()[1 + i] = {scales() + i * n_all_ * kScaleBytes, kScaleBytes};
    return all;
  }
  GroupMemory memory() const {
    GroupMemory memory;
    memory.n_pages = n_pages_;
    memory.n_all_pages = n_all_;
    memory.page_bytes = kPageBytes;
    memory.pages = pages_.data();
    memory.n_scale_arrays = n_scale_arrays_;
    memory.scale_bytes = kScaleBytes;
    memory.scales = scales();
    memory.pools = pools_.data();
    return memory;
  }
  template <class Fn>
  void for_each_part(int page, const Fn& fn) const {
    fn(pages_.data() + page * kPageBytes, kPageBytes);
    for (int i = 0; i < n_scale_arrays_; ++i) fn(scales() + (i * n_all_ + page) * kScaleBytes, kScaleBytes);
  }
  bool holds(int page, int tag) const {
    bool is_same = true;
    for_each_part(page, [&](const std::byte* part, std::int64_t n) {
      for (std::int64_t i = 0; i < n; ++i) is_same = is_same && (tag == kUnknown || part[i] == std::byte(tag));
    });
    return is_same;
  }

  const int n_scale_arrays_;
  const std::int32_t n_pages_, n_all_;
  const DeviceArray<std::byte> pages_, scales_;
  const DeviceArray<PagePool> pools_;
  const OwnedStream steps_, stores_, loads_;
  std::mt19937_64 random_;
  PageMoves moves_;
  std::vector<int> page_, slot_;  // what must be in each
  int next_tag_ = 0, n_wrong_ = 0;
};

TEST(a_page_comes_back_from_its_slot_as_it_was) {
  for (const int n_scale_arrays : {0, kScaleArrays}) {
    Pool pool(0, n_scale_arrays);
    pool.write(0);
    pool.store(0, 3);
    pool.write(0);
    pool.load(3, 4);
    CHECK_EQ(pool.finish(), 0);
  }
}

TEST(moves_of_one_batch_are_as_if_one_after_the_other) {
  Pool pool(0);
  for (int page = 0; page < kPages; ++page) pool.write(page);
  pool.store(0, 0);
  pool.store(1, 1);
  pool.load(0, 1);   // into a page that has just left
  pool.store(2, 0);  // to a slot that is still being read
  pool.load(0, 5);
  pool.copy(5, 2);  // out of a page that has just come
  pool.copy(3, 5);
  pool.copy(4, 3);  // into a page that is still being copied
  pool.store(3, 2);
  pool.store(4, 2);
  pool.load(2, 0);
  CHECK_EQ(pool.finish(), 0);
}

TEST(whatever_stream_goes_first_every_page_is_what_the_moves_so_far_made_it) {
  for (std::uint64_t seed = 0; seed < 80; ++seed) {
    const int favourite = static_cast<int>(seed % 4);  // the one stream that goes on by itself; 3: any
    Pool pool(seed, seed % 2 == 0 ? kScaleArrays : 0);
    for (int page = 0; page < kPages; ++page) pool.write(page);
    for (int i = 0; i < 400; ++i) {
      const int verb = pool.below(16), page = pool.below(kPages), slot = pool.below(kSlots);
      if (verb < 5) {
        pool.store(page, slot);
      } else if (verb < 10) {
        if (pool.is_known(slot)) pool.load(slot, page);
      } else if (verb < 11) {
        pool.copy(page, (page + 1) % kPages);
      } else if (verb < 12) {
        pool.write(page);
      } else if (verb < 13) {
        pool.read();
      } else if (verb < 14) {
        pool.moves().queue();
      } else {
        pool.let_run(favourite < 3 ? favourite : pool.below(3));
      }
    }
    CHECK_EQ(pool.finish(), 0);
  }
}

TEST(more_moves_than_a_batch_carries_are_several) {
  Pool pool(0, 0, kManyPages, 2 * kManyPages);
  for (const int first_slot : {0, kManyPages}) {
    for (int page = 0; page < kManyPages; ++page) pool.write(page);
    for (int page = 0; page < kManyPages; ++page) pool.store(page, first_slot + page);
  }
  pool.read();
  pool.let_run_all(0);
  for (const int first_slot : {0, kManyPages}) {
    for (int page = 0; page < kManyPages; ++page) pool.load(first_slot + page, (page + 100) % kManyPages);
    pool.read();
  }
  pool.let_run_all(2);
  CHECK_EQ(pool.finish(), 0);
}

TEST(a_store_is_not_waited_for_by_the_steps_that_follow) {
  Pool pool(0);
  pool.write(0);
  pool.store(0, 1);
  pool.write(0);
  CHECK(!pool.steps_wait_for_stores());
}

TEST(loads_that_are_over_are_measured) {
  Pool pool(0);
  pool.write(0);
  pool.store(0, 1);
  pool.load(1, 2);
  pool.load(1, 3);
  CHECK_EQ(pool.moves().load_times().n_bytes, 0);
  CHECK_EQ(pool.finish(), 0);
  pool.copy(2, 3);
  pool.moves().queue();
  CHECK_EQ(pool.moves().load_times().n_bytes, 2 * (kPageBytes + kScaleArrays * kScaleBytes));
  CHECK(pool.moves().load_times().seconds > 0.0);
}

}  // namespace
