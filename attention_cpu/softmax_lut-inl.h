// exp through a table of sixteen entries, the one exponential of all kernels. Included after vec_<isa>.h.
#pragma once

alignas(64) constexpr float kExp2Sixteenths[kLanes] = {
    1.0f,        1.04427373f, 1.09050775f, 1.13878858f, 1.18920708f, 1.24185777f, 1.29683959f, 1.35425556f,
    1.41421354f, 1.47682619f, 1.54221082f, 1.61049032f, 1.68179286f, 1.75625217f, 1.8340081f,  1.91520655f};
constexpr float kSixteenthsPerUnit = 23.0831203f;  // 16 / ln 2
constexpr float kSixteenthHigh = 4.33216989e-2f;   // ln 2 / 16 as a float, and what that float lacks
constexpr float kSixteenthLow = -1.19040888e-10f;
constexpr float kExpFloor = -87.3f;  // a little above the smallest normal float: no result is subnormal

// exp(x) for x <= 0, with a relative error of at most 1.5e-7; exactly 1 at 0, exactly 0 below -87.3 (where exp(x) is at
// most 1.3e-38) and at -inf, NaN for NaN.
//
// x = (16 k + i) ln 2 / 16 + r with |r| <= ln 2 / 32, so exp(x) = 2^k * table[i] * exp(r): the exponent is added as an
// integer, the table is one permute, and exp(r) is a cubic whose rest r^4 / 24 is below 1e-8.
inline F32 exp_lut(F32 x) {
  const F32 round_to_integer = splat(12582912.0f);  // 1.5 * 2^23: the sum's low bits are the rounded integer
  const F32 floor = splat(kExpFloor);
  const F32 clamped = max(floor, x);
  const F32 shifted = fma(clamped, splat(kSixteenthsPerUnit), round_to_integer);
  const F32 n = sub(shifted, round_to_integer);
  const F32 r = fma(n, splat(-kSixteenthLow), fma(n, splat(-kSixteenthHigh), clamped));
  const F32 cubic = mul(r, fma(r, fma(r, splat(1.0f / 6.0f), splat(0.5f)), splat(1.0f)));
  const I32 index = as_i32(shifted);
  const I32 exponent = shift_left<19>(bit_and(index, splat(-16)));  // k to bit 23; higher bits fall off
  const F32 power = as_f32(add(as_i32(lookup(load(kExp2Sixteenths), index)), exponent));
  return select(less(x, floor), splat(0.0f), fma(power, cubic, power));
}
