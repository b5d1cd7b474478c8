// The vector verbs in plain C++: sixteen floats or int32 in an array, one loop a verb. The judge of vec_avx2.h and
// vec_avx512.h, which define the same names; a kernel over them gives the same bits on every ISA.
//
// Included inside an anonymous namespace, after <cstdint>.
#pragma once

constexpr std::int32_t kLanes = 16;
constexpr std::int32_t kNativeLanes = 4;  // floats of one register
// Rows that share one load of K or V, and vectors held beside each other, as far as the registers go.
constexpr std::int32_t kRowTile = 4;
constexpr std::int32_t vectors_beside(std::int32_t /*n_rows*/) { return 1; }

struct F32 {
  float lane[kLanes];
};
struct I32 {
  std::int32_t lane[kLanes];
};
struct Mask {
  bool lane[kLanes];
};
// Sixteen groups of four bytes, or one group for all lanes: the operands of dot4.
struct U8Quads {
  std::uint8_t lane[kLanes][4];
};
struct S8Quads {
  std::int8_t lane[kLanes][4];
};
struct U8Splat {
  std::uint8_t quad[4];
};
struct S8Splat {
  std::int8_t quad[4];
};

// Memory. Pointers need no alignment. *_first touch only the first n lanes, 0 <= n <= 16.
inline F32 load(const float* p) {
  F32 x;
  __builtin_memcpy(x.lane, p, sizeof(x.lane));
  return x;
}
inline F32 load(const Bf16* p) {
  F32 x;
  for (std::int32_t i = 0; i < kLanes; ++i) {
    const std::uint32_t bits = static_cast<std::uint32_t>(p[i].bits) << 16;
    __builtin_memcpy(&x.lane[i], &bits, sizeof(bits));
  }
  return x;
}
inline F32 load_first(const float* p, std::int32_t n, float fill) {
  F32 x;
  for (std::int32_t i = 0; i < kLanes; ++i) x.lane[i] = i < n ? p[i] : fill;
  return x;
}
inline void store(float* p, F32 x) { __builtin_memcpy(p, x.lane, sizeof(x.lane)); }
inline void store_first(float* p, F32 x, std::int32_t n) {
  for (std::int32_t i = 0; i < n; ++i) p[i] = x.lane[i];
}
inline U8Quads load_quads(const std::uint8_t* p) {
  U8Quads x;
  __builtin_memcpy(x.lane, p, sizeof(x.lane));
  return x;
}
inline S8Quads load_quads(const std::int8_t* p) {
  S8Quads x;
  __builtin_memcpy(x.lane, p, sizeof(x.lane));
  return x;
}
inline U8Splat splat_quad(const std::uint8_t* p) {
  U8Splat x;
  __builtin_memcpy(x.quad, p, sizeof(x.quad));
  return x;
}
inline S8Splat splat_quad(const std::int8_t* p) {
  S8Splat x;
  __builtin_memcpy(x.quad, p, sizeof(x.quad));
  return x;
}
// Narrow with saturation.
inline void store_bytes(std::int8_t* p, I32 x) {
  for (std::int32_t i = 0; i < kLanes; ++i) {
    const std::int32_t v = x.lane[i];
    p[i] = static_cast<std::int8_t>(v < -128 ? -128 : v > 127 ? 127 : v);
  }
}
inline void store_bytes(std::uint8_t* p, I32 x) {
  for (std::int32_t i = 0; i < kLanes; ++i) {
    const std::int32_t v = x.lane[i];
    p[i] = static_cast<std::uint8_t>(v < 0 ? 0 : v > 255 ? 255 : v);
  }
}

// The lowest byte of each lane.
inline void store_low_bytes(std::uint8_t* p, I32 x) {
  for (std::int32_t i = 0; i < kLanes; ++i) p[i] = static_cast<std::uint8_t>(x.lane[i] & 0xff);
}

inline F32 splat(float v) {
  F32 x;
  for (float& lane : x.lane) lane = v;
  return x;
}
inline I32 splat(std::int32_t v) {
  I32 x;
  for (std::int32_t& lane : x.lane) lane = v;
  return x;
}

