// Floats as weights and pages store them. Included into an anonymous namespace, like the kernels.

// 5 bits of exponent, 10 of mantissa.
struct Fp16 {
  std::uint16_t bits;
};
// e4m3: 4 bits of exponent, 3 of mantissa, largest 448, NaN but no infinity.
struct Fp8 {
  std::uint8_t bits;
};

inline std::uint32_t bits_of(float x) {
  std::uint32_t bits;
  __builtin_memcpy(&bits, &x, sizeof(bits));
  return bits;
}
inline float float_of(std::uint32_t bits) {
  float x;
  __builtin_memcpy(&x, &bits, sizeof(x));
  return x;
}

// A finite magnitude of few bits: exponent and mantissa move to their places, and one product mends the bias, also of
// what is subnormal.
template <int kExponentBits, int kMantissaBits>
inline float widen(std::uint32_t magnitude) {
  constexpr std::uint32_t kBias = (1u << (kExponentBits - 1)) - 1;
  return float_of(magnitude << (23 - kMantissaBits)) * float_of((254 - kBias) << 23);
}

// The inverse: the nearest, ties to even, which may be one past the largest finite one.
template <int kExponentBits, int kMantissaBits>
inline std::uint32_t narrow(float magnitude) {
  constexpr std::uint32_t kBias = (1u << (kExponentBits - 1)) - 1, kDropped = 23 - kMantissaBits;
  constexpr std::uint32_t kSmallestNormalBits = (128 - kBias) << 23;
  const std::uint32_t bits = bits_of(magnitude);
  if (bits < kSmallestNormalBits) {
    // A sum with 2^23 times the smallest subnormal is a multiple of that, rounded as sums are.
    constexpr std::uint32_t kUnits = (128 - kBias - kMantissaBits + 23) << 23;
    return bits_of(magnitude + float_of(kUnits)) - kUnits;
  }
  const std::uint32_t rebiased = bits - ((127 - kBias) << 23);
  return (rebiased + (1u << (kDropped - 1)) - 1 + (rebiased >> kDropped & 1)) >> kDropped;
}

inline float get(const float* from) { return *from; }
inline float get(const Bf16* from) { return float_of(static_cast<std::uint32_t>(from->bits) << 16); }
inline float get(const Fp16* from) {
  const std::uint32_t magnitude = from->bits & 0x7fffu, sign = (from->bits & 0x8000u) << 16;
  const float x = magnitude < 0x7c00u ? widen<5, 10>(magnitude) : float_of(0x7f800000u | (magnitude & 0x3ffu) << 13);
  return float_of(bits_of(x) | sign);
}
inline float get(const Fp8* from) {
  const std::uint32_t magnitude = from->bits & 0x7fu, sign = (from->bits & 0x80u) << 24;
  const float x = magnitude == 0x7fu ? float_of(0x7fc00000u) : widen<4, 3>(magnitude);
  return float_of(bits_of(x) | sign);
}

inline void put(float* to, float x) { *to = x; }
// To the nearest, ties to even; a NaN stays one.
inline void put(Bf16* to, float x) {
  const std::uint32_t bits = bits_of(x);
  const std::uint32_t rounded = bits + 0x7fff + (bits >> 16 & 1);
  to->bits = static_cast<std::uint16_t>((x == x ? rounded : bits | 0x400000) >> 16);
}
// Infinity from 65520 on.
inline void put(Fp16* to, float x) {
  const std::uint32_t bits = bits_of(x), magnitude = bits & 0x7fffffffu;
  const std::uint32_t narrowed = x != x                     ? 0x7e00u
                                 : magnitude >= 0x477ff000u ? 0x7c00u
                                                            : narrow<5, 10>(float_of(magnitude));
  to->bits = static_cast<std::uint16_t>(narrowed | (bits >> 16 & 0x8000u));
}
// What is beyond 448 becomes 448.
inline void put(Fp8* to, float x) {
  const std::uint32_t bits = bits_of(x), magnitude = bits & 0x7fffffffu;
  const std::uint32_t narrowed = x != x ? 0x7fu : magnitude >= 0x43e00000u ? 0x7eu : narrow<4, 3>(float_of(magnitude));
  to->bits = static_cast<std::uint8_t>(narrowed | (bits >> 24 & 0x80u));
}
