// A block of threads on the host: fibers that take turns, shared memory that knows who wrote what, warps that wait for
// their lanes. What a GPU would let pass and get wrong once a week is an error here, on the first run, with the thread,
// the place in shared memory and the rule that was broken.
#pragma once

#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "fiber.h"
#include "llm_decoder/errors.h"
#include "machine_types.h"
#include "tensor_boxes.h"

namespace llm_decoder {
namespace gpu {

// In which order the ready threads of a block take turns, and the blocks of a grid follow each other. A right kernel
// gives the same in any.
struct Order {
  enum class Kind { ascending, descending, shuffled };
  Kind kind = Kind::ascending;
  std::uint64_t seed = 0;  // of shuffled
};

// What every lane of a warp brings to a collective: the last to come calls combine on all 32 slots, lane by lane.
struct Collective {
  const char* name;
  void (*combine)(void* const* slots);
};

// A product that a warp issues with the three others of its warpgroup (machine_hopper.h).
struct WarpProduct {
  std::uint64_t a = 0, b = 0;  // descriptors
  int n = 0;                   // columns
  bool adds = false;           // to what the sums are
  float (*element)(std::uint16_t bits) = nullptr;
  float* sums[kWarpSize] = {};                    // [n / 2] of each lane
  const std::uint32_t* operands[kWarpSize] = {};  // [4] of each lane, or null: `a` tells where they are
};

class HostBlock {
 public:
  // Throws std::invalid_argument for a shape that no GPU takes.
  HostBlock(const LaunchShape& shape, const Order& order);
  ~HostBlock();
  HostBlock(const HostBlock&) = delete;
  HostBlock& operator=(const HostBlock&) = delete;

  // Runs body(argument) once a thread, as block `index` of the grid. Throws std::logic_error for what a kernel does
  // wrong, and whatever body throws.
  void run(const Dim3& index, void (*body)(const void*), const void* argument);

  // The block whose thread is running now.
  static HostBlock& current();

  int thread() const { return thread_; }
  int n_threads() const { return shape_.n_threads; }
  const Dim3& index() const { return index_; }
  const Dim3& grid() const { return shape_.grid; }
  int shared_bytes() const { return shape_.shared_bytes; }

  // True where any thread came with `value` true.
  bool sync_block(bool value);
  void collective(const Collective& collective, void* slot);
  // A collective that orders what the lanes did to shared memory too.
  void sync_warp();

  void read_shared(int offset, int n_bytes, void* out);
  void write_shared(int offset, int n_bytes, const void* in);
  // Read, then changed by this thread with no other between; ordered against other atomics.
  std::byte* atomic_shared(int offset, int n_bytes);
  // from: global memory. Where it is not valid nothing is read, but it is an address all the same.
  void copy_async(int offset, int n_bytes, const void* from, bool is_valid);
  void commit_copies();
  void wait_copies(int n_in_flight);

  // The words of machine_hopper.h, in host_warpgroups.cpp. Barriers that are objects go by where they lie.
  void sync_warpgroup();
  void change_registers(int n, bool takes);
  void init_barrier(int offset, int n_arrivals);
  void publish_barriers();
  void arrive(int offset, int n_bytes);
  void wait_barrier(int offset, int parity);
  void fence_async();
  void load_box(int offset, const TensorBoxes& boxes, const BoxPlace& place, int barrier_offset);
  // By the last lane of a warp to come.
  void begin_products();
  void issue_product(const WarpProduct& product);
  void commit_products();
  void wait_products(int n_in_flight);

  // Throws std::logic_error that begins with block and thread.
  template <class... Parts>
  [[noreturn]] void fail(const Parts&... parts) const {
    throw std::logic_error(where() + concat(parts...));
  }

 private:
  enum class State {
    ready,
    at_block_barrier,
    at_collective,
    at_group_barrier,
    at_barrier_object,
    at_registers,
    returned
  };

  struct Copy {
    int offset, n_bytes;
    const void* from;
    int group;
  };