template <class Fn>
inline F32 each_lane(F32 a, F32 b, Fn fn) {
  for (std::int32_t i = 0; i < kLanes; ++i) a.lane[i] = fn(a.lane[i], b.lane[i]);
  return a;
}
inline F32 add(F32 a, F32 b) {
  return each_lane(a, b, [](float x, float y) { return x + y; });
}
inline F32 sub(F32 a, F32 b) {
  return each_lane(a, b, [](float x, float y) { return x - y; });
}
inline F32 mul(F32 a, F32 b) {
  return each_lane(a, b, [](float x, float y) { return x * y; });
}
inline F32 div(F32 a, F32 b) {
  return each_lane(a, b, [](float x, float y) { return x / y; });
}
// b where the two do not compare, as x86 has it.
inline F32 max(F32 a, F32 b) {
  return each_lane(a, b, [](float x, float y) { return x > y ? x : y; });
}
inline F32 abs(F32 a) {
  return each_lane(a, a, [](float x, float) { return __builtin_fabsf(x); });
}
inline float sqrt(float a) { return __builtin_sqrtf(a); }

// a * b + c rounded once. Without the instruction: the product is exact in double, the sum is rounded to odd there
// (Boldo and Melquiond 2008), which makes the second rounding harmless.
inline float fma(float a, float b, float c) {
#ifdef __FP_FAST_FMAF
  return __builtin_fmaf(a, b, c);
#else
  const double product = static_cast<double>(a) * static_cast<double>(b);
  const double addend = static_cast<double>(c);
  double sum = product + addend;
  const double addend_part = sum - product;
  const double error = (product - (sum - addend_part)) + (addend - addend_part);
  std::int64_t bits;
  __builtin_memcpy(&bits, &sum, sizeof(bits));
  const bool is_inexact = error < 0.0 || error > 0.0;
  const std::int64_t toward_error = (error > 0.0) == (sum > 0.0) ? 1 : -1;
  bits += is_inexact && (bits & 1) == 0 ? toward_error : 0;
  __builtin_memcpy(&sum, &bits, sizeof(bits));
  return static_cast<float>(sum);
#endif
}
inline F32 fma(F32 a, F32 b, F32 c) {
  for (std::int32_t i = 0; i < kLanes; ++i) c.lane[i] = fma(a.lane[i], b.lane[i], c.lane[i]);
  return c;
}

inline Mask less(F32 a, F32 b) {
  Mask m;
  for (std::int32_t i = 0; i < kLanes; ++i) m.lane[i] = a.lane[i] < b.lane[i];
  return m;
}
// Lanes begin <= i < end; both may lie outside 0..16.
inline Mask lanes_between(std::int32_t begin, std::int32_t end) {
  Mask m;
  for (std::int32_t i = 0; i < kLanes; ++i) m.lane[i] = begin <= i && i < end;
  return m;
}
inline bool all(Mask m) {
  bool result = true;
  for (bool lane : m.lane) result = result && lane;
  return result;
}
inline F32 select(Mask m, F32 a, F32 b) {
  for (std::int32_t i = 0; i < kLanes; ++i) b.lane[i] = m.lane[i] ? a.lane[i] : b.lane[i];
  return b;
}

