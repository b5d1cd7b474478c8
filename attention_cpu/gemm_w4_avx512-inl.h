// The product on w4 panels on AVX-512. A line of nibbles becomes two lines of w8 in registers, six instructions that
// all rows of the tile share, and goes on as w8 does. Many rows are worth expanding a few panels into memory for once,
// where the w8 product takes them.

// Sums of a tile, which leave registers for a group's scales and minima, for lines and constants.
constexpr int kMaxW4TileRows = 24;
constexpr int w4_tile_panels(int n_rows) { return n_rows <= 4 ? 4 : n_rows <= 12 ? 2 : 1; }
// Up to so many rows the few tiles do less work than expanding into memory does.
constexpr int kMaxUnexpandedRows = 48;
constexpr std::int32_t kMaxExpandedPanels = 12;
constexpr std::int64_t kExpandedBytes = 512 << 10;

// A group's scales, twice in the 32 bits of a channel, and its minima + 128, four times.
struct GroupSpread {
  __m512i scale, minimum;
};

inline GroupSpread spread_group(const std::uint8_t* pairs) {
  const __m256i words = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(pairs));
  const __m512i both = _mm512_maskz_cvtepu16_epi32(kAllLanes, words);
  const __m512i first =
      _mm512_maskz_broadcast_i32x4(kAllLanes, _mm_setr_epi8(0, -1, 0, -1, 4, -1, 4, -1, 8, -1, 8, -1, 12, -1, 12, -1));
  const __m512i second =
      _mm512_maskz_broadcast_i32x4(kAllLanes, _mm_setr_epi8(1, 1, 1, 1, 5, 5, 5, 5, 9, 9, 9, 9, 13, 13, 13, 13));
  return {_mm512_shuffle_epi8(both, first), _mm512_shuffle_epi8(both, second)};
}

// 64 values in 0..15 -> w8 bytes. scale * q fits a byte, so one 16-bit product does two of them.
inline __m512i expand_line(__m512i q, const GroupSpread& group) {
  return _mm512_add_epi8(_mm512_mullo_epi16(q, group.scale), group.minimum);
}
inline __m512i low_nibbles(__m512i line) { return _mm512_and_si512(line, _mm512_set1_epi8(15)); }
inline __m512i high_nibbles(__m512i line) { return low_nibbles(_mm512_srli_epi16(line, 4)); }

