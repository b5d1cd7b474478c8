#include "host_warpgroups.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <string>

namespace llm_decoder {
namespace gpu {
namespace {

constexpr int kChunkBytes = 16;
constexpr int kAllRegisters = 65536;

int registers_at_launch(int n_threads) { return std::min(255, kAllRegisters / n_threads) / 8 * 8; }

// What sums hold while a product writes them: a NaN that no computation makes.
constexpr std::uint32_t kHeldBits = 0x7fc0dead;

void join(Clock& clock, const Clock& other) {
  for (std::size_t i = 0; i < clock.size(); ++i) clock[i] = std::max(clock[i], other[i]);
}

// The fields of a descriptor, in bytes.
int address_of(std::uint64_t descriptor) { return static_cast<int>(descriptor & 0x3fff) * 16; }
int leading_of(std::uint64_t descriptor) { return static_cast<int>(descriptor >> 16 & 0x3fff) * 16; }
int stride_of(std::uint64_t descriptor) { return static_cast<int>(descriptor >> 32 & 0x3fff) * 16; }

// Bits 7 to 9 of an address are added to bits 4 to 6 without carry.
int swizzled(int address) { return address ^ ((address >> 7 & 7) << 4); }

// Where element (row, k) of an operand that is stored by its rows lies, and (k, column) of one stored by what is
// summed.
int byte_of_rows(std::uint64_t descriptor, int row, int k) {
  return swizzled(address_of(descriptor) + row / 8 * stride_of(descriptor) + row % 8 * 128 + k * 2);
}
int byte_of_columns(std::uint64_t descriptor, int k, int column) {
  return swizzled(address_of(descriptor) + column / 64 * leading_of(descriptor) + k / 8 * stride_of(descriptor) +
                  k % 8 * 128 + column % 64 * 2);
}

// The chunks of 16 bytes that a product reads, each once.
std::vector<int> chunks_of(const WarpProduct& p) {
  std::vector<int> chunks;
  if (p.operands[0] == nullptr) {
    for (int row = 0; row < 64; ++row) {
      for (int k = 0; k < 16; k += 8) chunks.push_back(byte_of_rows(p.a, row, k) / kChunkBytes);
    }
    for (int column = 0; column < p.n; ++column) {
      for (int k = 0; k < 16; k += 8) chunks.push_back(byte_of_rows(p.b, column, k) / kChunkBytes);
    }
  } else {
    for (int k = 0; k < 16; ++k) {
      for (int column = 0; column < p.n; column += 8) {
        chunks.push_back(byte_of_columns(p.b, k, column) / kChunkBytes);
      }
    }
  }
  std::sort(chunks.begin(), chunks.end());
  chunks.erase(std::unique(chunks.begin(), chunks.end()), chunks.end());
  return chunks;
}

}  // namespace

HostBlock::Warpgroups::Warpgroups(int n_threads_, int shared_bytes)
    : n_threads(n_threads_),
      n_warps(n_threads_ / kWarpSize),
      known(static_cast<std::size_t>(n_threads_), Clock(static_cast<std::size_t>(n_threads_ + kMaxBarriers), 0)),
      fenced(known),
      reading(static_cast<std::size_t>(shared_bytes / kChunkBytes + 1), 0),
      read_times(reading.size()),
      incoming(reading.size(), 0),
      warps(static_cast<std::size_t>(n_warps)),
      groups(static_cast<std::size_t>((n_threads_ + kWarpgroupSize - 1) / kWarpgroupSize)),
      n_registers(static_cast<std::size_t>(n_threads_), registers_at_launch(n_threads_)),
      waits_for(static_cast<std::size_t>(n_threads_), 0) {
  barriers.reserve(kMaxBarriers);
}

HostBlock::Warpgroups::Barrier* HostBlock::Warpgroups::find(int offset) {
  const auto found =
      std::find_if(barriers.begin(), barriers.end(), [offset](const Barrier& b) { return b.offset == offset; });
  return found == barriers.end() ? nullptr : &*found;
}

void HostBlock::Warpgroups::release(int thread) {
  const auto t = static_cast<std::size_t>(thread);
  known[t][t] = time++;
}

void HostBlock::Warpgroups::meet(int begin, int end) {
  Clock all_known(known[0].size(), 0), all_fenced(all_known);
  for (int t = begin; t < end; ++t) {
    release(t);
    join(all_known, known[static_cast<std::size_t>(t)]);
    join(all_fenced, fenced[static_cast<std::size_t>(t)]);
  }
  for (int t = begin; t < end; ++t) {
    known[static_cast<std::size_t>(t)] = all_known;
    fenced[static_cast<std::size_t>(t)] = all_fenced;
  }
}

void HostBlock::Warpgroups::complete(Barrier& barrier) {
  ++barrier.phase;
  barrier.n_missing = barrier.n_arrivals;
  barrier.known = barrier.known_next;
  barrier.fenced = barrier.fenced_next;
}

HostBlock::Warpgroups& HostBlock::warpgroups() {
  if (warpgroups_ == nullptr) {
    if (n_threads() % kWarpgroupSize != 0) fail("a block of ", n_threads(), " threads is not of whole warpgroups");
    warpgroups_ = std::make_unique<Warpgroups>(n_threads(), shape_.shared_bytes);
  }
  return *warpgroups_;
}

std::uint32_t HostBlock::time() const { return warpgroups_ == nullptr ? 1 : warpgroups_->time; }

bool HostBlock::knows(const Touch& before) const {
  return warpgroups_ != nullptr && before.thread >= 0 &&
         warpgroups_->known[static_cast<std::size_t>(thread_)][static_cast<std::size_t>(before.thread)] >= before.time;
}

// Whether the asynchronous proxy sees, for this thread, what was written then.
bool HostBlock::is_fenced(const Touch& before) const {
  if (before.thread == kNobody || before.thread >= n_threads()) return true;
  return before.thread >= 0 &&
         warpgroups_->fenced[static_cast<std::size_t>(thread_)][static_cast<std::size_t>(before.thread)] >= before.time;
}

void HostBlock::check_incoming(int offset, int n_bytes, const char* what) const {
  if (warpgroups_ == nullptr) return;
  for (int chunk = offset / kChunkBytes; chunk * kChunkBytes < offset + n_bytes; ++chunk) {
    if (warpgroups_->incoming[static_cast<std::size_t>(chunk)] != 0) {
      fail(what, "s shared bytes from ", chunk * kChunkBytes, " on, where a copy by tensor map may land");
    }
  }
}

// Products of other warps, and those of this one, must be over before what they read may change.
void HostBlock::check_products(int offset, int n_bytes, const char* what) const {
  if (warpgroups_ == nullptr) return;
  for (int chunk = offset / kChunkBytes; chunk * kChunkBytes < offset + n_bytes; ++chunk) {
    const auto c = static_cast<std::size_t>(chunk);
    if (warpgroups_->reading[c] != 0) {
      fail(what, "s shared bytes from ", chunk * kChunkBytes, " on, which a product in flight may read");
    }
    const Clock& times = warpgroups_->read_times[c];
    for (std::size_t w = 0; w < times.size(); ++w) {
      if (warpgroups_->known[static_cast<std::size_t>(thread_)][w * kWarpSize] < times[w]) {
        fail(what, "s shared bytes from ", chunk * kChunkBytes, " on, which a product of warp ", w,
             " read with no barrier between");
      }
    }
  }
}

void HostBlock::sync_warpgroup() {
  Warpgroups& all = warpgroups();
  const int index = thread_ / kWarpgroupSize;
  Warpgroups::Group& group = all.groups[static_cast<std::size_t>(index)];
  if (++group.n_arrived < kWarpgroupSize) return wait(State::at_group_barrier);
  group.n_arrived = 0;
  all.meet(index * kWarpgroupSize, (index + 1) * kWarpgroupSize);
  for (int t = index * kWarpgroupSize; t < (index + 1) * kWarpgroupSize; ++t) wake(t, State::at_group_barrier);
}

void HostBlock::change_registers(int n, bool takes) {
  Warpgroups& all = warpgroups();
  int& mine = all.n_registers[static_cast<std::size_t>(thread_)];
  if (n % 8 != 0 || n < 24 || n > 256) fail("registers of a thread are a multiple of 8 from 24 to 256, got ", n);
  if (takes ? n < mine : n > mine) fail(takes ? "takes " : "gives up to ", n, " registers and has ", mine);
  const auto n_after = [&all, &mine, n] {
    int sum = n - mine;
    for (const int each : all.n_registers) sum += each;
    return sum;
  };
  const int n_launched = n_threads() * registers_at_launch(n_threads());  // all that there is to trade
  while (n_after() > n_launched) wait(State::at_registers);
  mine = n;
  for (int t = 0; t < n_threads(); ++t) wake(t, State::at_registers);
}

void HostBlock::init_barrier(int offset, int n_arrivals) {
  Warpgroups& all = warpgroups();
  check_range(offset, 8, "barrier object");
  if (n_arrivals < 1 || all.find(offset) != nullptr) fail("initialises the barrier object at ", offset, " wrongly");
  if (all.barriers.size() == Warpgroups::kMaxBarriers) fail("has more than ", Warpgroups::kMaxBarriers, " barriers");
  Warpgroups::Barrier barrier;
  barrier.offset = offset;
  barrier.n_arrivals = barrier.n_missing = n_arrivals;
  barrier.init = now();
  barrier.known = barrier.fenced = barrier.known_next = barrier.fenced_next = Clock(all.known[0].size(), 0);
  all.barriers.push_back(barrier);
}

void HostBlock::publish_barriers() {
  for (Warpgroups::Barrier& barrier : warpgroups().barriers) barrier.is_published = true;
}

int HostBlock::barrier_at(int offset) {
  Warpgroups& all = warpgroups();
  const Warpgroups::Barrier* const barrier = all.find(offset);
  if (barrier == nullptr) fail("there is no barrier object at ", offset);
  if (!barrier->is_published || !is_ordered(barrier->init)) {
    fail("uses the barrier object at ", offset, ", which thread ", barrier->init.thread, " has not shown to it");
  }
  return static_cast<int>(barrier - all.barriers.data());
}

void HostBlock::arrive(int offset, int n_bytes) {
  const int index = barrier_at(offset);
  Warpgroups::Barrier& barrier = warpgroups_->barrier(index);
  if (barrier.n_missing == 0) fail("arrives at the barrier object at ", offset, " once more than it waits for");
  const auto t = static_cast<std::size_t>(thread_);
  warpgroups_->release(thread_);
  join(barrier.known_next, warpgroups_->known[t]);
  join(barrier.fenced_next, warpgroups_->fenced[t]);
  barrier.n_bytes += n_bytes;
  --barrier.n_missing;
  complete_if_over(index);
}

void HostBlock::complete_if_over(int index) {
  Warpgroups::Barrier& barrier = warpgroups_->barrier(index);
  if (barrier.n_missing > 0 || barrier.n_bytes != 0) return;
  warpgroups_->complete(barrier);
  for (int t = 0; t < n_threads(); ++t) {
    if (warpgroups_->waits_for[static_cast<std::size_t>(t)] == index) wake(t, State::at_barrier_object);
  }
}

void HostBlock::wait_barrier(int offset, int parity) {
  const int index = barrier_at(offset);
  if (parity != 0 && parity != 1) fail("waits for a phase of parity ", parity);
  const auto t = static_cast<std::size_t>(thread_);
  while (static_cast<int>(warpgroups_->barrier(index).phase % 2) == parity) {
    warpgroups_->waits_for[t] = index;
    wait(State::at_barrier_object);
  }
  join(warpgroups_->known[t], warpgroups_->barrier(index).known);
  join(warpgroups_->fenced[t], warpgroups_->barrier(index).fenced);
}

void HostBlock::fence_async() {
  Warpgroups& all = warpgroups();
  all.release(thread_);
  join(all.fenced[static_cast<std::size_t>(thread_)], all.known[static_cast<std::size_t>(thread_)]);
}

void HostBlock::load_box(int offset, const TensorBoxes& boxes, const BoxPlace& place, int barrier_offset) {
  constexpr char kWhat[] = "load";
  const int barrier = barrier_at(barrier_offset);
  const int n_rows = boxes.box[1] * boxes.box[2] * boxes.box[3];
  if (boxes.box[0] != kBlockColumns) fail("loads boxes of rows that are not ", kBlockRowBytes, " bytes");
  if (offset % kPatternBytes != 0) fail("loads a box to ", offset, ", where its pattern does not begin");
  for (int row = 0; row < n_rows; ++row) {
    for (int chunk = 0; chunk < kBlockRowBytes; chunk += kChunkBytes) {
      const int at = offset + row * kBlockRowBytes + chunk;
      check_free(at, kChunkBytes, kWhat);
      for (int i = at; i < at + kChunkBytes; ++i) check_write(cells_[static_cast<std::size_t>(i)], i, kWhat);
      if (!is_fenced(cells_[static_cast<std::size_t>(at)].write)) {
        fail("loads a box over shared byte ", at, ", which was written with no fence to the asynchronous proxy");
      }
      warpgroups_->incoming[static_cast<std::size_t>(at / kChunkBytes)] = static_cast<std::uint8_t>(barrier + 1);
    }
  }
  warpgroups_->barrier(barrier).copies.push_back({offset, n_rows, boxes, place});
}

// Lets the copies of one barrier land for which a phase waits that nothing else keeps. False where there is none.
bool HostBlock::land_boxes() {
  if (warpgroups_ == nullptr) return false;
  std::vector<int> ready;
  for (std::size_t i = 0; i < warpgroups_->barriers.size(); ++i) {
    const Warpgroups::Barrier& barrier = warpgroups_->barriers[i];
    if (!barrier.copies.empty() && barrier.n_missing == 0) ready.push_back(static_cast<int>(i));
  }
  if (ready.empty()) return false;
  std::size_t which = 0;
  if (order_.kind == Order::Kind::descending) which = ready.size() - 1;
  if (order_.kind == Order::Kind::shuffled) which = random_() % ready.size();
  Warpgroups::Barrier& barrier = warpgroups_->barrier(ready[which]);
  const int copier = warpgroups_->copier_of(barrier);
  for (const Warpgroups::BoxCopy& copy : barrier.copies) {
    for (int row = 0; row < copy.n_rows; ++row) land_row(copy.boxes, copy.place, row, copy.offset, copier);
    barrier.n_bytes -= copy.n_rows * kBlockRowBytes;
  }
  barrier.copies.clear();
  const auto c = static_cast<std::size_t>(copier);
  barrier.known_next[c] = barrier.fenced_next[c] = warpgroups_->time++;
  complete_if_over(ready[which]);
  return true;
}

// Row `row` of a box that goes to `offset`.
void HostBlock::land_row(const TensorBoxes& boxes, const BoxPlace& place, int row, int offset, int copier) {
  const int in_box[4] = {0, row % boxes.box[1], row / boxes.box[1] % boxes.box[2], row / boxes.box[1] / boxes.box[2]};
  bool is_inside = true;
  std::int64_t from = 0;
  for (int axis = 1; axis < 4; ++axis) {
    const std::int64_t at = place.at[axis] + in_box[axis];
    is_inside &= at >= 0 && at < boxes.size[axis];
    from += at * boxes.stride_bytes[axis];
  }
  const auto* const data = static_cast<const std::byte*>(boxes.data);
  for (int i = 0; i < kBlockColumns; ++i) {
    const int channel = place.at[0] + i;
    const int to = swizzled(offset + row * kBlockRowBytes + i * 2);
    std::byte* const element = &shared_[static_cast<std::size_t>(to)];
    if (is_inside && channel < boxes.size[0]) {
      std::memcpy(element, data + from + channel * 2, 2);
    } else {
      std::memset(element, 0, 2);
    }
  }
  for (int i = 0; i < kBlockRowBytes; ++i) {
    const auto at = static_cast<std::size_t>(offset + row * kBlockRowBytes + i);
    cells_[at].write = {static_cast<std::int16_t>(copier), n_block_syncs_, 0, warpgroups_->time};
    cells_[at].read = Touch{};
    cells_[at].is_atomic = false;
    warpgroups_->incoming[at / kChunkBytes] = 0;
  }
}

void HostBlock::begin_products() { warpgroups().warps[static_cast<std::size_t>(thread_ / kWarpSize)].has_begun = true; }

void HostBlock::issue_product(const WarpProduct& p) {
  Warpgroups& all = warpgroups();
  const int warp_index = thread_ / kWarpSize;
  Warpgroups::WarpProducts& warp = all.warps[static_cast<std::size_t>(warp_index)];
  if (!warp.has_begun) fail("multiplies with no begin_products since the last group");
  for (const std::uint64_t descriptor : {p.operands[0] == nullptr ? p.a : p.b, p.b}) {
    if (descriptor >> 62 != 1 || (descriptor >> 49 & 7) != 0 || stride_of(descriptor) % kPatternBytes != 0) {
      fail("multiplies by a descriptor that is not of the pattern of 128 bytes: ", descriptor);
    }
  }
  std::vector<Warpgroups::Issued>& issued = all.groups[static_cast<std::size_t>(warp_index / 4)].issued;
  const Warpgroups::Issued mine{p.a, p.b, p.n, p.adds};
  if (warp.n_issued == issued.size()) issued.push_back(mine);
  if (issued[warp.n_issued++] != mine) fail("multiplies other matrices than the warps beside it");

  Warpgroups::InFlight product{p, {}, chunks_of(p), warp.n_groups};
  for (const int chunk : product.chunks) check_operand(chunk * kChunkBytes);
  for (const int chunk : product.chunks) all.reading[static_cast<std::size_t>(chunk)] |= 1u << warp_index;
  if (p.operands[0] != nullptr) {
    for (const std::uint32_t* const words : p.operands) {
      product.operands.insert(product.operands.end(), words, words + 4);
    }
  }
  const bool is_held = std::any_of(warp.held.begin(), warp.held.end(),
                                   [&p](const Warpgroups::Held& held) { return held.registers[0] == p.sums[0]; });
  if (!is_held) {
    Warpgroups::Held held{{}, p.n / 2, {}};
    for (int l = 0; l < kWarpSize; ++l) {
      held.registers[l] = p.sums[l];
      held.values.insert(held.values.end(), p.sums[l], p.sums[l] + held.n);
      for (int i = 0; i < held.n; ++i) std::memcpy(p.sums[l] + i, &kHeldBits, sizeof(float));
    }
    warp.held.push_back(held);
  }
  warp.in_flight.push_back(product);
}

// 16 bytes that a product of this thread's warp is going to read.
void HostBlock::check_operand(int offset) {
  constexpr char kWhat[] = "multiplie";
  check_range(offset, kChunkBytes, kWhat);
  check_incoming(offset, kChunkBytes, kWhat);
  for (int i = offset; i < offset + kChunkBytes; ++i) {
    const Cell& cell = cells_[static_cast<std::size_t>(i)];
    if (cell.copy_of != kNobody)
      fail("multiplies shared byte ", i, " where a copy of thread ", cell.copy_of, " may land");
    if (cell.write.thread == kNobody) fail("multiplies shared byte ", i, ", which nobody wrote");
    if (!is_ordered(cell.write)) {
      fail("multiplies shared byte ", i, ", which ", name_of(cell.write), " wrote with no barrier between");
    }
    if (!is_fenced(cell.write)) {
      fail("multiplies shared byte ", i, ", which ", name_of(cell.write),
           " wrote with no fence to the asynchronous proxy between");
    }
  }
}

void HostBlock::commit_products() {
  Warpgroups::WarpProducts& warp = warpgroups().warps[static_cast<std::size_t>(thread_ / kWarpSize)];
  ++warp.n_groups;
  warp.has_begun = false;
}

// Computes what must be over, as late as this.
void HostBlock::wait_products(int n_in_flight) {
  Warpgroups& all = warpgroups();
  const int warp_index = thread_ / kWarpSize, first = warp_index * kWarpSize;
  Warpgroups::WarpProducts& warp = all.warps[static_cast<std::size_t>(warp_index)];
  const auto in_flight = std::find_if(warp.in_flight.begin(), warp.in_flight.end(),
                                      [&](const auto& each) { return each.group >= warp.n_groups - n_in_flight; });
  std::vector<int> chunks;
  for (auto each = warp.in_flight.begin(); each != in_flight; ++each) {
    const auto held = std::find_if(warp.held.begin(), warp.held.end(), [&each](const Warpgroups::Held& h) {
      return h.registers[0] == each->product.sums[0];
    });
    compute(each->product, each->operands, held->values);
    chunks.insert(chunks.end(), each->chunks.begin(), each->chunks.end());
  }
  warp.in_flight.erase(warp.in_flight.begin(), in_flight);

  for (auto held = warp.held.begin(); held != warp.held.end();) {
    const bool is_used = std::any_of(warp.in_flight.begin(), warp.in_flight.end(),
                                     [&held](const auto& each) { return each.product.sums[0] == held->registers[0]; });
    if (is_used) {
      ++held;
      continue;
    }
    for (int l = 0; l < kWarpSize; ++l) {
      for (int i = 0; i < held->n; ++i) {
        if (std::memcmp(held->registers[l] + i, &kHeldBits, sizeof(float)) != 0) {
          fail("sum ", i, " of lane ", l, " was changed while a product wrote it");
        }
        held->registers[l][i] = held->values[static_cast<std::size_t>(l * held->n + i)];
      }
    }
    held = warp.held.erase(held);
  }

  // The warp has read all of it now, and its lanes know.
  const std::uint32_t time = all.time;
  all.meet(first, first + kWarpSize);
  for (const int chunk : chunks) {
    const auto c = static_cast<std::size_t>(chunk);
    all.reading[c] &= ~(1u << warp_index);
    all.read_times[c].resize(static_cast<std::size_t>(all.n_warps), 0);
    all.read_times[c][static_cast<std::size_t>(warp_index)] = time;
  }
  for (const auto& each : warp.in_flight) {
    for (const int chunk : each.chunks) all.reading[static_cast<std::size_t>(chunk)] |= 1u << warp_index;
  }
}

// This warp's 16 rows of a product.
void HostBlock::compute(const WarpProduct& p, const std::vector<std::uint32_t>& operands, std::vector<float>& sums) {
  const auto element_at = [&](int byte) {
    std::uint16_t bits;
    std::memcpy(&bits, &shared_[static_cast<std::size_t>(byte)], sizeof(bits));
    return p.element(bits);
  };
  float a[16][16];
  std::vector<std::array<float, 16>> b(static_cast<std::size_t>(p.n));
  const bool has_operands = !operands.empty();
  for (int column = 0; column < p.n; ++column) {
    for (int k = 0; k < 16; ++k) {
      b[static_cast<std::size_t>(column)][static_cast<std::size_t>(k)] =
          element_at(has_operands ? byte_of_columns(p.b, k, column) : byte_of_rows(p.b, column, k));
    }
  }
  if (has_operands) {
    for (int l = 0; l < kWarpSize; ++l) {
      if (std::memcmp(p.operands[l], &operands[static_cast<std::size_t>(l * 4)], 4 * sizeof(std::uint32_t)) != 0) {
        fail("an operand of lane ", l, " was changed while a product read it");
      }
      for (int i = 0; i < 8; ++i) {
        const MatrixPlace place = place_of_operand(l, i / 2, i % 2);
        const std::uint32_t word = operands[static_cast<std::size_t>(l * 4 + i / 2)];
        a[place.row][place.column] = p.element(static_cast<std::uint16_t>(word >> (16 * (i % 2))));
      }
    }
  } else {
    const int first_row = thread_ / kWarpSize % 4 * 16;
    for (int row = 0; row < 16; ++row) {
      for (int k = 0; k < 16; ++k) a[row][k] = element_at(byte_of_rows(p.a, first_row + row, k));
    }
  }
  for (int l = 0; l < kWarpSize; ++l) {
    for (int i = 0; i < p.n / 2; ++i) {
      const MatrixPlace place = place_of_sum(l, i);
      const std::array<float, 16>& column = b[static_cast<std::size_t>(place.column)];
      double sum = 0;
      for (int k = 0; k < 16; ++k) sum += double{a[place.row][k] * column[static_cast<std::size_t>(k)]};
      float& value = sums[static_cast<std::size_t>(l * (p.n / 2) + i)];
      value = static_cast<float>(p.adds ? value + sum : sum);
    }
  }
}

// What no block may leave behind.
void HostBlock::check_all_over() const {
  if (warpgroups_ == nullptr) return;
  for (const Warpgroups::Barrier& barrier : warpgroups_->barriers) {
    check_state(barrier.copies.empty(), "launch", "block (", index_.x, ", ", index_.y, ", ", index_.z,
                ") ended with copies by tensor map in flight");
  }
  for (std::size_t w = 0; w < warpgroups_->warps.size(); ++w) {
    const Warpgroups::WarpProducts& warp = warpgroups_->warps[w];
    check_state(warp.in_flight.empty(), "launch", "warp ", w, " ended with products in flight");
    check_state(warp.n_issued == warpgroups_->groups[w / 4].issued.size(), "launch", "warp ", w,
                " did not come to every product of its warpgroup");
  }
}

void HostBlock::meet_all(int begin, int end) {
  if (warpgroups_ != nullptr) warpgroups_->meet(begin, end);
}

std::string HostBlock::name_of(const Touch& touch) const {
  if (touch.thread >= n_threads()) return "a copy by tensor map";
  return touch.thread >= 0 ? concat("thread ", touch.thread) : "several threads";
}

std::string HostBlock::describe_barrier_of(std::size_t thread) const {
  const Warpgroups::Barrier& barrier = warpgroups_->barriers[static_cast<std::size_t>(warpgroups_->waits_for[thread])];
  return concat("wait at the barrier object at ", barrier.offset, ", which lacks ", barrier.n_missing, " arrivals and ",
                barrier.n_bytes, " bytes");
}

}  // namespace gpu
}  // namespace llm_decoder
