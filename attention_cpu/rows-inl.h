// Rows in, rows out, and reductions over a row. Every sum has one order, which depends on the row's length alone.
// Included after softmax_lut-inl.h.
#pragma once

// Four accumulators hide the latency of the addition; vector j of a row goes to accumulator j % 4.
constexpr std::int32_t kAccumulators = 4;

constexpr float kInfinity = __builtin_inff();
constexpr float kNotANumber = __builtin_nanf("");
constexpr float kLargestFloat = 3.40282347e+38f;
constexpr float kSmallestNormal = 1.17549435e-38f;

inline F32 load_at(const float* x, std::int32_t n, std::int32_t i, float fill) {
  return n - i >= kLanes ? load(x + i) : load_first(x + i, n - i, fill);
}
inline void store_at(float* x, std::int32_t n, std::int32_t i, F32 value) {
  if (n - i >= kLanes) {
    store(x + i, value);
  } else {
    store_first(x + i, value, n - i);
  }
}
inline F32 sum_of(const F32 (&parts)[kAccumulators]) { return add(add(parts[0], parts[1]), add(parts[2], parts[3])); }

// The scale of symmetric int8, max|x| / 127. `scale_of_zeros` for an all-zero row, and for one so small that the scale
// would be subnormal, which then counts as zero; NaN when any value is NaN or infinite.
inline float int8_scale(const float* x, std::int32_t n, float scale_of_zeros) {
  const F32 zero = splat(0.0f);
  F32 largest[kAccumulators] = {zero, zero, zero, zero}, poison[kAccumulators] = {zero, zero, zero, zero};
  const auto take = [&](int part, F32 value) {
    largest[part] = max(abs(value), largest[part]);
    poison[part] = fma(value, zero, poison[part]);
  };
  std::int32_t i = 0;
  for (; n - i >= kAccumulators * kLanes; i += kAccumulators * kLanes) {
#pragma GCC unroll 8
    for (int part = 0; part < kAccumulators; ++part) take(part, load(x + i + part * kLanes));
  }
  for (; i < n; i += kLanes) take(0, load_at(x, n, i, 0.0f));
  const F32 of_all = max(max(largest[0], largest[1]), max(largest[2], largest[3]));
  const float scale = reduce_max(of_all) / 127.0f + reduce_add(sum_of(poison));
  return scale < kSmallestNormal ? scale_of_zeros : scale;
}

// x / scale to the nearest integer, ties to even, as int32 lanes.
inline I32 quantize_at(const float* x, std::int32_t n, std::int32_t i, F32 inverse_scale) {
  return to_i32(mul(load_at(x, n, i, 0.0f), inverse_scale));
}

// One row to int8, zeros from n up to n_padded. Returns the sum of the int8 values.
inline std::int32_t quantize_row(const float* x, std::int32_t n, std::int32_t n_padded, float scale, std::int8_t* q) {
  const F32 inverse_scale = splat(1.0f / scale);
  I32 sum = splat(std::int32_t{0});
  std::int32_t i = 0;
  for (; n_padded - i >= kLanes; i += kLanes) {
    const I32 value = quantize_at(x, n, i, inverse_scale);
    store_bytes(q + i, value);
    sum = add(sum, value);
  }
  if (i < n_padded) {
    alignas(kLanes) std::int8_t tail[kLanes];
    const I32 value = quantize_at(x, n, i, inverse_scale);
    store_bytes(tail, value);
    sum = add(sum, value);
    for (std::int32_t j = i; j < n_padded; ++j) q[j] = tail[j - i];
  }
  return reduce_add(sum);
}

void quantize_rows(const float* x, std::int64_t x_stride, std::int32_t n_rows, std::int32_t n_cols, QuantizedRows out) {
  const std::int32_t n_padded = static_cast<std::int32_t>(k_padded(n_cols));
  for (std::int64_t row = 0; row < n_rows; ++row) {
    const float* values = x + row * x_stride;
    out.scale[row] = int8_scale(values, n_cols, 1.0f);
    out.sum[row] = quantize_row(values, n_cols, n_padded, out.scale[row], out.q + row * out.q_stride);
  }
}

