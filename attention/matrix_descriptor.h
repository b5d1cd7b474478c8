// Matrices in shared memory as the products of a warpgroup read them, and which element each register of a product is:
// plain arithmetic, from the PTX manual (asynchronous warpgroup-level matrix instructions).
//
// A matrix of 16-bit elements is cut into blocks of 64 columns. A block's rows are 128 bytes, one below the other; the
// eight chunks of 16 bytes of row r trade places, chunk c lies where c ^ (r % 8) would. Copies by tensor map leave
// their boxes so, and products read them so without conflicts of banks. The pattern repeats after 8 rows, 1024 bytes,
// and is one of addresses: matrices begin at multiples of it.
#pragma once

#include <cstdint>

namespace llm_decoder {
namespace gpu {

constexpr int kWarpgroupSize = 128;  // threads, four warps in a row from a multiple of four on

constexpr int kBlockColumns = 64;
constexpr int kBlockRowBytes = 128;
constexpr int kPatternBytes = 1024;

// Bytes from the begin of a matrix of n_rows rows to chunk `chunk`, of 8 elements, of row `row`.
constexpr int matrix_chunk(int n_rows, int row, int chunk) {
  return chunk / 8 * n_rows * kBlockRowBytes + row * kBlockRowBytes + ((chunk % 8) ^ (row % 8)) * 16;
}

// The 64 bits that tell a product where its operand lies: the address, the leading and the stride offset in units of 16
// bytes at bits 0, 16 and 32, 14 bits each, and the pattern above, 1, at bit 62.
constexpr std::uint64_t describe_matrix(std::uint32_t address, std::uint32_t leading_bytes,
                                        std::uint32_t stride_bytes) {
  constexpr std::uint32_t kMask = 0x3ffffu;
  return std::uint64_t{(address & kMask) >> 4} | std::uint64_t{(leading_bytes & kMask) >> 4} << 16 |
         std::uint64_t{(stride_bytes & kMask) >> 4} << 32 | std::uint64_t{1} << 62;
}

// An operand whose rows are those of the product and whose columns are summed over: A, and a B that is stored by its
// columns (keys). Eight rows lie a stride apart; the leading offset is not read.
constexpr std::uint64_t describe_rows(std::uint32_t address) { return describe_matrix(address, 16, kPatternBytes); }

// A B whose rows are summed over (values): eight rows lie a stride apart, 64 columns a leading offset.
constexpr std::uint64_t describe_columns(std::uint32_t address, int n_rows) {
  return describe_matrix(address, static_cast<std::uint32_t>(n_rows * kBlockRowBytes), kPatternBytes);
}

// The same matrix from so many bytes further on.
constexpr std::uint64_t advance(std::uint64_t descriptor, int n_bytes) {
  return descriptor + static_cast<std::uint64_t>(n_bytes >> 4);
}

// Bytes to the `step`-th 16 of what is summed over, of a matrix of n_rows rows: columns within a block, then the next
// block; or rows.
constexpr int step_along_columns(int n_rows, int step) { return step / 4 * n_rows * kBlockRowBytes + step % 4 * 32; }
constexpr int step_along_rows(int step) { return step * 16 * kBlockRowBytes; }

struct MatrixPlace {
  int row, column;
};

// Of a product's sums [64, n]: where number i of thread `thread` of the warpgroup belongs.
constexpr MatrixPlace place_of_sum(int thread, int i) {
  return {thread / 32 * 16 + thread % 32 / 4 + i / 2 % 2 * 8, i / 4 * 8 + thread % 4 * 2 + i % 2};
}

// Of an A [64, 16] in registers: where half `half` of word `word` belongs.
constexpr MatrixPlace place_of_operand(int thread, int word, int half) {
  return {thread / 32 * 16 + thread % 32 / 4 + word % 2 * 8, word / 2 * 8 + thread % 4 * 2 + half};
}

}  // namespace gpu
}  // namespace llm_decoder
