// The vector verbs on AVX2 and FMA: two ymm registers a vector. Meaning and rules: vec_generic.h.
//
// Included inside an anonymous namespace, after <cstdint> and <immintrin.h>.
#pragma once

constexpr std::int32_t kLanes = 16;
constexpr std::int32_t kNativeLanes = 8;  // floats of one register
// 16 registers: eight accumulators, the rest for K or V and a broadcast.
constexpr std::int32_t kRowTile = 4;
constexpr std::int32_t vectors_beside(std::int32_t n_rows) { return n_rows == 1 ? 2 : 1; }

struct F32 {
  __m256 lo, hi;
};
struct I32 {
  __m256i lo, hi;
};
struct Mask {
  __m256 lo, hi;
};
// Bytes are widened to 16 bit when they are loaded, bytes 0 and 2 of each quad apart from bytes 1 and 3, because
// vpmaddubsw would saturate. Whoever shares an operand among rows or columns pays for its widening once.
struct U8Quads {
  __m256i even_lo, odd_lo, even_hi, odd_hi;
};
struct S8Quads {
  __m256i even_lo, odd_lo, even_hi, odd_hi;
};
struct U8Splat {
  __m256i even, odd;
};
struct S8Splat {
  __m256i even, odd;
};

inline __m256i lane_index_lo() { return _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7); }
inline __m256i lane_index_hi() { return _mm256_setr_epi32(8, 9, 10, 11, 12, 13, 14, 15); }
inline I32 first_lanes(std::int32_t n) {
  const __m256i count = _mm256_set1_epi32(n);
  return {_mm256_cmpgt_epi32(count, lane_index_lo()), _mm256_cmpgt_epi32(count, lane_index_hi())};
}

inline __m256 load_half(const float* p) { return _mm256_loadu_ps(p); }
inline __m256 load_half(const Bf16* p) {
  const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}
template <class Element>
inline F32 load(const Element* p) {
  return {load_half(p), load_half(p + 8)};
}
inline F32 load_first(const float* p, std::int32_t n, float fill) {
  const I32 mask = first_lanes(n);
  const __m256 rest = _mm256_set1_ps(fill);
  return {_mm256_blendv_ps(rest, _mm256_maskload_ps(p, mask.lo), _mm256_castsi256_ps(mask.lo)),
          _mm256_blendv_ps(rest, _mm256_maskload_ps(p + 8, mask.hi), _mm256_castsi256_ps(mask.hi))};
}
inline void store(float* p, F32 x) {
  _mm256_storeu_ps(p, x.lo);
  _mm256_storeu_ps(p + 8, x.hi);
}
inline void store_first(float* p, F32 x, std::int32_t n) {
  const I32 mask = first_lanes(n);
  _mm256_maskstore_ps(p, mask.lo, x.lo);
  _mm256_maskstore_ps(p + 8, mask.hi, x.hi);
}
inline __m256i load_bits(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
inline __m256i splat_quad_bits(const void* p) {
  std::int32_t bits;
  __builtin_memcpy(&bits, p, sizeof(bits));
  return _mm256_set1_epi32(bits);
}
inline __m256i even_u8(__m256i x) { return _mm256_and_si256(x, _mm256_set1_epi16(0xff)); }
inline __m256i odd_u8(__m256i x) { return _mm256_srli_epi16(x, 8); }
inline __m256i even_s8(__m256i x) { return _mm256_srai_epi16(_mm256_slli_epi16(x, 8), 8); }
inline __m256i odd_s8(__m256i x) { return _mm256_srai_epi16(x, 8); }
inline U8Quads load_quads(const std::uint8_t* p) {
  const __m256i lo = load_bits(p), hi = load_bits(p + 32);
  return {even_u8(lo), odd_u8(lo), even_u8(hi), odd_u8(hi)};
}
inline S8Quads load_quads(const std::int8_t* p) {
  const __m256i lo = load_bits(p), hi = load_bits(p + 32);
  return {even_s8(lo), odd_s8(lo), even_s8(hi), odd_s8(hi)};
}
inline U8Splat splat_quad(const std::uint8_t* p) {
  const __m256i bits = splat_quad_bits(p);
  return {even_u8(bits), odd_u8(bits)};
}
inline S8Splat splat_quad(const std::int8_t* p) {
  const __m256i bits = splat_quad_bits(p);
  return {even_s8(bits), odd_s8(bits)};
}
// Sixteen int16, in order, out of sixteen int32.
inline __m256i narrow_to_i16(I32 x) { return _mm256_permute4x64_epi64(_mm256_packs_epi32(x.lo, x.hi), 0xd8); }
inline void store_bytes(std::int8_t* p, I32 x) {
  const __m256i words = narrow_to_i16(x);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                   _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
}
inline void store_bytes(std::uint8_t* p, I32 x) {
  const __m256i words = narrow_to_i16(x);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                   _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
}

inline void store_low_bytes(std::uint8_t* p, I32 x) {
  const __m256i low = _mm256_set1_epi32(0xff);
  store_bytes(p, I32{_mm256_and_si256(x.lo, low), _mm256_and_si256(x.hi, low)});
}

inline F32 splat(float v) { return {_mm256_set1_ps(v), _mm256_set1_ps(v)}; }
inline I32 splat(std::int32_t v) { return {_mm256_set1_epi32(v), _mm256_set1_epi32(v)}; }

inline F32 add(F32 a, F32 b) { return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)}; }
inline F32 sub(F32 a, F32 b) { return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)}; }
inline F32 mul(F32 a, F32 b) { return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)}; }
inline F32 div(F32 a, F32 b) { return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)}; }
inline F32 max(F32 a, F32 b) { return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)}; }
inline F32 abs(F32 a) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  return {_mm256_andnot_ps(sign, a.lo), _mm256_andnot_ps(sign, a.hi)};
}
inline float sqrt(float a) { return _mm_cvtss_f32(_mm_sqrt_ss(_mm_set_ss(a))); }
inline float fma(float a, float b, float c) {
  return _mm_cvtss_f32(_mm_fmadd_ss(_mm_set_ss(a), _mm_set_ss(b), _mm_set_ss(c)));
}
inline F32 fma(F32 a, F32 b, F32 c) { return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)}; }