// out = x / sqrt(mean(x^2) + eps) * weight (Zhang and Sennrich 2019). out may be x.
void rms_norm(const float* x, std::int64_t x_stride, const float* weight, float eps, std::int32_t n_rows,
              std::int32_t n_cols, float* out, std::int64_t out_stride) {
  for (std::int64_t row = 0; row < n_rows; ++row) {
    const float* in_row = x + row * x_stride;
    float* out_row = out + row * out_stride;
    F32 squares[kAccumulators] = {splat(0.0f), splat(0.0f), splat(0.0f), splat(0.0f)};
    for (std::int32_t i = 0, part = 0; i < n_cols; i += kLanes, part = (part + 1) % kAccumulators) {
      const F32 value = load_at(in_row, n_cols, i, 0.0f);
      squares[part] = fma(value, value, squares[part]);
    }
    const float mean = reduce_add(sum_of(squares)) / static_cast<float>(n_cols);
    const F32 factor = splat(1.0f / sqrt(mean + eps));
    for (std::int32_t i = 0; i < n_cols; i += kLanes) {
      const F32 normed = mul(load_at(in_row, n_cols, i, 0.0f), factor);
      store_at(out_row, n_cols, i, mul(normed, load_at(weight, n_cols, i, 0.0f)));
    }
  }
}

// out = (x - mean(x)) / sqrt(variance(x) + eps) * weight + bias (Ba, Kiros and Hinton 2016), the variance that of what
// the mean leaves. out may be x.
void layer_norm(const float* x, std::int64_t x_stride, const float* weight, const float* bias, float eps,
                std::int32_t n_rows, std::int32_t n_cols, float* out, std::int64_t out_stride) {
  const F32 zero = splat(0.0f);
  const float n = static_cast<float>(n_cols);
  for (std::int64_t row = 0; row < n_rows; ++row) {
    const float* in_row = x + row * x_stride;
    float* out_row = out + row * out_stride;
    F32 sums[kAccumulators] = {zero, zero, zero, zero}, squares[kAccumulators] = {zero, zero, zero, zero};
    for (std::int32_t i = 0, part = 0; i < n_cols; i += kLanes, part = (part + 1) % kAccumulators) {
      sums[part] = add(sums[part], load_at(in_row, n_cols, i, 0.0f));
    }
    const float mean = reduce_add(sum_of(sums)) / n;
    const F32 center = splat(mean);
    for (std::int32_t i = 0, part = 0; i < n_cols; i += kLanes, part = (part + 1) % kAccumulators) {
      const F32 value = sub(load_at(in_row, n_cols, i, mean), center);
      squares[part] = fma(value, value, squares[part]);
    }
    const F32 factor = splat(1.0f / sqrt(reduce_add(sum_of(squares)) / n + eps));
    for (std::int32_t i = 0; i < n_cols; i += kLanes) {
      const F32 normed = mul(sub(load_at(in_row, n_cols, i, 0.0f), center), factor);
      const F32 shift = bias == nullptr ? zero : load_at(bias, n_cols, i, 0.0f);
      store_at(out_row, n_cols, i, fma(normed, load_at(weight, n_cols, i, 0.0f), shift));
    }
  }
}

// x / (1 + exp(-x)), with exp of -|x| alone so that nothing overflows.
inline F32 silu(F32 x) {
  const F32 one = splat(1.0f);
  const F32 decay = exp_lut(sub(splat(0.0f), abs(x)));
  const F32 numerator = select(less(x, splat(0.0f)), decay, one);
  return mul(x, div(numerator, add(one, decay)));
}

void silu_mul(const float* gate_up, std::int64_t stride, std::int32_t n_rows, std::int32_t n_cols, float* out,
              std::int64_t out_stride) {
  for (std::int64_t row = 0; row < n_rows; ++row) {
    const float* gate = gate_up + row * stride;
    const float* up = gate + n_cols;
    for (std::int32_t i = 0; i < n_cols; i += kLanes) {
      const F32 gated = mul(silu(load_at(gate, n_cols, i, 0.0f)), load_at(up, n_cols, i, 0.0f));
      store_at(out + row * out_stride, n_cols, i, gated);
    }
  }
}

