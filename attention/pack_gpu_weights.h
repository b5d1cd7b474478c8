// Weights [n, k] in the order in which the warps of small_product.h read them, made once at load on the host.
//
// A brick is 64 outputs and 4 runs of inputs, one run for each lane of a group of four: inputs run * lane % 4 on.
// Bricks lie in the order of [n / 64][k / (4 run)], each in memory at once:
//   half  run 16: uint16 [4 of 16 outputs][2 of 8 inputs][2 of 8 outputs][32 lanes][8]
//   w8    run 32: uint8 [4 of 16 outputs][4 of 8 inputs][32 lanes][2 of 8 outputs][8], q + 128
//   f8    as w8, fp8 (e4m3) as they are
//   w4    run 32: words [4 of 16 outputs][2 of 16 inputs][32 lanes][2 of 8 outputs][2 of 8 inputs], then a word
//         [32 lanes][4 of 16 outputs] of {group_scale, group_min + 128} of lane / 4 and of lane / 4 + 8. Of 8 inputs in
//         a word, the even ones lie in the low half and the odd ones in the high half, four bits each, in order. A run
//         is a group of 32 inputs.
// Lane l has outputs l / 4 and l / 4 + 8 of 16. So one load of 16 bytes a lane is 512 bytes in a row for a warp, and
// brings a lane whole operands of mma_16x8x16. Outputs past n weigh 0; inputs past k weigh what they like, they are 0.
#pragma once

#include <cstdint>

#include "elements.h"

namespace llm_decoder {
namespace gpu {

enum class GpuWeightFormat : std::uint8_t { half, w8, w4, f8 };

constexpr int kBrickOutputs = 64;
constexpr int kBrickTiles = kBrickOutputs / 16;
constexpr int kTileLoadBytes = 32 * 16;  // that a warp reads at once

struct BrickShape {
  int run = 0;         // inputs of a lane
  int tile_loads = 0;  // of 16 bytes a lane, for 16 outputs
  int group_bytes = 0;

  constexpr int inputs() const { return 4 * run; }
  constexpr int bytes() const { return kBrickTiles * tile_loads * kTileLoadBytes + group_bytes; }
};

constexpr BrickShape brick_shape(GpuWeightFormat format) {
  switch (format) {
    case GpuWeightFormat::half:
      return {16, 4, 0};
    case GpuWeightFormat::w8:
    case GpuWeightFormat::f8:
      return {32, 4, 0};
    case GpuWeightFormat::w4:
      return {32, 2, kTileLoadBytes};
  }
  return {};
}

constexpr int kGpuGroupInputs = 32;  // of w4

constexpr std::int64_t n_brick_rows(std::int64_t n) { return ceil_div(n, kBrickOutputs); }
constexpr std::int64_t n_brick_columns(GpuWeightFormat format, std::int64_t k) {
  return ceil_div(k, brick_shape(format).inputs());
}
constexpr std::int64_t packed_gpu_bytes(GpuWeightFormat format, std::int64_t n, std::int64_t k) {
  return n_brick_rows(n) * n_brick_columns(format, k) * brick_shape(format).bytes();
}

// All throw std::invalid_argument for an n or k that is not positive; out has packed_gpu_bytes. Rows of q lie
// row_stride elements apart.

// Bf16 or Fp16, as they are.
void pack_gpu_half(const std::uint16_t* w, std::int64_t row_stride, std::int64_t n, std::int64_t k, std::uint8_t* out);
// Symmetric int8, +-127.
void pack_gpu_w8(const std::int8_t* q, std::int64_t row_stride, std::int64_t n, std::int64_t k, std::uint8_t* out);
// Bits of Fp8. Throws std::invalid_argument for a NaN too.
void pack_gpu_f8(const std::uint8_t* q, std::int64_t row_stride, std::int64_t n, std::int64_t k, std::uint8_t* out);
// q in 0..15 [n, k], group_scale and group_min [n, ceil(k / 32)]: group_scale * q + group_min is the weight, an int8
// within +-127, group_scale at most 16.
void pack_gpu_w4(const std::uint8_t* q, std::int64_t row_stride, const std::uint8_t* group_scale,
                 const std::int8_t* group_min, std::int64_t n, std::int64_t k, std::uint8_t* out);

}  // namespace gpu
}  // namespace llm_decoder
