// Floats as weights and pages store them. Included into an anonymous namespace, like the kernels.

inline float get(const float* from) { return *from; }
inline float get(const Bf16* from) {
  const std::uint32_t bits = static_cast<std::uint32_t>(from->bits) << 16;
  float x;
  __builtin_memcpy(&x, &bits, sizeof(x));
  return x;
}

inline void put(float* to, float x) { *to = x; }
// To the nearest, ties to even; a NaN stays one.
inline void put(Bf16* to, float x) {
  std::uint32_t bits;
  __builtin_memcpy(&bits, &x, sizeof(bits));
  const std::uint32_t rounded = bits + 0x7fff + (bits >> 16 & 1);
  to->bits = static_cast<std::uint16_t>((x == x ? rounded : bits | 0x400000) >> 16);
}
