// The pairs (token, choice) of a batch in the order of their experts, and the tiles that products walk.
//
// A counting sort in three phases. Pairs of one expert stay in the order of their tokens, whatever order threads run
// in: counts are of whole numbers, and places come from prefix sums and votes, never from who came first. Pairs lie
// without gaps; a tile says where its own begin and how many they are, so nothing is padded.
//
// Reads the ids twice, 4 bytes a pair, and writes 4: microseconds, so what counts is launches. Up to kSortChunk pairs
// (every decode) one block does all phases in one launch; above, a block a chunk counts, one block scans, a block a
// chunk places.
#pragma once

#include "machine.h"
#include "moe.h"

namespace llm_decoder {
namespace gpu {

constexpr int kSortWarps = 8;
constexpr int kSortThreads = kSortWarps * kWarpSize;
constexpr int kSortWarpPairs = kSortChunk / kSortWarps;  // in a row, of one warp

constexpr int sort_shared_bytes(int n_experts) {
  return static_cast<int>(round_up(std::int64_t{4} * (kSortWarps * n_experts + 2 * kSortWarps), kSharedAlign));
}

class MoeSort {
 public:
  // The number of threads is kSortThreads.
  GPU_FUNCTION explicit MoeSort(const MoeSortArgs& args)
      : args_(args),
        n_experts_(args.pairs.n_experts),
        counts_(shared_array<int>(0, kSortWarps * n_experts_ + 2 * kSortWarps)) {}

  // How many pairs of the chunk go to each expert, into chunk_begin.
  GPU_FUNCTION void count_chunk(int chunk) const {
    zero(n_experts_);
    sync_block();
    for (int i = thread_index(); i < pairs_left(chunk, 0, kSortChunk); i += kSortThreads) {
      const int expert = expert_in_chunk(chunk, i);
      if (expert != kNotHere) counts_.atomic_add(expert, 1);
    }
    sync_block();
    for (int e = thread_index(); e < n_experts_; e += kSortThreads) chunk_row(chunk)[e] = counts_.load(e);
  }

  // Counts to places: within an expert in chunk_begin, of experts in expert_begin; writes the tiles.
  GPU_FUNCTION void scan_experts(int n_chunks) const {
    // A thread has a run of neighbouring experts.
    const int n_own = (n_experts_ + kSortThreads - 1) / kSortThreads;
    const int first = thread_index() * n_own;
    const int end = first + n_own < n_experts_ ? first + n_own : n_experts_;
    int n_own_pairs = 0, n_own_tiles = 0;
    for (int e = first; e < end; ++e) {
      const int n_of_expert = scan_chunks(e, n_chunks);
      args_.expert_begin[e] = n_of_expert;
      n_own_pairs += n_of_expert;
      n_own_tiles += tiles_of(n_of_expert);
    }
    int begin = sum_before(n_own_pairs, 0);
    int tile = sum_before(n_own_tiles, kSortWarps);
    for (int e = first; e < first + n_own; ++e) {
      const int n_of_expert = e < end ? args_.expert_begin[e] : 0;
      if (e < end) args_.expert_begin[e] = begin;
      write_tiles(e, begin, n_of_expert, tile);
      begin += n_of_expert;
      tile += tiles_of(n_of_expert);
    }
    if (thread_index() == kSortThreads - 1) args_.n_tiles[0] = tile;
  }

  // Writes the chunk's pairs to their places. Each warp has a run of its own.
  GPU_FUNCTION void place_chunk(int chunk) const {
    zero(kSortWarps * n_experts_);
    sync_block();
    const int run = warp_index() * kSortWarpPairs;
    const auto mine = counts_.part(warp_index() * n_experts_, n_experts_);
    const int n_mine = pairs_left(chunk, run, kSortWarpPairs);
    for (int i = lane(); i < n_mine; i += kWarpSize) {
      const int expert = expert_in_chunk(chunk, run + i);
      if (expert != kNotHere) mine.atomic_add(expert, 1);
    }
    sync_block();
    for (int e = thread_index(); e < n_experts_; e += kSortThreads) {
      int begin = args_.expert_begin[e] + chunk_row(chunk)[e];
      for (int warp = 0; warp < kSortWarps; ++warp) {
        const int n = counts_.load(warp * n_experts_ + e);
        counts_.store(warp * n_experts_ + e, begin);
        begin += n;
      }
    }
    sync_block();
    for (int i = 0; i < n_mine; i += kWarpSize) {
      const int at = run + i + lane();
      const int expert = expert_in_chunk(chunk, at);
      const std::uint32_t same = lanes_with_the_same(expert);
      const int n_before = count_bits(same & ((1u << lane()) - 1));
      const int begin = expert != kNotHere ? mine.load(expert) : 0;
      sync_warp();
      if (expert != kNotHere) {
        args_.sorted_pairs[begin + n_before] = chunk * kSortChunk + at;
        if (n_before == 0) mine.store(expert, begin + count_bits(same));
      }
      sync_warp();
    }
  }

