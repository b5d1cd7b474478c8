// The product on w4 panels written plainly: a panel is expanded, then multiplied as w8.

inline void expand_panel(const std::uint8_t* block, std::int64_t k, std::uint8_t* out) {
  for (const std::uint8_t* end = block + n_blocks(k) * kBlockBytes; block < end; block += kBlockBytes) {
    for (int group = 0; group < 2; ++group) {
      const std::uint8_t* pairs = pairs_of(block, group);
      for (int line = 0; line < kGroupLines; ++line) {
        const std::uint8_t* nibbles = nibbles_of(block, group) + line * kW4LineBytes;
        for (std::int64_t i = 0; i < kW4LineBytes; ++i) {
          const std::uint8_t* pair = pairs + i / kDotWidth * 2;
          out[i] = static_cast<std::uint8_t>(pair[0] * (nibbles[i] & 15) + pair[1]);
          out[i + kW4LineBytes] = static_cast<std::uint8_t>(pair[0] * (nibbles[i] >> 4) + pair[1]);
        }
        out += 2 * kW4LineBytes;
      }
    }
  }
}

void gemm_w4(const GemmW8Args& args, std::int32_t panel_begin, std::int32_t panel_end, std::byte* scratch) {
  multiply_expanded(args, panel_begin, panel_end, 1, reinterpret_cast<std::uint8_t*>(scratch), expand_panel);
}

std::size_t gemm_w4_scratch_bytes(std::int32_t k) { return static_cast<std::size_t>(expanded_bytes(1, k)); }
