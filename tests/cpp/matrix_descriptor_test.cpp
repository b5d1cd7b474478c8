// Where matrices of warpgroup products lie, against the formulas of the PTX manual written here a second time, in units
// and order of the manual.
#include <cstdint>
#include <set>
#include <vector>

#include "check.h"
#include "matrix_descriptor.h"
#include "tensor_boxes.h"

namespace {

using namespace llm_decoder::gpu;

TEST(descriptors_have_their_fields_where_the_manual_says) {
  // Address 0x2400, stride 1024, pattern of 128 bytes: 0x240, 1 at bit 16, 64 at bit 32, 1 at bit 62.
  CHECK_EQ(describe_rows(0x2400), 0x4000'0040'0001'0240ull);
  // 128 rows: 64 columns are 16384 bytes apart, 0x400 at bit 16.
  CHECK_EQ(describe_columns(0x8000, 128), 0x4000'0040'0400'0800ull);
  // Addresses have 18 bits, and what is further on is so in the lowest field alone.
  CHECK_EQ(describe_rows(0x3fff0) & 0xffff, 0x3fffull);
  CHECK_EQ(advance(describe_rows(0x2400), 32), describe_rows(0x2420));
}

// "Swizzle<3, 4, 3>": of a byte address the three bits from 7 on are added to those from 4 on without carry.
int swizzle_3_4_3(int byte) { return byte ^ (((byte >> 7) & 0b111) << 4); }

// Canonical layouts of 16-bit elements with 128-byte swizzling, in units of 16 bytes as the manual has them. K-major:
// ((8, m), (8 elements, 2 k)) : ((8, SBO), (1 element, 1)). MN-major: ((8 elements, 8, n), (8, k)) : ((1, 1, LBO), (8,
// SBO)).
int k_major(int start, int stride, int row, int k) {
  return swizzle_3_4_3(start + 16 * (row % 8 * 8 + row / 8 * (stride / 16) + k / 8) + k % 8 * 2);
}
int mn_major(int start, int leading, int stride, int column, int k) {
  return swizzle_3_4_3(start +
                       16 * (column / 8 % 8 + column / 64 * (leading / 16) + k % 8 * 8 + k / 8 * (stride / 16)) +
                       column % 8 * 2);
}

struct Fields {
  int start, leading, stride;
  explicit Fields(std::uint64_t d)
      : start(static_cast<int>((d & 0x3fff) << 4)),
        leading(static_cast<int>((d >> 16 & 0x3fff) << 4)),
        stride(static_cast<int>((d >> 32 & 0x3fff) << 4)) {}
};

// Where an element was put, by what puts it there.
int byte_of(int begin, int n_rows, int row, int column) {
  return begin + matrix_chunk(n_rows, row, column / 8) + column % 8 * 2;
}

TEST(a_product_finds_the_rows_of_each_step_where_they_were_put) {
  for (const int begin : {1024, 5 * 1024}) {
    for (const int n_rows : {64, 128}) {
      for (int step = 0; step < 16; ++step) {
        const Fields at(advance(describe_rows(static_cast<std::uint32_t>(begin)), step_along_columns(n_rows, step)));
        for (int row = 0; row < n_rows; ++row) {
          for (int k = 0; k < 16; ++k) {
            CHECK_EQ(k_major(at.start, at.stride, row, k), byte_of(begin, n_rows, row, step * 16 + k));
          }
        }
      }
    }
  }
}

TEST(a_product_finds_the_columns_of_each_step_where_they_were_put) {
  for (const int n_rows : {64, 128}) {
    for (int step = 0; step < n_rows / 16; ++step) {
      const Fields at(advance(describe_columns(2048, n_rows), step_along_rows(step)));
      for (int column = 0; column < 256; ++column) {
        for (int k = 0; k < 16; ++k) {
          CHECK_EQ(mn_major(at.start, at.leading, at.stride, column, k), byte_of(2048, n_rows, step * 16 + k, column));
        }
      }
    }
  }
}

// A box of rows of 128 bytes: the guide on tensor maps draws chunk j of row i at chunk j ^ (i % 8) of its row.
TEST(copies_by_tensor_map_leave_boxes_where_matrices_have_them) {
  for (int row = 0; row < kBoxKeys; ++row) {
    for (int chunk = 0; chunk < 8; ++chunk) {
      CHECK_EQ(matrix_chunk(128, 64 + row, 8 + chunk), 128 * 128 + kBoxBytes + row * 128 + (chunk ^ (row % 8)) * 16);
    }
  }
}

// The manual's figures: a thread's sums come in pairs of columns, first of row lane / 4, then of the row 8 below, then
// 8 columns on.
TEST(sums_and_operands_are_the_elements_that_the_manual_draws) {
  std::set<std::pair<int, int>> seen;
  for (int thread = 0; thread < 128; ++thread) {
    const int warp = thread >> 5, lane = thread & 31, first_row = (warp << 4) + (lane >> 2), pair = (lane & 3) << 1;
    int i = 0;
    for (int eight = 0; eight < 256; eight += 8) {
      for (const int below : {0, 8}) {
        for (const int right : {0, 1}) {
          const MatrixPlace place = place_of_sum(thread, i++);
          CHECK_EQ(place.row, first_row + below);
          CHECK_EQ(place.column, eight + pair + right);
          seen.insert({place.row, place.column});
        }
      }
    }
    // a0 a1 | a2 a3 | a4 a5 | a6 a7: rows g, g + 8, g, g + 8; columns from 0 and from 8.
    const int rows[4] = {first_row, first_row + 8, first_row, first_row + 8}, columns[4] = {0, 0, 8, 8};
    for (int word = 0; word < 4; ++word) {
      for (const int half : {0, 1}) {
        CHECK_EQ(place_of_operand(thread, word, half).row, rows[word]);
        CHECK_EQ(place_of_operand(thread, word, half).column, columns[word] + pair + half);
      }
    }
  }
  CHECK_EQ(seen.size(), 64u * 256u);
}

PagedTensor pool_of(std::int64_t page, std::int64_t slot, std::int64_t head) {
  alignas(16) static std::uint16_t element[8];
  return {element, page, slot, head, 10};
}

TEST(pools_are_mapped_with_strides_that_rise) {
  const PagedTensor slots_first = pool_of(64 * 2 * 80, 2 * 80, 80), heads_first = pool_of(64 * 2 * 80, 80, 64 * 80);
  const TensorBoxes a = boxes_of(slots_first, 2, 80, 64), b = boxes_of(heads_first, 2, 80, 64);
  CHECK(can_be_mapped(a) && can_be_mapped(b));
  CHECK_EQ(a.size[0], 80);
  CHECK_EQ(a.size[1], 2);
  CHECK_EQ(a.size[2], 64);
  CHECK_EQ(a.size[3], 10);
  CHECK_EQ(a.stride_bytes[1], 160);
  CHECK_EQ(a.stride_bytes[2], 320);
  CHECK_EQ(a.stride_bytes[3], 64 * 320);
  CHECK_EQ(b.size[1], 64);
  CHECK_EQ(b.size[2], 2);
  CHECK_EQ(a.box[1] * a.box[2] * a.box[3], kBoxKeys);
  CHECK_EQ(b.box[1], kBoxKeys);
  const BoxPlace in_a = box_of(heads_within_slots(slots_first, 2), 64, 1, 16, 7);
  const BoxPlace in_b = box_of(heads_within_slots(heads_first, 2), 64, 1, 16, 7);
  CHECK_EQ(in_a.at[1], 1);
  CHECK_EQ(in_a.at[2], 16);
  CHECK_EQ(in_b.at[1], 16);
  CHECK_EQ(in_b.at[2], 1);
  CHECK_EQ(in_a.at[3], 7);
}

TEST(pools_that_no_map_describes_are_known) {
  CHECK(can_be_mapped(boxes_of(pool_of(64 * 80, 80, 12345), 1, 80, 64)));          // one head: its stride says nothing
  CHECK(!can_be_mapped(boxes_of(pool_of(64 * 164, 164, 80), 2, 80, 64)));          // rows not at 16 bytes
  CHECK(!can_be_mapped(boxes_of(pool_of(64 * 2 * 80 - 80, 160, 80), 2, 80, 64)));  // pages that overlap
  PagedTensor unknown = pool_of(64 * 2 * 80, 2 * 80, 80);
  unknown.n_pages = 0;
  CHECK(!can_be_mapped(boxes_of(unknown, 2, 80, 64)));
}

}  // namespace