 private:
  GPU_FUNCTION int* chunk_row(int chunk) const { return args_.chunk_begin + std::int64_t{chunk} * n_experts_; }

  // Of `most` pairs of the chunk from `begin` on, how many there are.
  GPU_FUNCTION int pairs_left(int chunk, int begin, int most) const {
    const std::int64_t left = args_.pairs.n_pairs - (std::int64_t{chunk} * kSortChunk + begin);
    return left < most ? static_cast<int>(left) : most;
  }

  GPU_FUNCTION int expert_in_chunk(int chunk, int i) const {
    const std::int64_t pair = std::int64_t{chunk} * kSortChunk + i;
    return pair < args_.pairs.n_pairs ? args_.pairs.expert_of(pair) : kNotHere;
  }

  // Counts of an expert's chunks to sums of the chunks before; returns the sum of all. Several loads fly at once.
  GPU_FUNCTION int scan_chunks(int expert, int n_chunks) const {
    constexpr int kAtOnce = 8;
    int sum = 0;
    for (int first = 0; first < n_chunks; first += kAtOnce) {
      int n[kAtOnce];
      GPU_UNROLL
      for (int i = 0; i < kAtOnce; ++i) n[i] = first + i < n_chunks ? chunk_row(first + i)[expert] : 0;
      GPU_UNROLL
      for (int i = 0; i < kAtOnce; ++i) {
        if (first + i < n_chunks) chunk_row(first + i)[expert] = sum;
        sum += n[i];
      }
    }
    return sum;
  }

  GPU_FUNCTION int tiles_of(int n_pairs) const { return (n_pairs + args_.tile_rows - 1) / args_.tile_rows; }

  GPU_FUNCTION void zero(int n) const {
    for (int i = thread_index(); i < n; i += kSortThreads) counts_.store(i, 0);
  }

  // The sum of `value` over the threads before this one. Uses warp sums at `slot` behind the counts.
  GPU_FUNCTION int sum_before(int value, int slot) const {
    const int at = kSortWarps * n_experts_ + slot;
    int sum = value;
    for (int distance = 1; distance < kWarpSize; distance *= 2) {
      const int before = shuffle(sum, lane() >= distance ? lane() - distance : lane());
      if (lane() >= distance) sum += before;
    }
    if (lane() == kWarpSize - 1) counts_.store(at + warp_index(), sum);
    sync_block();
    int before = sum - value;
    for (int warp = 0; warp < warp_index(); ++warp) before += counts_.load(at + warp);
    return before;
  }

  // The tiles of an expert a lane, all lanes together.
  GPU_FUNCTION void write_tiles(int expert, int begin, int n, int tile) const {
    for (int from = 0; from < kWarpSize; ++from) {
      const int their_n = shuffle(n, from);
      if (their_n == 0) continue;
      const int their_expert = shuffle(expert, from), their_begin = shuffle(begin, from),
                their_tile = shuffle(tile, from);
      for (int i = lane(); i < tiles_of(their_n); i += kWarpSize) {
        const int skipped = i * args_.tile_rows, left = their_n - skipped;
        args_.tiles[their_tile + i] = {their_expert, their_begin + skipped,
                                       left < args_.tile_rows ? left : args_.tile_rows};
      }
    }
  }

  GPU_FUNCTION std::uint32_t lanes_with_the_same(int expert) const {
    std::uint32_t same = ballot(expert != kNotHere);
    for (int bit = 1; bit < n_experts_; bit *= 2) {
      const std::uint32_t with = ballot((expert & bit) != 0);
      same &= (expert & bit) != 0 ? with : ~with;
    }
    return same;
  }

  static GPU_FUNCTION int count_bits(std::uint32_t bits) {
    bits -= bits >> 1 & 0x55555555u;
    bits = (bits & 0x33333333u) + (bits >> 2 & 0x33333333u);
    return static_cast<int>(((bits + (bits >> 4)) & 0x0f0f0f0fu) * 0x01010101u >> 24);
  }

  const MoeSortArgs& args_;
  const int n_experts_;
  const Shared<int> counts_;  // [kSortWarps, n_experts], then the warps' sums
};

// Everything in one block, for up to kSortChunk pairs.
GPU_KERNEL moe_sort_kernel(const MoeSortArgs args) {
  const MoeSort sort(args);
  sort.count_chunk(0);
  sync_block();
  sort.scan_experts(1);
  sync_block();
  sort.place_chunk(0);
}

// grid.x: chunks.
GPU_KERNEL moe_count_kernel(const MoeSortArgs args) { MoeSort(args).count_chunk(block_index().x); }

// One block.
GPU_KERNEL moe_scan_kernel(const MoeSortArgs args) { MoeSort(args).scan_experts(n_sort_chunks(args.pairs.n_pairs)); }

// grid.x: chunks.
GPU_KERNEL moe_place_kernel(const MoeSortArgs args) { MoeSort(args).place_chunk(block_index().x); }

}  // namespace gpu
}  // namespace llm_decoder
