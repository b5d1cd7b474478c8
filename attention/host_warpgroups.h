// What a HostBlock keeps for the words of machine_hopper.h, from the first of them on: barriers that are objects,
// copies by tensor map and products in flight, and who knows of whose doings.
//
// Time is a count that moves on with every release. Each thread has a clock of every other: up to which of its times it
// is ordered after it. A barrier that is an object takes the clocks of who arrives and hands them to who waits. A
// second set of clocks counts only what a fence to the asynchronous proxy lies behind.
#pragma once

#include <cstdint>
#include <vector>

#include "host_block.h"
#include "tensor_boxes.h"

namespace llm_decoder {
namespace gpu {

using Clock = std::vector<std::uint32_t>;

struct HostBlock::Warpgroups {
  Warpgroups(int n_threads, int shared_bytes);

  struct BoxCopy {
    int offset, n_rows;
    TensorBoxes boxes;
    BoxPlace place;
  };

  struct Barrier {
    int offset = 0, n_arrivals = 0;
    int n_missing = 0;         // arrivals to this phase
    std::int64_t n_bytes = 0;  // that copies still owe it
    std::uint32_t phase = 0;   // how many are over
    Touch init;
    bool is_published = false;
    Clock known, fenced;               // of all phases that are over
    Clock known_next, fenced_next;     // with the one that is not
    std::vector<BoxCopy> copies = {};  // in flight
  };

  struct InFlight {
    WarpProduct product;
    std::vector<std::uint32_t> operands;  // [32][4] as they were
    std::vector<int> chunks;              // that it reads
    int group;
  };

  // Sums that products in flight add to, by the registers that they will be in.
  struct Held {
    float* registers[kWarpSize];
    int n;                      // a lane
    std::vector<float> values;  // [32][n]
  };

  struct WarpProducts {
    bool has_begun = false;
    int n_groups = 0;  // committed
    std::vector<InFlight> in_flight;
    std::vector<Held> held;
    std::size_t n_issued = 0;
  };

  // What all four warps of a warpgroup must issue alike.
  struct Issued {
    std::uint64_t a, b;
    int n;
    bool adds;
    bool operator!=(const Issued& o) const { return a != o.a || b != o.b || n != o.n || adds != o.adds; }
  };

  struct Group {
    int n_arrived = 0;  // at its barrier
    std::vector<Issued> issued;
  };

  static constexpr int kMaxBarriers = 32;

  // Who a landed copy is written by: the phases of its barrier, not the thread that asked for it.
  int copier_of(const Barrier& barrier) const { return n_threads + static_cast<int>(&barrier - barriers.data()); }
  Barrier* find(int offset);
  Barrier& barrier(int index) { return barriers[static_cast<std::size_t>(index)]; }

  // All that threads [begin, end) did is known to each of them from now on.
  void meet(int begin, int end);
  void release(int thread);
  void complete(Barrier& barrier);

  const int n_threads, n_warps;
  std::uint32_t time = 1;
  std::vector<Clock> known, fenced;  // of each thread: of each thread and each barrier's copies
  std::vector<Barrier> barriers;
  std::vector<std::uint32_t> reading;  // of each 16 bytes: bit w where products of warp w in flight read them
  std::vector<Clock> read_times;       // when those of warp w were over
  std::vector<std::uint8_t> incoming;  // where a copy by tensor map may land: its barrier + 1
  std::vector<WarpProducts> warps;
  std::vector<Group> groups;
  std::vector<int> n_registers;  // of each thread
  std::vector<int> waits_for;    // barrier of each thread that waits for one
};

}  // namespace gpu
}  // namespace llm_decoder
