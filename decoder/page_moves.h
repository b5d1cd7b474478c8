// How the pages of one group move: within the pool, to slots in pinned host memory, and back.
//
// Steps, and whatever else touches pages, are queued on one stream, and the bus is slow. So nothing crosses it from or
// to a page of the pool. Behind the pool lie some more pages, the stage; copies between the two take their turn among
// the steps, and the bus has streams of its own, one for each direction:
//
//            stream of steps          a stream of its own
//   store    page ──────────> stage ─────────────────────> slot
//   load     page <────────── stage <───────────────────── slot
//
// A step that runs waits for no store, and one that needs a page waits for that page to arrive. Places of the stage are
// taken in turns; a turn waits, on the device, for what it carried before.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "device_memory.h"
#include "llm_decoder/page_storage.h"
#include "page_pool.h"
#include "stream_mark.h"

namespace llm_decoder {
namespace gpu {

// Elements of a page, then each array of scales, where elements of a byte have some.
struct GroupMemory {
  std::int32_t n_pages = 0, n_all_pages = 0;  // without the stage, and with it
  std::int64_t page_bytes = 0;                // of its elements
  std::byte* pages = nullptr;                 // [n_all_pages, page_bytes]
  int n_scale_arrays = 0;                     // 0: there are none
  std::int64_t scale_bytes = 0;               // of a page in one array
  std::byte* scales = nullptr;                // [n_scale_arrays, n_all_pages, scale_bytes]
  const PagePool* pools = nullptr;            // [1 + n_scale_arrays] on the device: the same
};

class PageMoves {
 public:
  struct Streams {
    Stream steps, stores, loads;
  };

  // Pages that lie behind those of the pool.
  static std::int32_t n_stage_pages(std::int64_t page_bytes, std::int32_t n_slots);

  // What is queued on the streams must be over before it goes.
  PageMoves(const GroupMemory& memory, std::int32_t n_slots, const Streams& streams);

  // As if one after the other, in the order of calls, and before anything that is queued on the stream of steps after
  // queue().
  void copy(std::int32_t from, std::int32_t to);
  void store(std::int32_t page, std::int32_t slot);
  void load(std::int32_t slot, std::int32_t page);
  void queue();

  MoveTimes load_times() const { return load_times_; }

 private:
  static constexpr int kTurns = 4;

  struct Move {
    std::int32_t from, to;
  };
  using Moves = std::vector<Move>;

  // One direction. Batch i has the places of turn i % kTurns on the stage.
  struct Lane {
    struct Turn {
      StreamMark begun = StreamMark::timed(), crossed = StreamMark::timed();  // the bus
      StreamMark copied;                                                      // between pool and stage
      std::int64_t n_bytes = 0;                                               // that cross and are not counted yet
    };

    Turn& turn() { return turns[static_cast<std::size_t>(n_batches % kTurns)]; }
    void look();  // how many batches are over
    // The stream goes on when the last of this lane's batches that moved these slots has crossed.
    void hold_back_for(const Moves& moves, std::int32_t Move::* slot, Stream stream) const;

    std::int32_t first_place = 0;  // a page of the stage
    std::array<Turn, kTurns> turns;
    std::int64_t n_batches = 0;
    std::int64_t n_over = 0;                  // that have crossed, as far as is known
    std::vector<std::int64_t> batch_of_slot;  // [n_slots], the last that moved it; -1: none
  };

  std::int32_t place(const Lane& lane, std::size_t i) const {
    return lane.first_place + static_cast<std::int32_t>(lane.n_batches % kTurns) * batch_pages_ +
           static_cast<std::int32_t>(i);
  }
  bool is_written(std::int32_t page) const;
  bool is_read(std::int32_t page) const;
  bool is_stored(std::int32_t slot) const;

  void upload_pairs();
  void launch_copies(std::size_t first, std::size_t n);  // of the pairs that were uploaded
  void leave_pool();
  void fetch_slots();
  void fill_slots();
  void enter_pool();
  void measure_loads();

  void add_pair(std::int64_t from, std::int64_t to) { pairs_.insert(pairs_.end(), {from, to}); }
  std::byte* scales_at(std::int32_t page) const { return memory_.scales + page * memory_.scale_bytes; }
  std::byte* scale_slot(std::int32_t slot) const { return scale_slots_.data() + slot * slot_scale_bytes(); }
  std::int64_t slot_scale_bytes() const { return memory_.n_scale_arrays * memory_.scale_bytes; }

  const GroupMemory memory_;
  const Streams streams_;
  const std::int32_t n_slots_, batch_pages_;
  const PinnedArray<std::byte> slots_;        // [n_slots, page_bytes]
  const PinnedArray<std::byte> scale_slots_;  // [n_slots, n_scale_arrays, scale_bytes]
  const DeviceArray<std::int64_t> device_pairs_;
  Lane storing_, loading_;

  Moves stores_, copies_, loads_;    // asked for and not queued
  std::vector<std::int64_t> pairs_;  // scratch
  MoveTimes load_times_;
};

}  // namespace gpu
}  // namespace llm_decoder
