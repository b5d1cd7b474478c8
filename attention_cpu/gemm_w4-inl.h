// What the products on w4 panels share. Included after gemm_w8, which they build on.

// Rows [row, row + n_rows) of the activations in the order in which blocks of weights want them:
// int8 [n_blocks(k)][n_rows][kBlockWidth], zeros past k. However far the caller's rows lie apart, these never evict
// each other from the L1 cache.
inline void copy_rows_by_block(const GemmW8Args& args, std::int64_t row, std::int64_t n_rows, std::int8_t* out) {
  const std::int64_t n_whole = args.k / kBlockWidth;
  const std::int64_t n_rest = k_padded(args.k) - n_whole * kBlockWidth;
  for (std::int64_t r = 0; r < n_rows; ++r) {
    const std::int8_t* a = args.a + (row + r) * args.a_stride;
    std::int8_t* to = out + r * kBlockWidth;
    for (std::int64_t block = 0; block < n_whole; ++block) {
      std::memcpy(to + block * n_rows * kBlockWidth, a + block * kBlockWidth, kBlockWidth);
    }
    if (n_rest == 0) continue;
    std::int8_t* last = to + n_whole * n_rows * kBlockWidth;
    std::memset(last, 0, kBlockWidth);
    std::memcpy(last, a + n_whole * kBlockWidth, static_cast<std::size_t>(n_rest));
  }
}

inline const std::uint8_t* w4_panel(const GemmW8Args& args, std::int64_t panel) {
  return args.w + panel * n_blocks(args.k) * kBlockBytes;
}

// Where the parts of a block begin.
constexpr std::int64_t kPairBytes = 2 * kPanelWidth;                  // scale and minimum of a group's channels
constexpr std::int64_t kNibbleBytes = kPanelWidth * kGroupWidth / 2;  // values of a group
inline const std::uint8_t* pairs_of(const std::uint8_t* block, int group) { return block + group * kPairBytes; }
inline const std::uint8_t* nibbles_of(const std::uint8_t* block, int group) {
  return block + 2 * kPairBytes + group * kNibbleBytes;
}
constexpr std::int64_t kW4LineBytes = kPanelWidth * kDotWidth;  // of nibbles: two steps of the w8 product
constexpr int kGroupLines = kNibbleBytes / kW4LineBytes;

// While a block is read, the lines that lie this far behind it are asked for.
constexpr std::int64_t kW4NearBytes = 2304;

inline std::int64_t expanded_panel_bytes(std::int64_t k) { return packed_w8_bytes(kPanelWidth, k); }

// Of `n` expanded panels: the last one is written in whole blocks.
inline std::int64_t expanded_bytes(std::int64_t n, std::int64_t k) {
  return n * expanded_panel_bytes(k) + kPanelWidth * kBlockWidth;
}

// The product by gemm_w8, `at_once` panels after the other made w8 by expand_panel(w4 panel, k, w8 panel), which may
// write whole blocks past the panel's end.
template <class ExpandPanel>
void multiply_expanded(const GemmW8Args& args, std::int32_t panel_begin, std::int32_t panel_end, std::int32_t at_once,
                       std::uint8_t* w8, const ExpandPanel& expand_panel) {
  for (std::int32_t panel = panel_begin; panel < panel_end; panel += at_once) {
    const std::int32_t n = panel_end - panel < at_once ? panel_end - panel : at_once;
    for (std::int32_t p = 0; p < n; ++p) {
      expand_panel(w4_panel(args, panel + p), args.k, w8 + p * expanded_panel_bytes(args.k));
    }
    const std::int64_t column = static_cast<std::int64_t>(panel) * kPanelWidth;
    GemmW8Args of_these = args;
    of_these.w = w8;
    of_these.w_scale += column;
    if (args.bias != nullptr) of_these.bias += column;
    of_these.out += column;
    of_these.n -= static_cast<std::int32_t>(column);
    gemm_w8(of_these, 0, n);
  }
}