  struct Thread {
    std::unique_ptr<Fiber> fiber;
    State state = State::returned;
    std::vector<Copy> copies;
    int n_groups = 0;  // committed
  };

  struct Warp {
    const Collective* collective = nullptr;  // what its lanes are gathering for
    int n_arrived = 0;
    void* slots[kWarpSize] = {};
    std::uint32_t n_syncs = 0;
  };

  // Who touched a byte of shared memory since the last barrier between them, and when: after how many barriers of the
  // block and of the warp, and at which time of the warpgroups' clocks.
  struct Touch {
    std::int16_t thread = kNobody;
    std::uint32_t n_block_syncs = 0, n_warp_syncs = 0, time = 0;

    bool operator==(const Touch& other) const {
      return thread == other.thread && n_block_syncs == other.n_block_syncs && n_warp_syncs == other.n_warp_syncs &&
             time == other.time;
    }
  };
  struct Cell {
    Touch write, read;
    std::int16_t copy_of = kNobody;  // the thread whose asynchronous copy is on its way here
    bool is_atomic = false;          // the write was

    bool operator==(const Cell& other) const {
      return write == other.write && read == other.read && copy_of == other.copy_of && is_atomic == other.is_atomic;
    }
  };
  static constexpr std::int16_t kNobody = -1;
  static constexpr std::int16_t kSeveral = -2;         // threads of more than one warp
  static constexpr std::int16_t kSeveralOfWarp0 = -3;  // threads of warp w: -3 - w

  struct Warpgroups;  // what the words of machine_hopper.h need, from the first of them on

  std::string where() const;
  std::string describe_waiting() const;
  void wait(State state);
  void wake(int thread, State from);
  static void thread_main(void* block);
  Touch now() const;
  bool is_ordered(const Touch& before) const;
  void check_range(int offset, int n_bytes, const char* what) const;
  template <class Fn>
  void for_cells(int offset, int n_bytes, const Fn& fn);
  void check_free(int offset, int n_bytes, const char* what) const;
  void check_write(const Cell& cell, int i, const char* what) const;
  void mark_written(Cell& cell, bool is_atomic) const;
  void add_to(Touch& touch) const;
  void land(const Copy& copy);

  Warpgroups& warpgroups();
  int barrier_at(int offset);
  void complete_if_over(int barrier);
  bool knows(const Touch& before) const;
  bool is_fenced(const Touch& before) const;
  void check_incoming(int offset, int n_bytes, const char* what) const;
  void check_products(int offset, int n_bytes, const char* what) const;
  void check_operand(int offset);
  bool land_boxes();
  void land_row(const TensorBoxes& boxes, const BoxPlace& place, int row, int offset, int copier);
  void compute(const WarpProduct& product, const std::vector<std::uint32_t>& operands, std::vector<float>& sums);
  void meet_all(int begin, int end);
  void check_all_over() const;
  std::string name_of(const Touch& touch) const;
  std::string describe_barrier_of(std::size_t thread) const;
  std::uint32_t time() const;

  LaunchShape shape_;
  Dim3 index_;
  Order order_;
  std::mt19937_64 random_;
  std::vector<Thread> threads_;
  std::vector<Warp> warps_;
  std::vector<std::byte> shared_;
  std::vector<Cell> cells_;
  std::vector<int> turns_;
  int thread_ = 0;
  int n_at_barrier_ = 0;
  bool barrier_value_ = false, last_barrier_value_ = false;
  std::uint32_t n_block_syncs_ = 0;
  void (*body_)(const void*) = nullptr;
  const void* argument_ = nullptr;
  std::exception_ptr error_;
  std::unique_ptr<Warpgroups> warpgroups_;
};

// Every block of the grid, one after the other.
void run_grid(const LaunchShape& shape, const Order& order, void (*body)(const void*), const void* argument);

// The order that launches of this thread take from now on; for tests.
void set_host_order(const Order& order);
const Order& host_order();

}  // namespace gpu
}  // namespace llm_decoder
