// The products of gemm-inl.h on AVX-512: a line is one register, a tile has at most 28 sums, which leaves registers
// for two lines and a broadcast. kAllLanes: see vec_avx512.h.

constexpr int kMaxTileSums = 28;

constexpr int slices_of_tile(int n_rows) { return n_rows <= 7 ? 4 : n_rows <= 14 ? 2 : 1; }

inline __mmask16 columns_of_panel(std::int32_t n, std::int32_t panel) {
  const std::int32_t n_left = n - panel * kPanelWidth;
  return n_left >= kPanelWidth ? kAllLanes : first_lanes(n_left);
}

// `n` units of 4 bytes. Rows of a chunk are so short that calls of memcpy show.
inline void copy_units(const std::uint8_t* in, std::int64_t n, void* out) {
  std::uint8_t* to = static_cast<std::uint8_t*>(out);
  for (; n >= kPanelWidth; n -= kPanelWidth, in += kLineBytes, to += kLineBytes) {
    _mm512_storeu_si512(to, _mm512_loadu_si512(in));
  }
  const __mmask16 rest = first_lanes(static_cast<std::int32_t>(n));
  _mm512_mask_storeu_epi32(to, rest, _mm512_maskz_loadu_epi32(rest, in));
}

// out (+)= y + bias, in the columns of `mask`. `bias` may be null.
inline void store_columns(float* out, __m512 y, const float* bias, bool accumulate, __mmask16 mask) {
  if (bias != nullptr) y = _mm512_add_ps(y, _mm512_maskz_loadu_ps(mask, bias));
  if (accumulate) y = _mm512_add_ps(_mm512_maskz_loadu_ps(mask, out), y);
  _mm512_mask_storeu_ps(out, mask, y);
}

struct ProductW8 {
  using Args = GemmW8Args;
  using Unit = std::int32_t;  // 4 int8 activations
  using Sums = __m512i;
  using Line = __m512i;
  using Factor = __m512i;
  static constexpr int kMaxTileRows = kMaxTileSums / 2;
  static constexpr int kMaxLoneTileRows = kMaxTileSums;
  static constexpr std::int64_t kStepBytes = kPanelWidth * kDotWidth;
  static constexpr int kSlices = 1;
  static constexpr int tile_slices(int n_rows) { return slices_of_tile(n_rows); }

  static std::int64_t n_steps(const Args& args) { return ceil_div(args.k, kDotWidth); }
  static const std::uint8_t* panel(const Args& args, std::int32_t panel) {
    return args.w + panel * n_steps(args) * kStepBytes;
  }
  static void copy_row(const Args& args, std::int32_t row, std::int64_t step, std::int64_t n, Unit* out) {
    copy_units(reinterpret_cast<const std::uint8_t*>(args.a + row * args.a_stride + step * kDotWidth), n, out);
  }

  // Undoes the bias of the weights.
  static Sums first_sums(const Args& args, std::int32_t row) { return _mm512_set1_epi32(-128 * args.a_sum[row]); }
  static Line load_line(const std::uint8_t* line) { return _mm512_loadu_si512(line); }
  static Factor broadcast(const Unit* unit) { return _mm512_set1_epi32(*unit); }
  // The intrinsic makes GCC 12 move and spill the sums: half the speed at 28 of them.
  static Sums add(Sums sums, Line line, Factor factor) {
    asm("vpdpbusd %2, %1, %0" : "+v"(sums) : "v"(line), "v"(factor));
    return sums;
  }

  static void finish(const Args& args, std::int32_t row, std::int32_t n_rows, std::int32_t panel, const Sums* sums) {
    const __mmask16 mask = columns_of_panel(args.n, panel);
    const std::int64_t column = static_cast<std::int64_t>(panel) * kPanelWidth;
    const float* bias = args.bias ? args.bias + column : nullptr;
    const __m512 w_scale = _mm512_maskz_loadu_ps(mask, args.w_scale + column);
    for (std::int64_t i = row; i < row + n_rows; ++i) {
      const __m512 sum = _mm512_maskz_cvtepi32_ps(kAllLanes, sums[i - row]);
      const __m512 y = _mm512_mul_ps(sum, _mm512_mul_ps(_mm512_set1_ps(args.a_scale[i]), w_scale));
      store_columns(args.out + i * args.out_stride + column, y, bias, args.accumulate, mask);
    }
  }
};

// Weights are float or Bf16, which is widened: then the sums are those of the floats that it stands for, bit for bit.
template <class Weight>
struct ProductFloat {
  using Args = GemmFloatArgs<Weight>;
  using Unit = float;
  using Sums = __m512;
  using Line = __m512;
  using Factor = __m512;
  static constexpr int kMaxTileRows = kMaxTileSums / 2;
  static constexpr int kMaxLoneTileRows = kMaxTileSums;
  static constexpr std::int64_t kStepBytes = kPanelWidth * sizeof(Weight);
  static constexpr int kSlices = 1;
  static constexpr int tile_slices(int n_rows) { return slices_of_tile(n_rows); }

  static std::int64_t n_steps(const Args& args) { return args.k; }
  static const std::uint8_t* panel(const Args& args, std::int32_t panel) {
    return reinterpret_cast<const std::uint8_t*>(args.w) + panel * n_steps(args) * kStepBytes;
  }
  static void copy_row(const Args& args, std::int32_t row, std::int64_t step, std::int64_t n, Unit* out) {
    copy_units(reinterpret_cast<const std::uint8_t*>(args.a + row * args.a_stride + step), n, out);
  }

  static Sums first_sums(const Args&, std::int32_t) { return _mm512_setzero_ps(); }
  static Line load_line(const std::uint8_t* line) { return load(reinterpret_cast<const Weight*>(line)).v; }
  static Factor broadcast(const Unit* unit) { return _mm512_set1_ps(*unit); }
  static Sums add(Sums sums, Line line, Factor factor) { return _mm512_fmadd_ps(line, factor, sums); }

  static void finish(const Args& args, std::int32_t row, std::int32_t n_rows, std::int32_t panel, const Sums* sums) {
    const __mmask16 mask = columns_of_panel(args.n, panel);
    const std::int64_t column = static_cast<std::int64_t>(panel) * kPanelWidth;
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
