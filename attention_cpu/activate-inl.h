// Activations of feed-forward layers, alone or gating. Included after rows-inl.h.
#pragma once

// gelu(x) = max(x, 0) - h(|x|) with h(y) = y erfc(y / sqrt(2)) / 2, which rises to 0.17 and falls to 0. h is a
// polynomial of degree 5 of y - n * kGeluStep around each multiple n of the step, 0 to 15: fitted at Chebyshev points,
// the one around 0 with no constant, so that small x keep their precision. The error is below 3e-8, and 5e-7 of the
// result up to 3.
constexpr float kGeluStep = 0.375f;
constexpr float kGeluStepsPerUnit = 2.66666675f;
constexpr float kGeluEnd = 5.8f;  // in the last piece; from here on h counts as what it is here, 2e-8
constexpr int kGeluTerms = 6;
alignas(64) constexpr float kGelu[kGeluTerms][kLanes] = {
    {0.0f, 0.132686332f, 0.169970512f, 0.146581337f, 0.100210808f, 0.056993179f, 0.0275050607f, 0.0113726743f,
     0.00404969323f, 0.00124563964f, 0.000331565039f, 7.64642173e-05f, 1.52896118e-05f, 2.65223525e-06f,
     3.99268458e-07f, 5.21758992e-08f},
    {0.5f, 0.214384586f, 0.000774291402f, -0.108066708f, -0.127469197f, -0.0985779092f, -0.0591897443f, -0.0290685277f,
     -0.0119456453f, -0.00415719673f, -0.00123381638f, -0.000313692726f, -6.85292616e-05f, -1.28912234e-05f,
     -2.09141263e-06f, -2.92972743e-07f},
    {-0.3989411f, -0.345705062f, -0.216444194f, -0.07780312f, 0.0161863156f, 0.0521266237f, 0.0486025587f,
     0.0311158132f, 0.0155120101f, 0.00629702024f, 0.00212648627f, 0.000604593777f, 0.000145808925f, 2.99774383e-05f,
     5.27259726e-06f, 7.9541968e-07f},
    {-5.04872041e-05f, 0.0896924213f, 0.129391998f, 0.108627766f, 0.0566655509f, 0.0104135238f, -0.0126458341f,
     -0.0160919335f, -0.0110800136f, -0.00557551673f, -0.00221751747f, -0.000720667653f, -0.000194778855f,
     -4.42488054e-05f, -8.50833567e-06f, -1.39150609e-06f},
    {0.0672464967f, 0.0467281006f, 0.00488106348f, -0.028404234f, -0.035832718f, -0.0236087609f, -0.00777434278f,
     0.0016290209f, 0.00402152957f, 0.00301459129f, 0.00152596761f, 0.000592074939f, 0.000184594159f, 4.73463369e-05f,
     1.01284995e-05f, 1.82321548e-06f},
    {-0.00463081384f, -0.018965736f, -0.0226574205f, -0.0112597905f, 0.00264066691f, 0.00884625223f, 0.00715167681f,
     0.00288956775f, 2.23286788e-05f, -0.000836440362f, -0.000671666639f, -0.000334808487f, -0.000124370403f,
     -3.65758751e-05f, -8.76415834e-06f, -1.73928379e-06f}};

inline F32 gelu(F32 x) {
  const F32 round = splat(kRoundToInteger);
  const F32 minus_y = max(splat(-kGeluEnd), sub(splat(0.0f), abs(x)));  // a NaN stays one
  const F32 shifted = fma(minus_y, splat(-kGeluStepsPerUnit), round);
  const I32 n = as_i32(shifted);
  const F32 f = fma(sub(round, shifted), splat(kGeluStep), sub(splat(0.0f), minus_y));
  F32 h = lookup(load(kGelu[kGeluTerms - 1]), n);
#pragma GCC unroll 8
  for (int term = kGeluTerms - 2; term >= 0; --term) h = fma(h, f, lookup(load(kGelu[term]), n));
  return sub(max(splat(0.0f), x), h);
}

// x / (1 + exp(-2 sqrt(2 / pi) (x + 0.044715 x^3))), which is the one with tanh.
inline F32 gelu_tanh(F32 x) {
  const F32 one = splat(1.0f);
  const F32 cubic = fma(mul(splat(0.044715f), mul(x, x)), x, x), v = mul(splat(1.59576912f), cubic);
  const F32 decay = exp_lut(sub(splat(0.0f), abs(v)));
  const F32 numerator = select(less(v, splat(0.0f)), decay, one);
  return mul(x, div(numerator, add(one, decay)));
}

template <class Fn>
inline void activate_rows(bool is_gated, const float* x, std::int64_t x_stride, std::int32_t n_rows,
                          std::int32_t n_cols, float* out, std::int64_t out_stride, const Fn& fn) {
  for (std::int64_t row = 0; row < n_rows; ++row) {
    const float* in_row = x + row * x_stride;
    float* out_row = out + row * out_stride;
    for (std::int32_t i = 0; i < n_cols; i += kLanes) {
      const F32 active = fn(load_at(in_row, n_cols, i, 0.0f));
      store_at(out_row, n_cols, i, is_gated ? mul(active, load_at(in_row + n_cols, n_cols, i, 0.0f)) : active);
    }
  }
}

void activate(Activation activation, bool is_gated, const float* x, std::int64_t x_stride, std::int32_t n_rows,
              std::int32_t n_cols, float* out, std::int64_t out_stride) {
  const auto with = [&](const auto& fn) { activate_rows(is_gated, x, x_stride, n_rows, n_cols, out, out_stride, fn); };
  switch (activation) {
    case Activation::silu:
      return with([](F32 v) { return silu(v); });
    case Activation::gelu:
      return with([](F32 v) { return gelu(v); });
    case Activation::gelu_tanh:
      return with([](F32 v) { return gelu_tanh(v); });
    case Activation::relu:
      return with([](F32 v) { return max(splat(0.0f), v); });
    case Activation::identity:
      return with([](F32 v) { return v; });
  }
}
