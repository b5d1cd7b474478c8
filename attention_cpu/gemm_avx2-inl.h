// The products of gemm-inl.h on AVX2: a slice is 8 output channels, and a tile has as many sums as 16 registers
// allow.

// The first `n` of 8 lanes.
inline __m256i first_of_8(std::int32_t n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

// out (+)= y + bias, in the columns of `mask`. `bias` may be null.
inline void store_columns(float* out, __m256 y, const float* bias, bool accumulate, __m256i mask) {
  if (bias != nullptr) y = _mm256_add_ps(y, _mm256_maskload_ps(bias, mask));
  if (accumulate) y = _mm256_add_ps(_mm256_maskload_ps(out, mask), y);
  _mm256_maskstore_ps(out, mask, y);
}

// Widens to 16 bit before it adds, since vpmaddubsw would saturate: even and odd input channels apart, so that vpmaddwd
// leaves whole sums of one output channel in each lane.
struct ProductW8 {
  using Args = GemmW8Args;
  struct Unit {
    std::int32_t even, odd;  // 4 activations, two of 16 bit in each
  };
  using Sums = __m256i;
  using Line = const std::uint8_t*;
  struct Factor {
    __m256i even, odd;
  };
  static constexpr std::int64_t kStepBytes = kPanelWidth * kDotWidth;
  static constexpr int kSlices = 2;
  static constexpr int kMaxTileRows = 10;
  static constexpr int kMaxLoneTileRows = 10;
  // The bytes of a slice take two registers, a factor two, a product one.
  static constexpr int tile_slices(int n_rows) { return n_rows == 1 ? 8 : n_rows == 2 ? 4 : n_rows <= 5 ? 2 : 1; }

  static std::int64_t n_steps(const Args& args) { return ceil_div(args.k, kDotWidth); }
  static const std::uint8_t* panel(const Args& args, std::int32_t panel) {
    return args.w + panel * n_steps(args) * kStepBytes;
  }

  static std::int32_t pair(std::int8_t first, std::int8_t second) {
    return static_cast<std::int32_t>(static_cast<std::uint16_t>(first) | static_cast<std::uint32_t>(second) << 16);
  }
  static void copy_row(const Args& args, std::int32_t row, std::int64_t step, std::int64_t n, Unit* out) {
    const std::int8_t* a = args.a + row * args.a_stride + step * kDotWidth;
    std::int64_t i = 0;
    for (; i + 8 <= n; i += 8) {
      const __m256i quads = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(a + i * kDotWidth));
      const __m256i even = _mm256_srai_epi16(_mm256_slli_epi16(quads, 8), 8);
      const __m256i odd = _mm256_srai_epi16(quads, 8);
      const __m256i units_0145 = _mm256_unpacklo_epi32(even, odd);
      const __m256i units_2367 = _mm256_unpackhi_epi32(even, odd);
      __m256i* units = reinterpret_cast<__m256i*>(out + i);
      _mm256_storeu_si256(units, _mm256_permute2x128_si256(units_0145, units_2367, 0x20));
      _mm256_storeu_si256(units + 1, _mm256_permute2x128_si256(units_0145, units_2367, 0x31));
    }
    for (; i < n; ++i) {
      const std::int8_t* quad = a + i * kDotWidth;
      out[i] = {pair(quad[0], quad[2]), pair(quad[1], quad[3])};
    }
  }

  // Undoes the bias of the weights.
  static Sums first_sums(const Args& args, std::int32_t row) { return _mm256_set1_epi32(-128 * args.a_sum[row]); }
  static Line load_line(const std::uint8_t* line) { return line; }
  static Factor broadcast(const Unit* unit) { return {_mm256_set1_epi32(unit->even), _mm256_set1_epi32(unit->odd)}; }
  static Sums add(Sums sums, Line line, Factor factor) {
    const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(line));
    const __m256i even = _mm256_and_si256(bytes, _mm256_set1_epi16(0xff));
    const __m256i odd = _mm256_srli_epi16(bytes, 8);
    sums = _mm256_add_epi32(sums, _mm256_madd_epi16(even, factor.even));
    return _mm256_add_epi32(sums, _mm256_madd_epi16(odd, factor.odd));
  }

  static void finish(const Args& args, std::int32_t row, std::int32_t n_rows, std::int32_t slice, const Sums* sums) {
    const std::int64_t column = std::int64_t{slice} * 8;
    if (column >= args.n) return;
    const __m256i mask = first_of_8(static_cast<std::int32_t>(args.n - column));
    const float* bias = args.bias ? args.bias + column : nullptr;
    const __m256 w_scale = _mm256_maskload_ps(args.w_scale + column, mask);
    for (std::int64_t i = row; i < row + n_rows; ++i) {
      const __m256 y =
          _mm256_mul_ps(_mm256_cvtepi32_ps(sums[i - row]), _mm256_mul_ps(_mm256_set1_ps(args.a_scale[i]), w_scale));
      store_columns(args.out + i * args.out_stride + column, y, bias, args.accumulate, mask);
    }
  }
};

