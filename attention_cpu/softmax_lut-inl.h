// exp through a table of sixteen entries, the one exponential of all kernels. Included after vec_<isa>.h.
//
// x = (16 k + i + f) ln 2 / 16 with |f| <= 1/2, so exp(x) = 2^k * table[i] * exp(f ln 2 / 16): the exponent is added as
// an integer, the table is one permute, and the last factor is a cubic whose rest is below 1e-8.
#pragma once

// Bits of 2^(i / 16), less the i << 19 that come with k when 16 k + i is shifted to the exponent.
alignas(64) constexpr std::uint32_t kExp2Sixteenths[kLanes] = {
    0x3f800000, 0x3f7daac3, 0x3f7b95c2, 0x3f79c3d3, 0x3f7837f0, 0x3f76f532, 0x3f75fed7, 0x3f75583f,
    0x3f7504f3, 0x3f7508a4, 0x3f75672a, 0x3f76248c, 0x3f7744fd, 0x3f78ccdf, 0x3f7ac0c7, 0x3f7d257d};
constexpr float kSixteenthsPerUnit = 23.0831203f;  // 16 / ln 2 as a float, and what that float lacks
constexpr float kSixteenthsPerUnitRest = 3.08154085e-7f;
constexpr float kExpFloor = -87.3f;             // a little above the smallest normal float: no result is subnormal
constexpr float kExpFloorSixteenths = -2015;    // the same for a rounded number of sixteenths
constexpr float kRoundToInteger = 12582912.0f;  // 1.5 * 2^23: the low bits of a sum with it are the rounded integer

// 2^((n + f) / 16) where `shifted` is n + kRoundToInteger.
inline F32 exp2_sixteenths(F32 shifted, F32 f) {
  const F32 cubic = mul(
      f, fma(f, fma(f, splat(1.3550808e-5f), splat(9.38384794e-4f)), splat(4.33216989e-2f)));  // exp(f ln 2 / 16) - 1
  const I32 index = as_i32(shifted);
  const F32 table = load(reinterpret_cast<const float*>(kExp2Sixteenths));
  const F32 power = as_f32(add(as_i32(lookup(table, index)), shift_left<19>(index)));  // higher bits of k fall off
  return fma(power, cubic, power);
}

// exp(x) for x <= 0, with a relative error of at most 1.5e-7; exactly 1 at 0, exactly 0 below -87.3 (where exp(x) is at
// most 1.3e-38) and at -inf, NaN for NaN.
inline F32 exp_lut(F32 x) {
  const F32 round = splat(kRoundToInteger);
  const F32 shifted = fma(x, splat(kSixteenthsPerUnit), round);
  const F32 minus_n = sub(round, shifted);
  const F32 f = fma(x, splat(kSixteenthsPerUnitRest), fma(x, splat(kSixteenthsPerUnit), minus_n));
  return select(less(x, splat(kExpFloor)), splat(0.0f), exp2_sixteenths(shifted, f));
}

// exp(x * scale), where sixteenths = scale * 16 / ln 2: as exp_lut, but for the rounding of the scale (6e-8 of the
// exponent) and of the floor.
inline F32 exp_lut_scaled(F32 x, F32 sixteenths) {
  const F32 round = splat(kRoundToInteger);
  const F32 shifted = fma(x, sixteenths, round);
  const F32 minus_n = sub(round, shifted);
  const F32 f = fma(x, sixteenths, minus_n);
  return select(less(splat(-kExpFloorSixteenths), minus_n), splat(0.0f), exp2_sixteenths(shifted, f));
}
