// The vector verbs on AVX-512 (F, BW, DQ, VL, VNNI): one zmm register a vector. Meaning and rules: vec_generic.h.
//
// Included inside an anonymous namespace, after <cstdint> and <immintrin.h>.
#pragma once

constexpr std::int32_t kLanes = 16;
constexpr std::int32_t kNativeLanes = 16;  // floats of one register
// 32 registers: the accumulators, one vector of K or V for each column of the tile, one broadcast.
constexpr std::int32_t kRowTile = 6;
constexpr std::int32_t vectors_beside(std::int32_t /*n_rows*/) { return 4; }

struct F32 {
  __m512 v;
};
struct I32 {
  __m512i v;
};
struct Mask {
  __mmask16 v;
};
struct U8Quads {
  __m512i v;
};
struct S8Quads {
  __m512i v;
};
struct U8Splat {
  __m512i v;
};
struct S8Splat {
  __m512i v;
};

// The zero-masked forms under a full mask are the plain instructions; the plain intrinsics of GCC 12 warn of their own
// undefined operand.
constexpr __mmask16 kAllLanes = 0xffff;

inline __mmask16 first_lanes(std::int32_t n) { return static_cast<__mmask16>((1u << n) - 1u); }

inline F32 load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline F32 load(const Bf16* p) {
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return {_mm512_castsi512_ps(_mm512_maskz_slli_epi32(kAllLanes, _mm512_maskz_cvtepu16_epi32(kAllLanes, bits), 16))};
}
inline F32 load_first(const float* p, std::int32_t n, float fill) {
  return {_mm512_mask_loadu_ps(_mm512_set1_ps(fill), first_lanes(n), p)};
}
inline void store(float* p, F32 x) { _mm512_storeu_ps(p, x.v); }
inline void store_first(float* p, F32 x, std::int32_t n) { _mm512_mask_storeu_ps(p, first_lanes(n), x.v); }
inline U8Quads load_quads(const std::uint8_t* p) { return {_mm512_loadu_si512(p)}; }
inline S8Quads load_quads(const std::int8_t* p) { return {_mm512_loadu_si512(p)}; }
inline __m512i splat_quad_bits(const void* p) {
  std::int32_t bits;
  __builtin_memcpy(&bits, p, sizeof(bits));
  return _mm512_set1_epi32(bits);
}
inline U8Splat splat_quad(const std::uint8_t* p) { return {splat_quad_bits(p)}; }
inline S8Splat splat_quad(const std::int8_t* p) { return {splat_quad_bits(p)}; }
inline void store_bytes(std::int8_t* p, I32 x) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_maskz_cvtsepi32_epi8(kAllLanes, x.v));
}
inline void store_bytes(std::uint8_t* p, I32 x) {
  const __m512i positive = _mm512_maskz_max_epi32(kAllLanes, x.v, _mm512_setzero_si512());
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_maskz_cvtusepi32_epi8(kAllLanes, positive));
}

inline void store_low_bytes(std::uint8_t* p, I32 x) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_maskz_cvtepi32_epi8(kAllLanes, x.v));
}

inline F32 splat(float v) { return {_mm512_set1_ps(v)}; }
inline I32 splat(std::int32_t v) { return {_mm512_set1_epi32(v)}; }

inline F32 add(F32 a, F32 b) { return {_mm512_add_ps(a.v, b.v)}; }
inline F32 sub(F32 a, F32 b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline F32 mul(F32 a, F32 b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline F32 div(F32 a, F32 b) { return {_mm512_div_ps(a.v, b.v)}; }
inline F32 max(F32 a, F32 b) { return {_mm512_maskz_max_ps(kAllLanes, a.v, b.v)}; }
inline F32 abs(F32 a) { return {_mm512_abs_ps(a.v)}; }
inline float sqrt(float a) { return _mm_cvtss_f32(_mm_sqrt_ss(_mm_set_ss(a))); }
inline float fma(float a, float b, float c) {
  return _mm_cvtss_f32(_mm_fmadd_ss(_mm_set_ss(a), _mm_set_ss(b), _mm_set_ss(c)));
}
inline F32 fma(F32 a, F32 b, F32 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }

inline Mask less(F32 a, F32 b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ)}; }
inline Mask lanes_between(std::int32_t begin, std::int32_t end) {
  const std::int32_t first = begin < 0 ? 0 : begin > kLanes ? kLanes : begin;
  const std::int32_t last = end < 0 ? 0 : end > kLanes ? kLanes : end;
  return {static_cast<__mmask16>(first_lanes(last) & ~first_lanes(first))};
}
inline bool all(Mask m) { return m.v == 0xffff; }
inline F32 select(Mask m, F32 a, F32 b) { return {_mm512_mask_blend_ps(m.v, b.v, a.v)}; }