// sums + line . the 4 activations at `quad`. As an instruction for the reason given at ProductW8::add.
inline __m512i add_dot(__m512i sums, __m512i line, const std::int8_t* quad) {
  using Quad = std::int8_t[kDotWidth];
  asm("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(sums) : "v"(line), "m"(*reinterpret_cast<const Quad*>(quad)));
  return sums;
}

// acc[r] += block . row r. With few rows the two nibbles have sums of their own, so that none waits for another. Line
// by line asks for what is needed soon, and for the block at `next`: all at once, they would hold up what is needed
// now.
template <int kRows, int kSums, int... kRow>
inline void add_block(Pack<kRow...>, const std::uint8_t* block, const std::uint8_t* next, const std::int8_t* rows,
                      __m512i* acc) {
  constexpr int kHigh = kSums - kRows;
  const auto ask = [&](std::int64_t at) __attribute__((always_inline)) {
    __builtin_prefetch(block + at + kW4NearBytes, 0, 3);
    __builtin_prefetch(next + at, 0, 2);
  };
  ask(0);
  for (int group = 0; group < 2; ++group) {
    const GroupSpread spread = spread_group(pairs_of(block, group));
    const std::uint8_t* nibbles = nibbles_of(block, group);
    const std::int8_t* quads = rows + group * kGroupWidth;
#pragma GCC unroll 4
    for (int i = 0; i < kGroupLines; ++i) {
      const __m512i line = _mm512_loadu_si512(nibbles + i * kLineBytes);
      ask(nibbles - block + i * kLineBytes);
      const __m512i low = expand_line(low_nibbles(line), spread);
      ((acc[kRow] = add_dot(acc[kRow], low, quads + kRow * kBlockWidth + i * 2 * kDotWidth)), ...);
      const __m512i high = expand_line(high_nibbles(line), spread);
      ((acc[kHigh + kRow] = add_dot(acc[kHigh + kRow], high, quads + kRow * kBlockWidth + (i * 2 + 1) * kDotWidth)),
       ...);
    }
  }
}

// kPanels panels, `panel_bytes` apart, by kRows rows as copy_rows_by_block lays them. For each block that is read, one
// is asked for that will be needed later: of each of kStreams panels in turn, from `next` on.
template <int kRows, int kPanels, int... kPanel, int... kSum>
__attribute__((noinline)) void add_w4_panels(Pack<kPanel...>, Pack<kSum...>, const std::uint8_t* panels,
                                             std::int64_t panel_bytes, const std::uint8_t* next,
                                             const std::int8_t* rows, __m512i (&sums)[kPanels][kRows]) {
  constexpr int kSums = sizeof...(kSum) / kPanels;
  __m512i acc[] = {(static_cast<void>(kSum), _mm512_setzero_si512())...};
  std::int64_t stream = 0;
  for (const std::uint8_t* end = panels + panel_bytes; panels < end; panels += kBlockBytes) {
    (add_block<kRows, kSums>(PackTo<kRows>(), panels + kPanel * panel_bytes, next + (stream + kPanel) * panel_bytes,
                             rows, acc + kPanel * kSums),
     ...);
    rows += kRows * kBlockWidth;
    stream += kPanels;
    if (stream == kStreams) {
      stream = 0;
      next += kBlockBytes;
    }
  }
  for (int p = 0; p < kPanels; ++p) {
    for (int r = 0; r < kRows; ++r) {
      sums[p][r] = _mm512_add_epi32(sums[p][r], acc[p * kSums + r]);
      if (kSums > kRows) sums[p][r] = _mm512_add_epi32(sums[p][r], acc[p * kSums + kSums - kRows + r]);
    }
  }
}

template <int kRows, int kPanels>
std::int32_t multiply_w4_panels(const GemmW8Args& args, std::int32_t row, std::int32_t begin, std::int32_t end,
                                const std::int8_t* rows) {
  constexpr int kSplit = kRows <= 2 ? 2 : 1;
  const std::int64_t panel_bytes = n_blocks(args.k) * kBlockBytes;
  std::int32_t panel = begin;
  for (; panel + kPanels <= end; panel += kPanels) {
    __m512i sums[kPanels][kRows];
    for (int p = 0; p < kPanels; ++p) {
      for (int r = 0; r < kRows; ++r) sums[p][r] = ProductW8::first_sums(args, row + r);
    }
    // The passes over kStreams panels each ask for their share of the kStreams that follow.
    const std::int32_t done = (panel - begin) % kStreams;
    const std::uint8_t* next =
        w4_panel(args, panel - done + kStreams) + n_blocks(args.k) * done / kStreams * kBlockBytes;
    add_w4_panels<kRows, kPanels>(PackTo<kPanels>(), PackTo<kPanels * kRows * kSplit>(), w4_panel(args, panel),
                                  panel_bytes, next, rows, sums);
    for (int p = 0; p < kPanels; ++p) ProductW8::finish(args, row, kRows, panel + p, sums[p]);
  }
  return panel;
}

// n_rows as a constant.
template <int kRows>
void multiply_w4_tile(const GemmW8Args& args, std::int32_t row, std::int32_t n_rows, std::int32_t begin,
                      std::int32_t end, std::int8_t* rows) {
  if (n_rows == kRows) {
    copy_rows_by_block(args, row, kRows, rows);
    const std::int32_t panel = multiply_w4_panels<kRows, w4_tile_panels(kRows)>(args, row, begin, end, rows);
    multiply_w4_panels<kRows, 1>(args, row, panel, end, rows);
  } else if constexpr (kRows > 1) {
    multiply_w4_tile<kRows - 1>(args, row, n_rows, begin, end, rows);
  }
}

// All rows, in tiles of about one height.
void multiply_w4_tiles(const GemmW8Args& args, std::int32_t panel_begin, std::int32_t panel_end, std::int8_t* rows) {
  const RowTiles tiles{args.m, ceil_div(args.m, kMaxW4TileRows)};
  for (std::int64_t tile = 0; tile < tiles.n_tiles; ++tile) {
    multiply_w4_tile<kMaxW4TileRows>(args, tiles.row(tile), tiles.n_rows(tile), panel_begin, panel_end, rows);
  }
}

// One panel as w8. Writes whole blocks: up to 15 lines past the panel's end.
inline void expand_panel(const std::uint8_t* block, std::int64_t k, std::uint8_t* out) {
  for (const std::uint8_t* end = block + n_blocks(k) * kBlockBytes; block < end; block += kBlockBytes) {
    for (int group = 0; group < 2; ++group) {
      const GroupSpread spread = spread_group(pairs_of(block, group));
      for (int i = 0; i < kGroupLines; ++i) {
        const std::uint8_t* at = nibbles_of(block, group) + i * kLineBytes;
        const __m512i line = _mm512_loadu_si512(at);
        __builtin_prefetch(at + kW4NearBytes, 0, 3);
        _mm512_storeu_si512(out, expand_line(low_nibbles(line), spread));
        _mm512_storeu_si512(out + kLineBytes, expand_line(high_nibbles(line), spread));
        out += 2 * kLineBytes;
      }
    }
  }
}

inline std::int32_t expanded_panels(std::int64_t k) {
  const std::int64_t n_fit = kExpandedBytes / expanded_panel_bytes(k) / kStreams * kStreams;
  if (n_fit < kStreams) return kStreams;
  return n_fit < kMaxExpandedPanels ? static_cast<std::int32_t>(n_fit) : kMaxExpandedPanels;
}

void gemm_w4(const GemmW8Args& args, std::int32_t panel_begin, std::int32_t panel_end, std::byte* scratch) {
  if (args.m > kMaxUnexpandedRows) {
    multiply_expanded(args, panel_begin, panel_end, expanded_panels(args.k), reinterpret_cast<std::uint8_t*>(scratch),
                      expand_panel);
  } else {
    multiply_w4_tiles(args, panel_begin, panel_end, reinterpret_cast<std::int8_t*>(scratch));
  }
}

std::size_t gemm_w4_scratch_bytes(std::int32_t k) {
  const std::int64_t rows = kMaxW4TileRows * n_blocks(k) * kBlockWidth;
  const std::int64_t panels = expanded_bytes(expanded_panels(k), k);
  return static_cast<std::size_t>(rows > panels ? rows : panels);
}
