// The products written plainly: the judge of the fast ones. One sum an output, over ascending k.

void gemm_w8(const GemmW8Args& args, std::int32_t panel_begin, std::int32_t panel_end) {
  const std::int64_t n_steps = ceil_div(args.k, kDotWidth);
  const std::int64_t column_end = static_cast<std::int64_t>(panel_end) * kPanelWidth;
  for (std::int64_t row = 0; row < args.m; ++row) {
    const std::int8_t* a = args.a + row * args.a_stride;
    for (std::int64_t column = panel_begin * kPanelWidth; column < column_end && column < args.n; ++column) {
      const std::uint8_t* w = args.w + column / kPanelWidth * n_steps * kPanelWidth * kDotWidth;
      w += column % kPanelWidth * kDotWidth;
      std::int32_t sum = 0;
      for (std::int64_t k = 0; k < n_steps * kDotWidth; ++k) {
        sum += a[k] * (w[k / kDotWidth * kPanelWidth * kDotWidth + k % kDotWidth] - 128);
      }
      float y = static_cast<float>(sum) * (args.a_scale[row] * args.w_scale[column]);
      if (args.bias != nullptr) y += args.bias[column];
      float& out = args.out[row * args.out_stride + column];
      out = args.accumulate ? out + y : y;
    }
  }
}

template <class Weight>
void multiply_floats(const GemmFloatArgs<Weight>& args, std::int32_t panel_begin, std::int32_t panel_end) {
  const std::int64_t column_end = static_cast<std::int64_t>(panel_end) * kPanelWidth;
  for (std::int64_t row = 0; row < args.m; ++row) {
    const float* a = args.a + row * args.a_stride;
    for (std::int64_t column = panel_begin * kPanelWidth; column < column_end && column < args.n; ++column) {
      const Weight* w = args.w + column / kPanelWidth * args.k * kPanelWidth + column % kPanelWidth;
      float y = 0.0f;
      for (std::int64_t k = 0; k < args.k; ++k) y += a[k] * get(w + k * kPanelWidth);
      if (args.bias != nullptr) y += args.bias[column];
      float& out = args.out[row * args.out_stride + column];
      out = args.accumulate ? out + y : y;
    }
  }
}

void gemm_f32(const GemmF32Args& args, std::int32_t panel_begin, std::int32_t panel_end) {
  multiply_floats(args, panel_begin, panel_end);
}

void gemm_bf16(const GemmBf16Args& args, std::int32_t panel_begin, std::int32_t panel_end) {
  multiply_floats(args, panel_begin, panel_end);
}