inline I32 add(I32 a, I32 b) { return {_mm512_add_epi32(a.v, b.v)}; }
inline I32 bit_and(I32 a, I32 b) { return {_mm512_and_si512(a.v, b.v)}; }
inline I32 max_bits(I32 a, I32 b) { return {_mm512_maskz_max_epu32(kAllLanes, a.v, b.v)}; }
template <int kBits>
inline I32 shift_left(I32 a) {
  return {_mm512_maskz_slli_epi32(kAllLanes, a.v, kBits)};
}
inline I32 as_i32(F32 a) { return {_mm512_castps_si512(a.v)}; }
inline F32 as_f32(I32 a) { return {_mm512_castsi512_ps(a.v)}; }
inline F32 to_f32(I32 a) { return {_mm512_maskz_cvtepi32_ps(kAllLanes, a.v)}; }
inline I32 to_i32(F32 a) { return {_mm512_maskz_cvtps_epi32(kAllLanes, a.v)}; }

inline F32 lookup(F32 table, I32 index) { return {_mm512_maskz_permutexvar_ps(kAllLanes, index.v, table.v)}; }

// The intrinsic makes GCC 12 move and spill the sums.
inline __m512i dot4_bits(__m512i acc, __m512i a, __m512i b) {
  asm("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(a), "v"(b));
  return acc;
}
inline I32 dot4(I32 acc, U8Quads a, S8Splat b) { return {dot4_bits(acc.v, a.v, b.v)}; }
inline I32 dot4(I32 acc, U8Splat a, S8Quads b) { return {dot4_bits(acc.v, a.v, b.v)}; }

// Written out, since the compiler's own reductions promise no order.
inline float reduce_add(F32 a) {
  const __m256 x8 =
      _mm256_add_ps(_mm512_maskz_extractf32x8_ps(0xff, a.v, 0), _mm512_maskz_extractf32x8_ps(0xff, a.v, 1));
  const __m128 x4 = _mm_add_ps(_mm256_castps256_ps128(x8), _mm256_extractf128_ps(x8, 1));
  const __m128 x2 = _mm_add_ps(x4, _mm_movehl_ps(x4, x4));
  return _mm_cvtss_f32(_mm_add_ss(x2, _mm_movehdup_ps(x2)));
}
inline float reduce_max(F32 a) {
  const __m256 x8 =
      _mm256_max_ps(_mm512_maskz_extractf32x8_ps(0xff, a.v, 0), _mm512_maskz_extractf32x8_ps(0xff, a.v, 1));
  const __m128 x4 = _mm_max_ps(_mm256_castps256_ps128(x8), _mm256_extractf128_ps(x8, 1));
  const __m128 x2 = _mm_max_ps(x4, _mm_movehl_ps(x4, x4));
  return _mm_cvtss_f32(_mm_max_ss(x2, _mm_movehdup_ps(x2)));
}
inline std::int32_t reduce_add(I32 a) {
  const __m256i x8 =
      _mm256_add_epi32(_mm512_maskz_extracti64x4_epi64(0xff, a.v, 0), _mm512_maskz_extracti64x4_epi64(0xff, a.v, 1));
  const __m128i x4 = _mm_add_epi32(_mm256_castsi256_si128(x8), _mm256_extracti128_si256(x8, 1));
  const __m128i x2 = _mm_add_epi32(x4, _mm_unpackhi_epi64(x4, x4));
  return _mm_cvtsi128_si32(_mm_add_epi32(x2, _mm_shuffle_epi32(x2, 1)));
}

// Vectors 0 to 3 at p: [0 1 2 3] in each quarter.
inline __m512i max_bits_of_four(const float* p) {
  __m512i pairs[2];
  for (int i = 0; i < 2; ++i) {
    const __m512i a = _mm512_loadu_si512(p + 2 * i * kLanes), b = _mm512_loadu_si512(p + (2 * i + 1) * kLanes);
    pairs[i] = _mm512_maskz_max_epu32(kAllLanes, _mm512_maskz_unpacklo_epi32(kAllLanes, a, b),
                                      _mm512_maskz_unpackhi_epi32(kAllLanes, a, b));
  }
  return _mm512_maskz_max_epu32(kAllLanes, _mm512_maskz_unpacklo_epi64(0xff, pairs[0], pairs[1]),
                                _mm512_maskz_unpackhi_epi64(0xff, pairs[0], pairs[1]));
}
inline I32 reduce_max_bits_of_each(const float* p) {
  __m512i halves[2];
  for (int i = 0; i < 2; ++i) {
    const __m512i a = max_bits_of_four(p + 8 * i * kLanes), b = max_bits_of_four(p + (8 * i + 4) * kLanes);
    halves[i] = _mm512_maskz_max_epu32(kAllLanes, _mm512_maskz_shuffle_i32x4(kAllLanes, a, b, 0x44),
                                       _mm512_maskz_shuffle_i32x4(kAllLanes, a, b, 0xee));
  }
  return {_mm512_maskz_max_epu32(kAllLanes, _mm512_maskz_shuffle_i32x4(kAllLanes, halves[0], halves[1], 0x88),
                                 _mm512_maskz_shuffle_i32x4(kAllLanes, halves[0], halves[1], 0xdd))};
}

// Into the L2 cache: pages come in bursts that the few fill buffers of the L1 cache would hold up.
inline void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1); }
