// The bookkeeping of a ring of stages between who fills and who uses them, and of blocks that stay for many pieces of
// work: plain arithmetic on counts.
//
// A stage has two barriers: `full`, that its fill has landed, and `empty`, that all have done with it. A barrier is in
// phase 0 at first and moves on whenever all that it waits for have come; who waits for parity p passes once a phase of
// that parity is over, and at once where none has begun.
#pragma once

namespace llm_decoder {
namespace gpu {

// Of the n-th tile (from 0, over all work of a block) in a ring of n_stages.
template <int n_stages>
struct TileRing {
  static constexpr int stage(int n) { return n % n_stages; }
  // Who uses tile n waits for this phase of `full`: the one of its fill.
  static constexpr int full_parity(int n) { return n / n_stages % 2; }
  // Who fills waits for this phase of `empty`: the one in which the tile before it in the stage was used up. Before the
  // first there is none, and the wait passes.
  static constexpr int empty_parity(int n) { return 1 - n / n_stages % 2; }
};

// The `round`-th piece of work of block `block` of n_blocks. Work is sorted by its length; rounds go back and forth, so
// that who had the longest of one round has the shortest of the next.
constexpr int work_of(int round, int block, int n_blocks) {
  return round * n_blocks + (round % 2 == 0 ? block : n_blocks - 1 - block);
}

// Registers of a thread: that a block of three warpgroups is launched with, and that those who fill and those who
// multiply have after they have traded. What the block was launched with is all there is to trade, though the
// multiprocessor may have some left.
struct RegisterBudget {
  int launched, filling, multiplying;
};
constexpr int kMultiprocessorRegisters = 65536;
constexpr bool fits(const RegisterBudget& budget, int n_multiplying_groups) {
  constexpr int kGroup = 128;
  const bool are_whole = budget.filling % 8 == 0 && budget.multiplying % 8 == 0 && budget.launched % 8 == 0;
  const bool are_trades = budget.filling >= 24 && budget.filling <= budget.launched &&
                          budget.multiplying >= budget.launched && budget.multiplying <= 256;
  const int n_launched = (1 + n_multiplying_groups) * budget.launched;
  return are_whole && are_trades && kGroup * n_launched <= kMultiprocessorRegisters &&
         budget.filling + n_multiplying_groups * budget.multiplying <= n_launched;
}

}  // namespace gpu
}  // namespace llm_decoder