inline Mask less(F32 a, F32 b) {
  return {_mm256_cmp_ps(a.lo, b.lo, _CMP_LT_OQ), _mm256_cmp_ps(a.hi, b.hi, _CMP_LT_OQ)};
}
inline Mask lanes_between(std::int32_t begin, std::int32_t end) {
  const I32 before_begin = first_lanes(begin), before_end = first_lanes(end);
  return {_mm256_castsi256_ps(_mm256_andnot_si256(before_begin.lo, before_end.lo)),
          _mm256_castsi256_ps(_mm256_andnot_si256(before_begin.hi, before_end.hi))};
}
inline bool all(Mask m) { return (_mm256_movemask_ps(m.lo) & _mm256_movemask_ps(m.hi)) == 0xff; }
inline F32 select(Mask m, F32 a, F32 b) {
  return {_mm256_blendv_ps(b.lo, a.lo, m.lo), _mm256_blendv_ps(b.hi, a.hi, m.hi)};
}

inline I32 add(I32 a, I32 b) { return {_mm256_add_epi32(a.lo, b.lo), _mm256_add_epi32(a.hi, b.hi)}; }
inline I32 bit_and(I32 a, I32 b) { return {_mm256_and_si256(a.lo, b.lo), _mm256_and_si256(a.hi, b.hi)}; }
inline I32 max_bits(I32 a, I32 b) { return {_mm256_max_epu32(a.lo, b.lo), _mm256_max_epu32(a.hi, b.hi)}; }
template <int kBits>
inline I32 shift_left(I32 a) {
  return {_mm256_slli_epi32(a.lo, kBits), _mm256_slli_epi32(a.hi, kBits)};
}
inline I32 as_i32(F32 a) { return {_mm256_castps_si256(a.lo), _mm256_castps_si256(a.hi)}; }
inline F32 as_f32(I32 a) { return {_mm256_castsi256_ps(a.lo), _mm256_castsi256_ps(a.hi)}; }
inline F32 to_f32(I32 a) { return {_mm256_cvtepi32_ps(a.lo), _mm256_cvtepi32_ps(a.hi)}; }
inline I32 to_i32(F32 a) { return {_mm256_cvtps_epi32(a.lo), _mm256_cvtps_epi32(a.hi)}; }

