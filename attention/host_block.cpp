#include "host_block.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "host_warpgroups.h"
#include "llm_decoder/errors.h"

namespace llm_decoder {
namespace gpu {
namespace {

thread_local HostBlock* running_block = nullptr;
thread_local Order order_of_launches;
// Of blocks that are over, for the next: their stacks are mapped and touched.
thread_local std::vector<std::unique_ptr<Fiber>> spare_fibers;

// A NaN in every type that kernels compute in.
constexpr std::byte kPoison{0xff};

void put_in_order(std::vector<int>& items, const Order& order, std::mt19937_64& random) {
  std::iota(items.begin(), items.end(), 0);
  if (order.kind == Order::Kind::descending) std::reverse(items.begin(), items.end());
  if (order.kind == Order::Kind::shuffled) std::shuffle(items.begin(), items.end(), random);
}

std::unique_ptr<Fiber> take_fiber() {
  if (spare_fibers.empty()) return std::make_unique<Fiber>();
  std::unique_ptr<Fiber> fiber = std::move(spare_fibers.back());
  spare_fibers.pop_back();
  return fiber;
}

}  // namespace

HostBlock::HostBlock(const LaunchShape& shape, const Order& order) : shape_(shape), order_(order), random_(order.seed) {
  constexpr char kPlace[] = "launch";
  check_arg(shape.n_threads > 0 && shape.n_threads <= kMaxBlockThreads && shape.n_threads % kWarpSize == 0, kPlace,
            "n_threads must be a multiple of ", kWarpSize, " up to ", kMaxBlockThreads, ", got ", shape.n_threads);
  check_arg(shape.shared_bytes >= 0 && shape.shared_bytes <= kMaxSharedBytes, kPlace, "shared_bytes must be 0 to ",
            kMaxSharedBytes, ", got ", shape.shared_bytes);
  threads_.resize(static_cast<std::size_t>(shape.n_threads));
  for (Thread& thread : threads_) thread.fiber = take_fiber();
  warps_.resize(threads_.size() / kWarpSize);
  turns_.resize(threads_.size());
}

HostBlock::~HostBlock() {
  for (Thread& thread : threads_) spare_fibers.push_back(std::move(thread.fiber));
}

HostBlock& HostBlock::current() {
  check_state(running_block != nullptr, "HostBlock", "a kernel's words were used outside of a kernel");
  return *running_block;
}

void HostBlock::run(const Dim3& index, void (*body)(const void*), const void* argument) {
  index_ = index;
  body_ = body;
  argument_ = argument;
  error_ = nullptr;
  n_at_barrier_ = 0;
  barrier_value_ = false;
  n_block_syncs_ = 0;
  std::fill(warps_.begin(), warps_.end(), Warp{});
  shared_.assign(static_cast<std::size_t>(shape_.shared_bytes), kPoison);
  cells_.assign(shared_.size(), Cell{});
  warpgroups_.reset();
  for (Thread& thread : threads_) {
    thread.state = State::ready;
    thread.copies.clear();
    thread.n_groups = 0;
    thread.fiber->start(&HostBlock::thread_main, this);
  }

  HostBlock* const outer = running_block;
  running_block = this;
  bool has_moved = true;
  while (has_moved && error_ == nullptr) {
    has_moved = false;
    put_in_order(turns_, order_, random_);
    for (const int turn : turns_) {
      Thread& thread = threads_[static_cast<std::size_t>(turn)];
      if (thread.state != State::ready) continue;
      thread_ = turn;
      thread.fiber->resume();
      has_moved = true;
      if (error_ != nullptr) break;
    }
    if (!has_moved) has_moved = land_boxes();  // as late as that
  }
  running_block = outer;
  if (error_ != nullptr) std::rethrow_exception(error_);
  const bool all_returned =
      std::all_of(threads_.begin(), threads_.end(), [](const Thread& t) { return t.state == State::returned; });
  check_state(all_returned, "launch", "block (", index_.x, ", ", index_.y, ", ", index_.z,
              ") waits for ever: ", describe_waiting());
  check_all_over();
}

void HostBlock::thread_main(void* block) {
  auto* self = static_cast<HostBlock*>(block);
  const auto thread = static_cast<std::size_t>(self->thread_);
  try {
    self->body_(self->argument_);
    if (!self->threads_[thread].copies.empty()) self->fail("returned with asynchronous copies in flight");
  } catch (...) {
    self->error_ = std::current_exception();
  }
  self->threads_[thread].state = State::returned;
}

std::string HostBlock::where() const {
  return concat("[kernel] block (", index_.x, ", ", index_.y, ", ", index_.z, "), thread ", thread_, ": ");
}

// Threads of one fate together: "threads 0-31 at a barrier of the block, threads 32-63 returned".
std::string HostBlock::describe_waiting() const {
  const auto fate = [this](std::size_t i) -> std::string {
    switch (threads_[i].state) {
      case State::at_block_barrier:
        return "wait at a barrier of the block";
      case State::at_collective:
        return concat("wait in ", warps_[i / kWarpSize].collective->name);
      case State::at_group_barrier:
        return "wait at a barrier of their warpgroup";
      case State::at_barrier_object:
        return describe_barrier_of(i);
      case State::at_registers:
        return "wait for registers";
      case State::returned:
        return "have returned";
      case State::ready:
        break;
    }
    return "are ready";
  };
  std::string text;
  for (std::size_t begin = 0; begin < threads_.size();) {
    std::size_t end = begin + 1;
    while (end < threads_.size() && fate(end) == fate(begin)) ++end;
    text += concat(text.empty() ? "" : ", ", "threads ", begin, "-", end - 1, " ", fate(begin));
    begin = end;
  }
  return text;
}

void HostBlock::wait(State state) {
  const int self = thread_;
  threads_[static_cast<std::size_t>(self)].state = state;
  threads_[static_cast<std::size_t>(self)].fiber->yield();
}

void HostBlock::wake(int thread, State from) {
  State& state = threads_[static_cast<std::size_t>(thread)].state;
  if (state == from) state = State::ready;
}

bool HostBlock::sync_block(bool value) {
  barrier_value_ |= value;
  if (++n_at_barrier_ < n_threads()) {
    wait(State::at_block_barrier);
    return last_barrier_value_;
  }
  n_at_barrier_ = 0;
  last_barrier_value_ = barrier_value_;
  barrier_value_ = false;
  ++n_block_syncs_;
  meet_all(0, n_threads());
  for (Thread& thread : threads_) {
    if (thread.state == State::at_block_barrier) thread.state = State::ready;
  }
  return last_barrier_value_;
}

void HostBlock::collective(const Collective& collective, void* slot) {
  const int lane = thread_ % kWarpSize, first = thread_ - lane;
  Warp& warp = warps_[static_cast<std::size_t>(thread_ / kWarpSize)];
  if (warp.n_arrived > 0 && warp.collective->combine != collective.combine) {
    fail("comes to ", collective.name, " where other lanes of its warp are in ", warp.collective->name);
  }
  warp.collective = &collective;
  warp.slots[lane] = slot;
  if (++warp.n_arrived < kWarpSize) {
    wait(State::at_collective);
    return;
  }
  warp.n_arrived = 0;
  if (collective.combine != nullptr) collective.combine(warp.slots);
  for (int i = first; i < first + kWarpSize; ++i) {
    Thread& thread = threads_[static_cast<std::size_t>(i)];
    if (thread.state == State::at_collective) thread.state = State::ready;
  }
}

void HostBlock::sync_warp() {
  static constexpr Collective kSyncWarp{"sync_warp", [](void* const*) {
                                          HostBlock& block = current();
                                          const int warp = block.thread_ / kWarpSize;
                                          ++block.warps_[static_cast<std::size_t>(warp)].n_syncs;
                                          block.meet_all(warp * kWarpSize, (warp + 1) * kWarpSize);
                                        }};
  collective(kSyncWarp, nullptr);
}

HostBlock::Touch HostBlock::now() const {
  return {static_cast<std::int16_t>(thread_), n_block_syncs_,
          warps_[static_cast<std::size_t>(thread_ / kWarpSize)].n_syncs, time()};
}

// Whether a barrier lies between what was done then and what this thread does now.
bool HostBlock::is_ordered(const Touch& before) const {
  if (before.thread == kNobody || before.thread == thread_) return true;
  if (before.n_block_syncs != n_block_syncs_ || knows(before)) return true;
  if (before.thread == kSeveral) return false;
  const int warp = before.thread >= 0 ? before.thread / kWarpSize : kSeveralOfWarp0 - before.thread;
  return warp == thread_ / kWarpSize && before.n_warp_syncs != now().n_warp_syncs;
}

void HostBlock::check_range(int offset, int n_bytes, const char* what) const {
  if (offset < 0 || offset + n_bytes > shape_.shared_bytes) {
    fail(what, " of shared memory at ", offset, "..", offset + n_bytes, ", the block has ", shape_.shared_bytes);
  }
  if (offset % n_bytes != 0) fail(what, " of shared memory at ", offset, ", not aligned to ", n_bytes);
}

// fn(cell, i) for the cells of bytes i. What one becomes, the next become that were the same before: mostly all, for
// elements are touched as a whole.
template <class Fn>
void HostBlock::for_cells(int offset, int n_bytes, const Fn& fn) {
  Cell* const cells = &cells_[static_cast<std::size_t>(offset)];
  for (int i = 0; i < n_bytes;) {
    Cell& first = cells[i];
    const Cell before = first;
    fn(first, offset + i);
    for (++i; i < n_bytes && cells[i] == before; ++i) cells[i] = first;
  }
}

void HostBlock::read_shared(int offset, int n_bytes, void* out) {
  check_range(offset, n_bytes, "read");
  check_incoming(offset, n_bytes, "read");
  for_cells(offset, n_bytes, [this](Cell& cell, int i) {
    if (cell.copy_of != kNobody) fail("reads shared byte ", i, " where a copy of thread ", cell.copy_of, " may land");
    if (cell.write.thread == kNobody) fail("reads shared byte ", i, ", which nobody wrote");
    if (!is_ordered(cell.write)) {
      fail("reads shared byte ", i, ", which ", name_of(cell.write), " wrote with no barrier between");
    }
    add_to(cell.read);
  });
  std::memcpy(out, &shared_[static_cast<std::size_t>(offset)], static_cast<std::size_t>(n_bytes));
}

// Adds this thread to those that others must be ordered against. Who is ordered before it need not be kept.
void HostBlock::add_to(Touch& touch) const {
  const Touch mine = now();
  if (is_ordered(touch)) {
    touch = mine;
    return;
  }
  const int warp = touch.thread >= 0 ? touch.thread / kWarpSize : kSeveralOfWarp0 - touch.thread;
  const bool is_same_warp = touch.thread != kSeveral && warp == thread_ / kWarpSize;
  touch.thread = is_same_warp ? static_cast<std::int16_t>(kSeveralOfWarp0 - warp) : kSeveral;
}

// Bytes that nothing asynchronous is about to fill or may still read.
void HostBlock::check_free(int offset, int n_bytes, const char* what) const {
  check_range(offset, n_bytes, what);
  check_incoming(offset, n_bytes, what);
  check_products(offset, n_bytes, what);
}

void HostBlock::check_write(const Cell& cell, int i, const char* what) const {
  if (cell.copy_of != kNobody) {
    fail(what, "s shared byte ", i, " where a copy of thread ", cell.copy_of, " may land");
  }
  if (!is_ordered(cell.write)) {
    fail(what, "s shared byte ", i, ", which ", name_of(cell.write), " wrote with no barrier between");
  }
  if (!is_ordered(cell.read)) {
    const std::string reader = cell.read.thread >= 0 ? concat("thread ", cell.read.thread) : "several threads";
    fail(what, "s shared byte ", i, ", which ", reader, " read with no barrier between");
  }
}

void HostBlock::mark_written(Cell& cell, bool is_atomic) const {
  if (is_atomic && cell.is_atomic) {
    add_to(cell.write);
  } else {
    cell.write = now();
  }
  cell.read = Touch{};
  cell.is_atomic = is_atomic;
}

void HostBlock::write_shared(int offset, int n_bytes, const void* in) {
  check_free(offset, n_bytes, "write");
  for_cells(offset, n_bytes, [this](Cell& cell, int i) {
    check_write(cell, i, "write");
    mark_written(cell, false);
  });
  std::memcpy(&shared_[static_cast<std::size_t>(offset)], in, static_cast<std::size_t>(n_bytes));
}

std::byte* HostBlock::atomic_shared(int offset, int n_bytes) {
  check_free(offset, n_bytes, "atomically change");
  for_cells(offset, n_bytes, [this](Cell& cell, int i) {
    if (cell.write.thread == kNobody) fail("changes shared byte ", i, ", which nobody wrote");
    if (!cell.is_atomic || !is_ordered(cell.read)) check_write(cell, i, "atomically change");
    mark_written(cell, true);
  });
  return &shared_[static_cast<std::size_t>(offset)];
}

void HostBlock::copy_async(int offset, int n_bytes, const void* from, bool is_valid) {
  check_free(offset, n_bytes, "copie");
  if (reinterpret_cast<std::uintptr_t>(from) % static_cast<std::uintptr_t>(n_bytes) != 0) {
    fail("copies ", n_bytes, " bytes from global memory that is not aligned to them");
  }
  for_cells(offset, n_bytes, [this](Cell& cell, int i) {
    check_write(cell, i, "copie");
    cell.copy_of = static_cast<std::int16_t>(thread_);
  });
  Thread& self = threads_[static_cast<std::size_t>(thread_)];
  self.copies.push_back({offset, n_bytes, is_valid ? from : nullptr, self.n_groups});
}

void HostBlock::commit_copies() { ++threads_[static_cast<std::size_t>(thread_)].n_groups; }

void HostBlock::wait_copies(int n_in_flight) {
  Thread& self = threads_[static_cast<std::size_t>(thread_)];
  const auto first_in_flight = std::find_if(self.copies.begin(), self.copies.end(), [&](const Copy& copy) {
    return copy.group >= self.n_groups - n_in_flight;
  });
  for (auto copy = self.copies.begin(); copy != first_in_flight; ++copy) land(*copy);
  self.copies.erase(self.copies.begin(), first_in_flight);
}

void HostBlock::land(const Copy& copy) {
  std::byte* const to = &shared_[static_cast<std::size_t>(copy.offset)];
  const auto n_bytes = static_cast<std::size_t>(copy.n_bytes);
  if (copy.from != nullptr) {
    std::memcpy(to, copy.from, n_bytes);
  } else {
    std::memset(to, 0, n_bytes);
  }
  for_cells(copy.offset, copy.n_bytes, [this](Cell& cell, int) {
    cell.copy_of = kNobody;
    mark_written(cell, false);
  });
}

void run_grid(const LaunchShape& shape, const Order& order, void (*body)(const void*), const void* argument) {
  check_arg(shape.grid.x > 0 && shape.grid.y > 0 && shape.grid.z > 0 && shape.grid.y < 65536 && shape.grid.z < 65536,
            "launch", "the grid must be at least 1 and at most 65535 in y and z, got ", shape.grid.x, ", ",
            shape.grid.y, ", ", shape.grid.z);
  HostBlock block(shape, order);
  std::mt19937_64 random(order.seed);
  std::vector<int> blocks(static_cast<std::size_t>(shape.grid.x) * static_cast<std::size_t>(shape.grid.y) *
                          static_cast<std::size_t>(shape.grid.z));
  put_in_order(blocks, order, random);
  for (const int i : blocks) {
    block.run({i % shape.grid.x, i / shape.grid.x % shape.grid.y, i / shape.grid.x / shape.grid.y}, body, argument);
  }
}

void set_host_order(const Order& order) { order_of_launches = order; }
const Order& host_order() { return order_of_launches; }

}  // namespace gpu
}  // namespace llm_decoder
