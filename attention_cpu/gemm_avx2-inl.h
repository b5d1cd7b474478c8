// The two products of gemm-inl.h on AVX2. The int8 one widens to 16 bit before it adds: vpmaddubsw would saturate.

__m256i column_mask(std::int32_t n) {
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), lane);
}

// y (+)= ..., 8 columns of one row; writes the first `n` of them.
void store_columns(float* out, __m256 y, const float* bias, bool accumulate, std::int32_t n) {
  if (n <= 0) return;
  const __m256i mask = column_mask(n);
  if (bias != nullptr) y = _mm256_add_ps(y, _mm256_maskload_ps(bias, mask));
  if (accumulate) y = _mm256_add_ps(_mm256_maskload_ps(out, mask), y);
  _mm256_maskstore_ps(out, mask, y);
}

struct ProductW8 {
  using Args = GemmW8Args;
  using Unit = std::int32_t;  // 4 int8 activations
  // A quarter holds two partial sums for each of 4 output channels.
  struct Sums {
    __m256i quarter[4];
  };
  struct Line {
    __m256i quarter[4];  // 4 output channels x 4 input channels, 16 bit
  };
  using Factor = __m256i;
  static constexpr int kMaxTileRows = 2;
  static constexpr int kMaxLoneTileRows = 2;
  static constexpr int tile_panels(int) { return 1; }

  static std::int64_t n_steps(const Args& args) { return ceil_div(args.k, kDotWidth); }
  static const std::uint8_t* panel(const Args& args, std::int32_t panel) { return args.w + panel * n_steps(args) * kLineBytes; }
  static void copy_row(const Args& args, std::int32_t row, std::int64_t step, std::int64_t n, Unit* out) {
    std::memcpy(out, args.a + row * args.a_stride + step * kDotWidth, static_cast<std::size_t>(n) * sizeof(Unit));
  }

  static Sums zero() {
    const __m256i z = _mm256_setzero_si256();
    return {{z, z, z, z}};
  }
  static __m256i widen(const std::uint8_t* bytes) {
    return _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes)));
  }
  static Line load_line(const std::uint8_t* line) {
    return {{widen(line), widen(line + 16), widen(line + 32), widen(line + 48)}};
  }
  static Factor broadcast(const Unit* unit) { return _mm256_cvtepi8_epi16(_mm_set1_epi32(*unit)); }
  static Sums add(Sums sums, Line line, Factor factor) {
    for (int i = 0; i < 4; ++i) {
      sums.quarter[i] = _mm256_add_epi32(sums.quarter[i], _mm256_madd_epi16(line.quarter[i], factor));
    }
    return sums;
  }

  // Two quarters of partial sums -> 8 sums in the order of the columns.
  static __m256i columns(__m256i low, __m256i high) {
    const __m256i pairs = _mm256_hadd_epi32(low, high);  // low 0 1, high 0 1 | low 2 3, high 2 3
    return _mm256_permute4x64_epi64(pairs, 0b11011000);
  }

  static void finish(const Args& args, std::int32_t row, std::int32_t n_rows, std::int32_t panel, const Sums* sums) {
    const std::int64_t column = static_cast<std::int64_t>(panel) * kPanelWidth;
    for (std::int32_t r = 0; r < n_rows; ++r) {
      const std::int64_t i = row + r;
      const __m256i offset = _mm256_set1_epi32(args.a_sum[i] * 128);
      const __m256 a_scale = _mm256_set1_ps(args.a_scale[i]);
      for (int half = 0; half < 2; ++half) {
        const std::int64_t first = column + half * 8;
        const std::int32_t n_left = static_cast<std::int32_t>(args.n - first);
        const __m256 w_scale = _mm256_maskload_ps(args.w_scale + first, column_mask(n_left));
        const __m256i sum = columns(sums[r].quarter[2 * half], sums[r].quarter[2 * half + 1]);
        const __m256 exact = _mm256_cvtepi32_ps(_mm256_sub_epi32(sum, offset));
        const __m256 y = _mm256_mul_ps(exact, _mm256_mul_ps(a_scale, w_scale));
        store_columns(args.out + i * args.out_stride + first, y, args.bias ? args.bias + first : nullptr, args.accumulate,
                      n_left);
      }
    }
  }
};

struct ProductF32 {
  using Args = GemmF32Args;
  using Unit = float;
  struct Sums {
    __m256 low, high;
  };
  using Line = Sums;
  using Factor = __m256;
  static constexpr int kMaxTileRows = 6;
  static constexpr int kMaxLoneTileRows = 6;
  static constexpr int tile_panels(int) { return 1; }

  static std::int64_t n_steps(const Args& args) { return args.k; }
  static const std::uint8_t* panel(const Args& args, std::int32_t panel) {
    return reinterpret_cast<const std::uint8_t*>(args.w) + panel * n_steps(args) * kLineBytes;
  }
  static void copy_row(const Args& args, std::int32_t row, std::int64_t step, std::int64_t n, Unit* out) {
    std::memcpy(out, args.a + row * args.a_stride + step, static_cast<std::size_t>(n) * sizeof(Unit));
  }

  static Sums zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
  static Line load_line(const std::uint8_t* line) {
    const float* values = reinterpret_cast<const float*>(line);
    return {_mm256_loadu_ps(values), _mm256_loadu_ps(values + 8)};
  }
  static Factor broadcast(const Unit* unit) { return _mm256_set1_ps(*unit); }
  static Sums add(Sums sums, Line line, Factor factor) {
    return {_mm256_fmadd_ps(line.low, factor, sums.low), _mm256_fmadd_ps(line.high, factor, sums.high)};
  }

  static void finish(const Args& args, std::int32_t row, std::int32_t n_rows, std::int32_t panel, const Sums* sums) {
    const std::int64_t column = static_cast<std::int64_t>(panel) * kPanelWidth;
    const std::int32_t n_left = static_cast<std::int32_t>(args.n - column);
    const float* bias = args.bias ? args.bias + column : nullptr;
    for (std::int32_t r = 0; r < n_rows; ++r) {
      float* out = args.out + (row + r) * args.out_stride + column;
      store_columns(out, sums[r].low, bias, args.accumulate, n_left);
      store_columns(out + 8, sums[r].high, bias ? bias + 8 : nullptr, args.accumulate, n_left - 8);
    }
  }
};

void gemm_w8(const GemmW8Args& args, std::int32_t panel_begin, std::int32_t panel_end) {
  multiply<ProductW8>(args, panel_begin, panel_end);
}

void gemm_f32(const GemmF32Args& args, std::int32_t panel_begin, std::int32_t panel_end) {
  multiply<ProductF32>(args, panel_begin, panel_end);
}