// Rotary position embedding (Su et al. 2021), halves apart.
void rope(float* x, std::int32_t n_heads, std::int32_t head_dim, std::int32_t half, const float* cos,
          const float* sin) {
  for (std::int32_t head = 0; head < n_heads; ++head) {
    float* first = x + static_cast<std::int64_t>(head) * head_dim;
    float* second = first + half;
    for (std::int32_t i = 0; i < half; i += kLanes) {
      const F32 a = load_at(first, half, i, 0.0f), b = load_at(second, half, i, 0.0f);
      const F32 c = load_at(cos, half, i, 0.0f), s = load_at(sin, half, i, 0.0f);
      store_at(first, half, i, fma(a, c, sub(splat(0.0f), mul(b, s))));
      store_at(second, half, i, fma(b, c, mul(a, s)));
    }
  }
}

// The largest value, -inf for none; NaN never wins.
inline float row_max(const float* x, std::int32_t n) {
  const F32 none = splat(-kInfinity);
  F32 largest[kAccumulators] = {none, none, none, none};
  std::int32_t i = 0;
  for (; n - i >= kAccumulators * kLanes; i += kAccumulators * kLanes) {
#pragma GCC unroll 8
    for (int part = 0; part < kAccumulators; ++part) largest[part] = max(load(x + i + part * kLanes), largest[part]);
  }
  for (; i < n; i += kLanes) largest[0] = max(load_at(x, n, i, -kInfinity), largest[0]);
  return reduce_max(max(max(largest[0], largest[1]), max(largest[2], largest[3])));
}

inline bool all_below_infinity(const float* x, std::int32_t n) {
  bool result = true;
  for (std::int32_t i = 0; i < n; i += kLanes) result = all(less(load_at(x, n, i, 0.0f), splat(kInfinity))) && result;
  return result;
}

// Sums of 1024 values first, then the sum of these, so that the error stays small over the longest vocabulary. NaN if
// any value is.
inline float sum_of_exp(const float* x, std::int32_t n, float max_value) {
  constexpr std::int32_t kBlock = 1024;
  const F32 largest = splat(max_value);
  F32 total = splat(0.0f);
  for (std::int32_t begin = 0; begin < n; begin += kBlock) {
    const std::int32_t end = n - begin < kBlock ? n : begin + kBlock;
    F32 parts[kAccumulators] = {splat(0.0f), splat(0.0f), splat(0.0f), splat(0.0f)};
    std::int32_t i = begin;
    for (; end - i >= kAccumulators * kLanes; i += kAccumulators * kLanes) {
#pragma GCC unroll 8
      for (int part = 0; part < kAccumulators; ++part) {
        parts[part] = add(parts[part], exp_lut(sub(load(x + i + part * kLanes), largest)));
      }
    }
    for (int part = 0; i < end; i += kLanes, ++part) {
      parts[part] = add(parts[part], exp_lut(sub(load_at(x, end, i, -kInfinity), largest)));
    }
    total = add(total, sum_of(parts));
  }
  return reduce_add(total);
}

// Two passes over the row, for a NaN shows in the sum, and infinity in the largest value.
float log_sum_exp(const float* x, std::int32_t n, float* max, bool* is_finite) {
  *max = row_max(x, n);
  if (*max == -kInfinity) {  // no sum to look at
    *is_finite = all_below_infinity(x, n);
    return *is_finite ? -kInfinity : kNotANumber;
  }
  const float sum = *max < kInfinity ? sum_of_exp(x, n, *max) : kNotANumber;
  *is_finite = sum == sum;
  return *is_finite ? *max + __builtin_logf(sum) : kNotANumber;
}

std::int32_t index_of_max(const float* x, std::int32_t n, float max) {
  const F32 largest = splat(max);
  for (std::int32_t i = 0; i < n; i += kLanes) {
    if (all(less(load_at(x, n, i, -kInfinity), largest))) continue;
    const std::int32_t end = n - i < kLanes ? n : i + kLanes;
    for (std::int32_t j = i; j < end; ++j) {
      if (x[j] == max) return j;
    }
  }
  return n;
}