inline __m256 lookup_half(F32 table, __m256i index) {
  const __m256 low = _mm256_permutevar8x32_ps(table.lo, index);
  const __m256 high = _mm256_permutevar8x32_ps(table.hi, index);
  return _mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32(index, 28)));
}
inline F32 lookup(F32 table, I32 index) { return {lookup_half(table, index.lo), lookup_half(table, index.hi)}; }

inline __m256i dot4_half(__m256i acc, __m256i even_a, __m256i odd_a, __m256i even_b, __m256i odd_b) {
  return _mm256_add_epi32(_mm256_add_epi32(acc, _mm256_madd_epi16(even_a, even_b)), _mm256_madd_epi16(odd_a, odd_b));
}
inline I32 dot4(I32 acc, U8Quads a, S8Splat b) {
  return {dot4_half(acc.lo, a.even_lo, a.odd_lo, b.even, b.odd), dot4_half(acc.hi, a.even_hi, a.odd_hi, b.even, b.odd)};
}
inline I32 dot4(I32 acc, U8Splat a, S8Quads b) {
  return {dot4_half(acc.lo, a.even, a.odd, b.even_lo, b.odd_lo), dot4_half(acc.hi, a.even, a.odd, b.even_hi, b.odd_hi)};
}

inline float reduce_add(F32 a) {
  const __m256 x8 = _mm256_add_ps(a.lo, a.hi);
  const __m128 x4 = _mm_add_ps(_mm256_castps256_ps128(x8), _mm256_extractf128_ps(x8, 1));
  const __m128 x2 = _mm_add_ps(x4, _mm_movehl_ps(x4, x4));
  return _mm_cvtss_f32(_mm_add_ss(x2, _mm_movehdup_ps(x2)));
}
inline float reduce_max(F32 a) {
  const __m256 x8 = _mm256_max_ps(a.lo, a.hi);
  const __m128 x4 = _mm_max_ps(_mm256_castps256_ps128(x8), _mm256_extractf128_ps(x8, 1));
  const __m128 x2 = _mm_max_ps(x4, _mm_movehl_ps(x4, x4));
  return _mm_cvtss_f32(_mm_max_ss(x2, _mm_movehdup_ps(x2)));
}
inline std::int32_t reduce_add(I32 a) {
  const __m256i x8 = _mm256_add_epi32(a.lo, a.hi);
  const __m128i x4 = _mm_add_epi32(_mm256_castsi256_si128(x8), _mm256_extracti128_si256(x8, 1));
  const __m128i x2 = _mm_add_epi32(x4, _mm_unpackhi_epi64(x4, x4));
  return _mm_cvtsi128_si32(_mm_add_epi32(x2, _mm_shuffle_epi32(x2, 1)));
}

// Vectors 0 to 3 at p: [0 1 2 3] in each half.
inline __m256i max_bits_of_four(const float* p) {
  __m256i pairs[2];
  for (int i = 0; i < 2; ++i) {
    const float *a = p + 2 * i * kLanes, *b = a + kLanes;
    const __m256i a8 = _mm256_max_epu32(load_bits(a), load_bits(a + 8));
    const __m256i b8 = _mm256_max_epu32(load_bits(b), load_bits(b + 8));
    pairs[i] = _mm256_max_epu32(_mm256_unpacklo_epi32(a8, b8), _mm256_unpackhi_epi32(a8, b8));
  }
  return _mm256_max_epu32(_mm256_unpacklo_epi64(pairs[0], pairs[1]), _mm256_unpackhi_epi64(pairs[0], pairs[1]));
}
inline __m256i max_bits_of_eight(const float* p) {
  const __m256i a = max_bits_of_four(p), b = max_bits_of_four(p + 4 * kLanes);
  return _mm256_max_epu32(_mm256_permute2x128_si256(a, b, 0x20), _mm256_permute2x128_si256(a, b, 0x31));
}
inline I32 reduce_max_bits_of_each(const float* p) { return {max_bits_of_eight(p), max_bits_of_eight(p + 8 * kLanes)}; }

// Into the L2 cache: pages come in bursts that the few fill buffers of the L1 cache would hold up.
inline void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1); }
