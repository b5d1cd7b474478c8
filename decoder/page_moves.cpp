#include "page_moves.h"

#include <algorithm>
#include <utility>

#include "copy_blocks_launch.h"
#include "swap_blocks.h"

namespace llm_decoder {
namespace gpu {
namespace {

// Bytes that cross the bus together: enough that what a launch costs is little beside them.
constexpr std::int64_t kBatchBytes = std::int64_t{8} << 20;
constexpr std::int32_t kMostPages = 256;  // of a batch

std::int32_t pages_of_batch(std::int64_t page_bytes, std::int32_t n_slots) {
  if (n_slots == 0) return 0;
  return static_cast<std::int32_t>(
      std::clamp<std::int64_t>(kBatchBytes / page_bytes, 1, std::min(n_slots, kMostPages)));
}

}  // namespace

void PageMoves::Lane::look() {
  for (std::int64_t i = std::max(n_over, n_batches - kTurns); i < n_batches; ++i) {
    if (!turns[static_cast<std::size_t>(i % kTurns)].crossed.is_passed()) return;
    n_over = i + 1;
  }
}

// Batches cross one after the other: where another has a batch's turn by now, the other's end will do.
void PageMoves::Lane::hold_back_for(const Moves& moves, std::int32_t Move::* slot, Stream stream) const {
  std::int64_t last = -1;
  for (const Move& move : moves) last = std::max(last, batch_of_slot[static_cast<std::size_t>(move.*slot)]);
  if (last < n_over) return;
  turns[static_cast<std::size_t>(last % kTurns)].crossed.hold_back(stream);
}

std::int32_t PageMoves::n_stage_pages(std::int64_t page_bytes, std::int32_t n_slots) {
  return 2 * kTurns * pages_of_batch(page_bytes, n_slots);
}

PageMoves::PageMoves(const GroupMemory& memory, std::int32_t n_slots, const Streams& streams)
    : memory_(memory),
      streams_(streams),
      n_slots_(n_slots),
      batch_pages_(pages_of_batch(memory.page_bytes, n_slots)),
      slots_(n_slots * memory.page_bytes),
      scale_slots_(n_slots * slot_scale_bytes()),
      device_pairs_(2 * (2 * batch_pages_ + kMostPages)) {
  for (Lane* const lane : {&storing_, &loading_}) lane->batch_of_slot.assign(static_cast<std::size_t>(n_slots), -1);
  storing_.first_place = memory.n_pages;
  loading_.first_place = memory.n_pages + kTurns * batch_pages_;
}

bool PageMoves::is_written(std::int32_t page) const {
  const auto is_it = [page](const Move& move) { return move.to == page; };
  return std::any_of(copies_.begin(), copies_.end(), is_it) || std::any_of(loads_.begin(), loads_.end(), is_it);
}

// By a copy: what is stored is read before all else.
bool PageMoves::is_read(std::int32_t page) const {
  return std::any_of(copies_.begin(), copies_.end(), [page](const Move& move) { return move.from == page; });
}

bool PageMoves::is_stored(std::int32_t slot) const {
  return std::any_of(stores_.begin(), stores_.end(), [slot](const Move& move) { return move.to == slot; });
}

void PageMoves::copy(std::int32_t from, std::int32_t to) {
  if (is_read(to) || is_written(from) || is_written(to)) queue();
  copies_.push_back({from, to});
  if (copies_.size() == kMostPages) queue();
}

void PageMoves::store(std::int32_t page, std::int32_t slot) {
  if (is_written(page) || is_stored(slot)) queue();
  stores_.push_back({page, slot});
  if (static_cast<std::int32_t>(stores_.size()) == batch_pages_) queue();
}

void PageMoves::load(std::int32_t slot, std::int32_t page) {
  if (is_stored(slot) || is_read(page) || is_written(page)) queue();
  loads_.push_back({slot, page});
  if (static_cast<std::int32_t>(loads_.size()) == batch_pages_) queue();
}

void PageMoves::queue() {
  if (stores_.empty() && copies_.empty() && loads_.empty()) return;
  storing_.look();
  loading_.look();
  measure_loads();
  upload_pairs();
  leave_pool();
  fetch_slots();
  fill_slots();
  enter_pool();
  storing_.n_batches += stores_.empty() ? 0 : 1;
  loading_.n_batches += loads_.empty() ? 0 : 1;
  stores_.clear();
  copies_.clear();
  loads_.clear();
}

void PageMoves::upload_pairs() {
  pairs_.clear();
  for (std::size_t i = 0; i < stores_.size(); ++i) add_pair(stores_[i].from, place(storing_, i));
  for (const Move& move : copies_) add_pair(move.from, move.to);
  for (std::size_t i = 0; i < loads_.size(); ++i) add_pair(place(loading_, i), loads_[i].to);
  const auto n_bytes = static_cast<std::int64_t>(pairs_.size() * sizeof(std::int64_t));
  // Not pinned: read when the call returns, which waits for nothing where there are at most 64 KB.
  copy_memory(device_pairs_.data(), pairs_.data(), n_bytes, streams_.steps);
}

void PageMoves::launch_copies(std::size_t first, std::size_t n) {
  CopyBlocksLaunch launch;
  launch.pools = memory_.pools;
  launch.pairs = device_pairs_.data() + 2 * first;
  launch.n_pools = 1 + memory_.n_scale_arrays;
  launch.n_pairs = static_cast<int>(n);
  launch.largest_page_bytes = memory_.page_bytes;
  copy_blocks(launch, streams_.steps);
}

// What is stored leaves before anything comes into its page.
void PageMoves::leave_pool() {
  if (stores_.empty()) return;
  Lane::Turn& turn = storing_.turn();
  turn.crossed.hold_back(streams_.steps);
  launch_copies(0, stores_.size());
  turn.copied.record(streams_.steps);
}

void PageMoves::fetch_slots() {
  if (loads_.empty()) return;
  Lane::Turn& turn = loading_.turn();
  turn.copied.hold_back(streams_.loads);
  storing_.hold_back_for(loads_, &Move::from, streams_.loads);
  pairs_.clear();
  for (std::size_t i = 0; i < loads_.size(); ++i) add_pair(loads_[i].from, place(loading_, i));
  turn.begun.record(streams_.loads);
  swap_blocks({slots_.data(), memory_.pages, n_slots_, memory_.n_all_pages, memory_.page_bytes,
               Span<const std::int64_t>(pairs_)},
              streams_.loads);
  for (std::size_t i = 0; i < loads_.size() && memory_.n_scale_arrays > 0; ++i) {
    copy_rows(scales_at(place(loading_, i)), memory_.n_all_pages * memory_.scale_bytes, scale_slot(loads_[i].from),
              memory_.scale_bytes, memory_.scale_bytes, memory_.n_scale_arrays, streams_.loads);
  }
  turn.crossed.record(streams_.loads);
  turn.n_bytes = static_cast<std::int64_t>(loads_.size()) * (memory_.page_bytes + slot_scale_bytes());
  for (const Move& move : loads_) loading_.batch_of_slot[static_cast<std::size_t>(move.from)] = loading_.n_batches;
}

// A slot that is loaded from and stored to at once is read first.
void PageMoves::fill_slots() {
  if (stores_.empty()) return;
  Lane::Turn& turn = storing_.turn();
  turn.copied.hold_back(streams_.stores);
  loading_.hold_back_for(stores_, &Move::to, streams_.stores);
  pairs_.clear();
  for (std::size_t i = 0; i < stores_.size(); ++i) add_pair(place(storing_, i), stores_[i].to);
  swap_blocks({memory_.pages, slots_.data(), memory_.n_all_pages, n_slots_, memory_.page_bytes,
               Span<const std::int64_t>(pairs_)},
              streams_.stores);
  for (std::size_t i = 0; i < stores_.size() && memory_.n_scale_arrays > 0; ++i) {
    copy_rows(scale_slot(stores_[i].to), memory_.scale_bytes, scales_at(place(storing_, i)),
              memory_.n_all_pages * memory_.scale_bytes, memory_.scale_bytes, memory_.n_scale_arrays, streams_.stores);
  }
  turn.crossed.record(streams_.stores);
  for (const Move& move : stores_) storing_.batch_of_slot[static_cast<std::size_t>(move.to)] = storing_.n_batches;
}

void PageMoves::enter_pool() {
  if (copies_.empty() && loads_.empty()) return;
  Lane::Turn& turn = loading_.turn();
  if (!loads_.empty()) turn.crossed.hold_back(streams_.steps);
  launch_copies(stores_.size(), copies_.size() + loads_.size());
  if (!loads_.empty()) turn.copied.record(streams_.steps);
}

void PageMoves::measure_loads() {
  for (Lane::Turn& turn : loading_.turns) {
    if (turn.n_bytes == 0 || !turn.crossed.is_passed()) continue;
    load_times_.n_bytes += std::exchange(turn.n_bytes, 0);
    load_times_.seconds += turn.crossed.seconds_since(turn.begun);
  }
}

}  // namespace gpu
}  // namespace llm_decoder
