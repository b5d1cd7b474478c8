// The product on w4 panels on AVX2. Nibbles are small enough for the 16-bit sums of vpmaddubsw: a group's 8 steps of at
// most 2 * 15 * 127 fit, where bytes of w8 have to be widened first. Then
//   sum (scale * q + minimum) a = scale * sum q a + minimum * sum a
// a group and channel, with the sums of the activations taken once a row.

constexpr int kMaxW4TileRows = 4;

// Of the rows that copy_rows_by_block laid: the sum of each group, int32 [n_blocks(k)][n_rows][2 groups].
inline void sum_groups(const std::int8_t* rows, std::int64_t n_rows_of_blocks, std::int32_t* sums) {
  for (std::int64_t i = 0; i < n_rows_of_blocks * 2; ++i) {
    const __m256i a = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(rows + i * kGroupWidth));
    const __m256i pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), a);
    const __m256i quads = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
    const __m128i four = _mm_add_epi32(_mm256_castsi256_si128(quads), _mm256_extracti128_si256(quads, 1));
    const __m128i two = _mm_add_epi32(four, _mm_unpackhi_epi64(four, four));
    sums[i] = _mm_cvtsi128_si32(two) + _mm_extract_epi32(two, 1);
  }
}

inline __m256i splat_quad_at(const std::int8_t* quad) {
  std::int32_t bits;
  std::memcpy(&bits, quad, sizeof(bits));
  return _mm256_set1_epi32(bits);
}

// Adds to the sums of 8 channels (`half` of the panel) by kRows rows.
template <int kRows, int... kRow>
__attribute__((noinline)) void add_w4_half(Pack<kRow...>, const std::uint8_t* block, std::int64_t n_blocks_of_k,
                                           int half, const std::int8_t* rows, const std::int32_t* group_sums,
                                           __m256i (&sums)[kRows]) {
  const __m256i mask = _mm256_set1_epi8(15);
  const __m256i scale_twice =
      _mm256_broadcastsi128_si256(_mm_setr_epi8(0, -1, 0, -1, 4, -1, 4, -1, 8, -1, 8, -1, 12, -1, 12, -1));
  __m256i acc[] = {sums[kRow]...};
  for (const std::uint8_t* end = block + n_blocks_of_k * kBlockBytes; block < end; block += kBlockBytes) {
    for (int group = 0; group < 2; ++group) {
      const std::uint8_t* nibbles = nibbles_of(block, group) + half * kLineBytes / 2;
      __m256i dots[] = {(static_cast<void>(kRow), _mm256_setzero_si256())...};
#pragma GCC unroll 4
      for (int i = 0; i < kGroupLines; ++i) {
        const __m256i line = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(nibbles + i * kLineBytes));
        __builtin_prefetch(nibbles + i * kLineBytes + kW4NearBytes, 0, 3);
        const __m256i low = _mm256_and_si256(line, mask);
        const __m256i high = _mm256_and_si256(_mm256_srli_epi16(line, 4), mask);
        const std::int8_t* quads = rows + group * kGroupWidth + i * 2 * kDotWidth;
        ((dots[kRow] =
              _mm256_add_epi16(dots[kRow], _mm256_maddubs_epi16(low, splat_quad_at(quads + kRow * kBlockWidth)))),
         ...);
        ((dots[kRow] = _mm256_add_epi16(
              dots[kRow], _mm256_maddubs_epi16(high, splat_quad_at(quads + kRow * kBlockWidth + kDotWidth)))),
         ...);
      }
      const auto* pairs = reinterpret_cast<const __m128i*>(pairs_of(block, group) + half * kPairBytes / 2);
      const __m256i both = _mm256_cvtepu16_epi32(_mm_loadu_si128(pairs));
      const __m256i scale = _mm256_shuffle_epi8(both, scale_twice);
      // The upper 16 bits are 0, so those of the sum beside them do not count.
      const __m256i minimum = _mm256_srli_epi32(both, 8);
      ((acc[kRow] = _mm256_add_epi32(acc[kRow], _mm256_madd_epi16(dots[kRow], scale))), ...);
      ((acc[kRow] =
            _mm256_add_epi32(acc[kRow], _mm256_madd_epi16(minimum, _mm256_set1_epi32(group_sums[kRow * 2 + group])))),
       ...);
    }
    rows += kRows * kBlockWidth;
    group_sums += kRows * 2;
  }
  ((sums[kRow] = acc[kRow]), ...);
}

// n_rows as a constant.
template <int kRows>
void multiply_w4_tile(const GemmW8Args& args, std::int32_t row, std::int32_t n_rows, std::int32_t begin,
                      std::int32_t end, std::int8_t* rows) {
  if (n_rows == kRows) {
    const std::int64_t blocks = n_blocks(args.k);
    auto* group_sums = reinterpret_cast<std::int32_t*>(rows + blocks * kRows * kBlockWidth);
    copy_rows_by_block(args, row, kRows, rows);
    sum_groups(rows, blocks * kRows, group_sums);
    for (std::int32_t panel = begin; panel < end; ++panel) {
      for (int half = 0; half < 2; ++half) {
        ProductW8::Sums sums[kRows];
        for (int r = 0; r < kRows; ++r) sums[r] = ProductW8::first_sums(args, row + r);
        add_w4_half<kRows>(PackTo<kRows>(), w4_panel(args, panel), blocks, half, rows, group_sums, sums);
        ProductW8::finish(args, row, kRows, panel * ProductW8::kSlices + half, sums);
      }
    }
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

void gemm_w4(const GemmW8Args& args, std::int32_t panel_begin, std::int32_t panel_end, std::byte* scratch) {
  multiply_w4_tiles(args, panel_begin, panel_end, reinterpret_cast<std::int8_t*>(scratch));
}

std::size_t gemm_w4_scratch_bytes(std::int32_t k) {
  const std::int64_t bytes_of_row_and_block = kBlockWidth + 2 * static_cast<std::int64_t>(sizeof(std::int32_t));
  return static_cast<std::size_t>(kMaxW4TileRows * n_blocks(k) * bytes_of_row_and_block);
}