// Integers wrap.
inline I32 add(I32 a, I32 b) {
  for (std::int32_t i = 0; i < kLanes; ++i) {
    a.lane[i] =
        static_cast<std::int32_t>(static_cast<std::uint32_t>(a.lane[i]) + static_cast<std::uint32_t>(b.lane[i]));
  }
  return a;
}
inline I32 bit_and(I32 a, I32 b) {
  for (std::int32_t i = 0; i < kLanes; ++i) a.lane[i] &= b.lane[i];
  return a;
}
// Of the bits as unsigned integers, which order floats from 0 to infinity, and NaN above them.
inline I32 max_bits(I32 a, I32 b) {
  for (std::int32_t i = 0; i < kLanes; ++i) {
    a.lane[i] = static_cast<std::uint32_t>(a.lane[i]) > static_cast<std::uint32_t>(b.lane[i]) ? a.lane[i] : b.lane[i];
  }
  return a;
}
template <int kBits>
inline I32 shift_left(I32 a) {
  for (std::int32_t& lane : a.lane) lane = static_cast<std::int32_t>(static_cast<std::uint32_t>(lane) << kBits);
  return a;
}
inline I32 as_i32(F32 a) {
  I32 x;
  __builtin_memcpy(x.lane, a.lane, sizeof(x.lane));
  return x;
}
inline F32 as_f32(I32 a) {
  F32 x;
  __builtin_memcpy(x.lane, a.lane, sizeof(x.lane));
  return x;
}
inline F32 to_f32(I32 a) {
  F32 x;
  for (std::int32_t i = 0; i < kLanes; ++i) x.lane[i] = static_cast<float>(a.lane[i]);
  return x;
}
// To the nearest, ties to even; INT32_MIN for what has no int32.
inline std::int32_t to_i32(float x) {
  if (!(x >= -2147483648.0f && x < 2147483648.0f)) return INT32_MIN;
  const float magnitude = __builtin_fabsf(x);
  const float rounded = magnitude < 8388608.0f ? (magnitude + 8388608.0f) - 8388608.0f : magnitude;
  return static_cast<std::int32_t>(x < 0.0f ? -rounded : rounded);
}
inline I32 to_i32(F32 a) {
  I32 x;
  for (std::int32_t i = 0; i < kLanes; ++i) x.lane[i] = to_i32(a.lane[i]);
  return x;
}

// table[index & 15] in each lane.
inline F32 lookup(F32 table, I32 index) {
  F32 x;
  for (std::int32_t i = 0; i < kLanes; ++i) x.lane[i] = table.lane[index.lane[i] & 15];
  return x;
}

// acc + the dot product of each lane's four unsigned and four signed bytes, exactly.
inline I32 dot4(I32 acc, U8Quads a, S8Splat b) {
  for (std::int32_t i = 0; i < kLanes; ++i) {
    for (std::int32_t j = 0; j < 4; ++j) acc.lane[i] += static_cast<std::int32_t>(a.lane[i][j]) * b.quad[j];
  }
  return acc;
}
inline I32 dot4(I32 acc, U8Splat a, S8Quads b) {
  for (std::int32_t i = 0; i < kLanes; ++i) {
    for (std::int32_t j = 0; j < 4; ++j) acc.lane[i] += static_cast<std::int32_t>(a.quad[j]) * b.lane[i][j];
  }
  return acc;
}

// Reductions over the lanes: i with i + 8, then i + 4, i + 2, i + 1.
inline float reduce_add(F32 a) {
  for (std::int32_t width = kLanes / 2; width > 0; width /= 2) {
    for (std::int32_t i = 0; i < width; ++i) a.lane[i] = a.lane[i] + a.lane[i + width];
  }
  return a.lane[0];
}
inline float reduce_max(F32 a) {
  for (std::int32_t width = kLanes / 2; width > 0; width /= 2) {
    for (std::int32_t i = 0; i < width; ++i) a.lane[i] = a.lane[i] > a.lane[i + width] ? a.lane[i] : a.lane[i + width];
  }
  return a.lane[0];
}
inline std::int32_t reduce_add(I32 a) {
  std::uint32_t sum = 0;
  for (std::int32_t lane : a.lane) sum += static_cast<std::uint32_t>(lane);
  return static_cast<std::int32_t>(sum);
}

// Lane i: the largest bits, as max_bits orders them, of vector i of the sixteen that begin at p.
inline I32 reduce_max_bits_of_each(const float* p) {
  I32 x;
  for (std::int32_t i = 0; i < kLanes; ++i) {
    const I32 of = as_i32(load(p + i * kLanes));
    x.lane[i] = of.lane[0];
    for (const std::int32_t lane : of.lane) {
      x.lane[i] = static_cast<std::uint32_t>(lane) > static_cast<std::uint32_t>(x.lane[i]) ? lane : x.lane[i];
    }
  }
  return x;
}

inline void prefetch(const void* p) { __builtin_prefetch(p); }
