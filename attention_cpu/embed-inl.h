// Embedding rows out of packed matrices: a token is a column of a panel, its channels lie a line apart.

template <class Weight>
void embed_floats(const Weight* w, std::int32_t token, std::int32_t hidden, float* out) {
  const Weight* column = w + std::int64_t{token / kPanelWidth} * hidden * kPanelWidth + token % kPanelWidth;
  for (std::int64_t k = 0; k < hidden; ++k) out[k] = get(column + k * kPanelWidth);
}

void embed_f32(const float* w, std::int32_t token, std::int32_t hidden, float* out) {
  embed_floats(w, token, hidden, out);
}

void embed_bf16(const Bf16* w, std::int32_t token, std::int32_t hidden, float* out) {
  embed_floats(w, token, hidden, out);
}

void embed_w8(const std::uint8_t* w, const float* w_scale, std::int32_t token, std::int32_t hidden, float* out) {
  const std::int64_t n_steps = ceil_div(hidden, kDotWidth);
  const std::uint8_t* column = w + (token / kPanelWidth * n_steps * kPanelWidth + token % kPanelWidth) * kDotWidth;
  const float scale = w_scale[token];
  for (std::int64_t k = 0; k < hidden; ++k) {
    const std::int32_t q = column[k / kDotWidth * kPanelWidth * kDotWidth + k % kDotWidth] - 128;
    out[k] = static_cast<float>(q) * scale;
  }
}
