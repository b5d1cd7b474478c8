// Rows of weights into panels and back, once at load. Baseline flags: a packed file is the same whoever wrote it.
#include <algorithm>
#include <cstring>

#include "llm_decoder/cpu_kernels.h"

namespace llm_decoder {

namespace {

#include "floats-inl.h"

// These layouts are one picture in units (a float, a bf16 or 4 int8): a panel is the transpose of its 16 rows.
// Blocks of 16 x 16 units read and write whole cache lines. `unit_at(row, i)` reads unit i of a row of the panel.
template <class Unit, class UnitAt>
void transpose_panel(std::int64_t n_units, const UnitAt& unit_at, Unit* lines) {
  for (std::int64_t begin = 0; begin < n_units; begin += kPanelWidth) {
    const std::int64_t end = std::min<std::int64_t>(begin + kPanelWidth, n_units);
    Unit block[kPanelWidth][kPanelWidth];
    for (std::int64_t row = 0; row < kPanelWidth; ++row) {
      for (std::int64_t i = begin; i < end; ++i) block[i - begin][row] = unit_at(row, i);
    }
    std::memcpy(lines + begin * kPanelWidth, block, static_cast<std::size_t>(end - begin) * sizeof(block[0]));
  }
}

// Where w4 keeps the scale and minimum of a group and channel of a panel: two bytes.
template <class Byte>
Byte* w4_pair(Byte* panel, std::int64_t group, std::int64_t channel) {
  return panel + group / 2 * kBlockBytes + (group % 2 * kPanelWidth + channel) * 2;
}

// Where it keeps the value of input channel i.
template <class Byte>
struct W4Place {
  Byte* byte;
  int shift;
};
template <class Byte>
W4Place<Byte> w4_place(Byte* panel, std::int64_t i, std::int64_t channel) {
  constexpr std::int64_t kPairBytes = 2 * kPanelWidth * 2;
  constexpr std::int64_t kGroupBytes = kPanelWidth * kGroupWidth / 2;
  const std::int64_t line = i % kGroupWidth / (2 * kDotWidth);
  return {panel + i / kBlockWidth * kBlockBytes + kPairBytes + i / kGroupWidth % 2 * kGroupBytes +
              (line * kPanelWidth + channel) * kDotWidth + i % kDotWidth,
          i / kDotWidth % 2 == 0 ? 0 : 4};
}

// Values i to i + 3 of a row of k bytes, those past its end zero.
std::uint32_t quad_at(const std::uint8_t* values, std::int64_t k, std::int64_t i) {
  std::uint32_t quad = 0;
  if (k - i >= kDotWidth) {
    std::memcpy(&quad, values + i, kDotWidth);
  } else if (k > i) {
    std::memcpy(&quad, values + i, static_cast<std::size_t>(k - i));
  }
  return quad;
}

template <class Weight>
void pack_floats(const float* w, std::int64_t row_stride, std::int64_t n, std::int64_t k, Weight* out) {
  for (std::int64_t panel = 0; panel < n_panels(n); ++panel) {
    const float* rows = w + panel * kPanelWidth * row_stride;
    const std::int64_t n_rows = n - panel * kPanelWidth;
    const auto unit_at = [&](std::int64_t row, std::int64_t i) {
      Weight unit;
      put(&unit, row < n_rows ? rows[row * row_stride + i] : 0.0f);
      return unit;
    };
    transpose_panel(k, unit_at, out + panel * k * kPanelWidth);
  }
}

}  // namespace

void pack_f32(const float* w, std::int64_t row_stride, std::int64_t n, std::int64_t k, float* out) {
  pack_floats(w, row_stride, n, k, out);
}

void pack_bf16(const float* w, std::int64_t row_stride, std::int64_t n, std::int64_t k, Bf16* out) {
  pack_floats(w, row_stride, n, k, out);
}

void pack_w8(const std::int8_t* q, std::int64_t row_stride, std::int64_t n, std::int64_t k, std::uint8_t* out) {
  constexpr std::uint32_t kBias = 0x80808080;  // q ^ 128 is q + 128 in each byte
  const std::int64_t n_steps = k_padded(k) / kDotWidth;
  for (std::int64_t panel = 0; panel < n_panels(n); ++panel) {
    const std::int8_t* rows = q + panel * kPanelWidth * row_stride;
    const std::int64_t n_rows = n - panel * kPanelWidth;
    const auto unit_at = [&](std::int64_t row, std::int64_t step) {
      std::uint32_t unit = 0;
      const std::int8_t* quad = rows + row * row_stride + step * kDotWidth;
      const std::int64_t n_left = row < n_rows ? k - step * kDotWidth : 0;
      if (n_left >= kDotWidth) {
        std::memcpy(&unit, quad, kDotWidth);
      } else if (n_left > 0) {
        std::memcpy(&unit, quad, static_cast<std::size_t>(n_left));
      }
      return unit ^ kBias;
    };
    transpose_panel(n_steps, unit_at,
                    reinterpret_cast<std::uint32_t*>(out + panel * n_steps * kPanelWidth * kDotWidth));
  }
}

void unpack_w8(const std::uint8_t* packed, std::int64_t n, std::int64_t k, std::int8_t* q, std::int64_t row_stride) {
  const std::int64_t n_steps = k_padded(k) / kDotWidth;
  for (std::int64_t row = 0; row < n; ++row) {
    const std::uint8_t* column = packed + (row / kPanelWidth * n_steps * kPanelWidth + row % kPanelWidth) * kDotWidth;
    for (std::int64_t i = 0; i < k; ++i) {
      const std::uint8_t biased = column[i / kDotWidth * kPanelWidth * kDotWidth + i % kDotWidth];
      q[row * row_stride + i] = static_cast<std::int8_t>(biased - 128);
    }
  }
}

void pack_w4(const std::uint8_t* q, const std::uint8_t* group_scale, const std::int8_t* group_min, std::int64_t n,
             std::int64_t k, std::uint8_t* out) {
  std::memset(out, 0, static_cast<std::size_t>(packed_w4_bytes(n, k)));
  for (std::int64_t row = 0; row < n; ++row) {
    std::uint8_t* panel = out + row / kPanelWidth * n_blocks(k) * kBlockBytes;
    const std::int64_t channel = row % kPanelWidth;
    for (std::int64_t group = 0; group < n_groups(k); ++group) {
      std::uint8_t* pair = w4_pair(panel, group, channel);
      pair[0] = group_scale[row * n_groups(k) + group];
      pair[1] = static_cast<std::uint8_t>(group_min[row * n_groups(k) + group] + 128);
    }
    // The four bytes of a line and channel: four inputs in the low halves, the next four in the high ones.
    const std::uint8_t* values = q + row * k;
    for (std::int64_t i = 0; i < k; i += 2 * kDotWidth) {
      const std::uint32_t bytes = quad_at(values, k, i) | quad_at(values, k, i + kDotWidth) << 4;
      std::memcpy(w4_place(panel, i, channel).byte, &bytes, sizeof(bytes));
    }
  }
}

void expand_w4(const std::uint8_t* packed, std::int64_t n, std::int64_t k, std::int8_t* q) {
  for (std::int64_t row = 0; row < n; ++row) {
    const std::uint8_t* panel = packed + row / kPanelWidth * n_blocks(k) * kBlockBytes;
    const std::int64_t channel = row % kPanelWidth;
    for (std::int64_t i = 0; i < k; ++i) {
      const std::uint8_t* pair = w4_pair(panel, i / kGroupWidth, channel);
      const auto place = w4_place(panel, i, channel);
      q[row * k + i] = static_cast<std::int8_t>(pair[0] * (*place.byte >> place.shift & 15) + pair[1] - 128);
    }
  }
}

}  // namespace llm_decoder