// Weights are float or Bf16, which is widened: then the sums are those of the floats that it stands for, bit for bit.
template <class Weight>
struct ProductFloat {
  using Args = GemmFloatArgs<Weight>;
  using Unit = float;
  using Sums = __m256;
  using Line = __m256;
  using Factor = __m256;
  static constexpr std::int64_t kStepBytes = kPanelWidth * sizeof(Weight);
  static constexpr int kSlices = 2;
  static constexpr int kMaxTileRows = 6;
  static constexpr int kMaxLoneTileRows = 6;
  static constexpr int tile_slices(int n_rows) { return n_rows == 1 ? 8 : n_rows == 2 ? 4 : 2; }

  static std::int64_t n_steps(const Args& args) { return args.k; }
  static const std::uint8_t* panel(const Args& args, std::int32_t panel) {
    return reinterpret_cast<const std::uint8_t*>(args.w) + panel * n_steps(args) * kStepBytes;
  }
  static void copy_row(const Args& args, std::int32_t row, std::int64_t step, std::int64_t n, Unit* out) {
    std::memcpy(out, args.a + row * args.a_stride + step, static_cast<std::size_t>(n) * sizeof(Unit));
  }

  static Sums first_sums(const Args&, std::int32_t) { return _mm256_setzero_ps(); }
  static Line load_line(const std::uint8_t* line) { return load_half(reinterpret_cast<const Weight*>(line)); }
  static Factor broadcast(const Unit* unit) { return _mm256_set1_ps(*unit); }
  static Sums add(Sums sums, Line line, Factor factor) { return _mm256_fmadd_ps(line, factor, sums); }

  static void finish(const Args& args, std::int32_t row, std::int32_t n_rows, std::int32_t slice, const Sums* sums) {
    const std::int64_t column = std::int64_t{slice} * 8;
    if (column >= args.n) return;
    const __m256i mask = first_of_8(static_cast<std::int32_t>(args.n - column));
    const float* bias = args.bias ? args.bias + column : nullptr;
    for (std::int64_t i = row; i < row + n_rows; ++i) {
      store_columns(args.out + i * args.out_stride + column, sums[i - row], bias, args.accumulate, mask);
    }
  }
};

void gemm_w8(const GemmW8Args& args, std::int32_t panel_begin, std::int32_t panel_end) {
  multiply<ProductW8>(args, panel_begin, panel_end);
}

void gemm_f32(const GemmF32Args& args, std::int32_t panel_begin, std::int32_t panel_end) {
  multiply<ProductFloat<float>>(args, panel_begin, panel_end);
}

void gemm_bf16(const GemmBf16Args& args, std::int32_t panel_begin, std::int32_t panel_end) {
  multiply<ProductFloat<Bf16>>(args, panel_begin, panel_end);
}
