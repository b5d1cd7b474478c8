#include "pack_gpu_weights.h"

#include <algorithm>
#include <cstring>

#include "llm_decoder/errors.h"

namespace llm_decoder {
namespace gpu {
namespace {

constexpr int kLanes = 32;
constexpr int kLoadBytes = kTileLoadBytes / kLanes;
constexpr int kEight = 8;  // inputs that lie together in every format

struct Brick {
  std::int64_t first_output, first_input;
};

// Calls load(brick, tile, i, lane, to) for load i of each lane of each tile, `to` its 16 bytes, and after those of a
// brick rest(brick, to).
template <class Load, class Rest>
void fill_bricks(const char* place, GpuWeightFormat format, std::int64_t n, std::int64_t k, std::uint8_t* out,
                 const Load& load, const Rest& rest) {
  check_arg(n > 0 && k > 0, place, "n and k must be positive, got ", n, " and ", k);
  const BrickShape shape = brick_shape(format);
  for (std::int64_t row = 0; row < n_brick_rows(n); ++row) {
    for (std::int64_t column = 0; column < n_brick_columns(format, k); ++column) {
      const Brick brick{row * kBrickOutputs, column * shape.inputs()};
      std::uint8_t* to = out;
      for (int tile = 0; tile < kBrickTiles; ++tile) {
        for (int i = 0; i < shape.tile_loads; ++i) {
          for (int lane = 0; lane < kLanes; ++lane, to += kLoadBytes) load(brick, tile, i, lane, to);
        }
      }
      rest(brick, to);
      out += shape.bytes();
    }
  }
}

constexpr auto kNothing = [](const Brick&, std::uint8_t*) {};

// The output that a lane has in half `half` of tile `tile`, and the input at which its run begins.
std::int64_t output_of(const Brick& brick, int tile, int lane, int half) {
  return brick.first_output + tile * 16 + half * 8 + lane / 4;
}
std::int64_t input_of(GpuWeightFormat format, const Brick& brick, int lane) {
  return brick.first_input + brick_shape(format).run * (lane % 4);
}

// Elements [i, i + 8) of row `row` of [n, k], `none` where there are none.
template <class T>
struct Eight {
  T values[kEight];
};
template <class T>
Eight<T> eight_of(const T* rows, std::int64_t row_stride, std::int64_t n, std::int64_t k, std::int64_t row,
                  std::int64_t i, T none) {
  Eight<T> out;
  std::fill(out.values, out.values + kEight, none);
  if (row < n && i < k) {
    const auto n_values = static_cast<std::size_t>(std::min<std::int64_t>(kEight, k - i));
    std::memcpy(out.values, rows + row * row_stride + i, n_values * sizeof(T));
  }
  return out;
}

std::uint8_t biased(std::int8_t q) { return static_cast<std::uint8_t>(q + 128); }

// w8 and f8: byte_of(q) is what stands for a weight.
template <class T, class ByteOf>
void pack_bytes(const char* place, GpuWeightFormat format, const T* q, std::int64_t row_stride, std::int64_t n,
                std::int64_t k, std::uint8_t* out, const ByteOf& byte_of) {
  const auto load = [&](const Brick& brick, int tile, int i, int lane, std::uint8_t* to) {
    const std::int64_t input = input_of(format, brick, lane) + i * kEight;
    for (int half = 0; half < 2; ++half) {
      const auto eight = eight_of(q, row_stride, n, k, output_of(brick, tile, lane, half), input, T{0});
      for (const T value : eight.values) *to++ = byte_of(value);
    }
  };
  fill_bricks(place, format, n, k, out, load, kNothing);
}

// Eight values of four bits: the even ones in the low half of a word, the odd ones in the high half.
std::uint32_t nibbles_of(const Eight<std::uint8_t>& q) {
  std::uint32_t word = 0;
  for (int i = 0; i < kEight; ++i) word |= static_cast<std::uint32_t>(q.values[i] & 15) << (i % 2 * 16 + i / 2 * 4);
  return word;
}

}  // namespace

void pack_gpu_half(const std::uint16_t* w, std::int64_t row_stride, std::int64_t n, std::int64_t k, std::uint8_t* out) {
  constexpr GpuWeightFormat kFormat = GpuWeightFormat::half;
  const auto load = [&](const Brick& brick, int tile, int i, int lane, std::uint8_t* to) {
    const std::int64_t input = input_of(kFormat, brick, lane) + i / 2 * kEight;
    const auto eight = eight_of(w, row_stride, n, k, output_of(brick, tile, lane, i % 2), input, std::uint16_t{0});
    std::memcpy(to, eight.values, sizeof(eight));
  };
  fill_bricks("pack_gpu_half", kFormat, n, k, out, load, kNothing);
}

void pack_gpu_w8(const std::int8_t* q, std::int64_t row_stride, std::int64_t n, std::int64_t k, std::uint8_t* out) {
  pack_bytes("pack_gpu_w8", GpuWeightFormat::w8, q, row_stride, n, k, out, biased);
}

void pack_gpu_f8(const std::uint8_t* q, std::int64_t row_stride, std::int64_t n, std::int64_t k, std::uint8_t* out) {
  constexpr char kPlace[] = "pack_gpu_f8";
  pack_bytes(kPlace, GpuWeightFormat::f8, q, row_stride, n, k, out, [&](std::uint8_t bits) {
    check_arg((bits & 0x7f) != 0x7f, kPlace, "weights must be finite, got a NaN");
    return bits;
  });
}

void pack_gpu_w4(const std::uint8_t* q, std::int64_t row_stride, const std::uint8_t* group_scale,
                 const std::int8_t* group_min, std::int64_t n, std::int64_t k, std::uint8_t* out) {
  constexpr GpuWeightFormat kFormat = GpuWeightFormat::w4;
  static_assert(brick_shape(kFormat).run == kGpuGroupInputs, "a lane's run is a group");
  const std::int64_t n_groups = ceil_div(k, kGpuGroupInputs);
  const auto load = [&](const Brick& brick, int tile, int i, int lane, std::uint8_t* to) {
    const std::int64_t input = input_of(kFormat, brick, lane) + i * 2 * kEight;
    for (int word = 0; word < 4; ++word) {
      const auto eight = eight_of(q, row_stride, n, k, output_of(brick, tile, lane, word / 2),
                                  input + word % 2 * kEight, std::uint8_t{0});
      const std::uint32_t bits = nibbles_of(eight);
      std::memcpy(to + word * sizeof(bits), &bits, sizeof(bits));
    }
  };
  const auto groups = [&](const Brick& brick, std::uint8_t* to) {
    for (int i = 0; i < kLanes * kBrickTiles * 2; ++i) {
      const int lane = i / (kBrickTiles * 2);
      const std::int64_t output = output_of(brick, i / 2 % kBrickTiles, lane, i % 2);
      const std::int64_t group = input_of(kFormat, brick, lane) / kGpuGroupInputs;
      const bool is_there = output < n && group < n_groups;
      *to++ = is_there ? group_scale[output * n_groups + group] : std::uint8_t{0};
      *to++ = biased(is_there ? group_min[output * n_groups + group] : std::int8_t{0});
    }
  };
  fill_bricks("pack_gpu_w4", kFormat, n, k, out, load, groups);
}

}  // namespace gpu
}  // namespace llm_decoder
