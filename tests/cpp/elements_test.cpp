// bf16, fp16 and fp8 against their definition: every value there and back, and every tie and neighbour of floats.
#include <cmath>
#include <limits>

#include "check.h"
#include "elements.h"

namespace {

using namespace llm_decoder;
using namespace llm_decoder::gpu;

// The value that bits of this format stand for, from the definition alone.
double value_of(int bits, int n_exponent, int n_mantissa) {
  const int mantissa = bits & ((1 << n_mantissa) - 1), exponent = bits >> n_mantissa & ((1 << n_exponent) - 1);
  const int bias = (1 << (n_exponent - 1)) - 1;
  const double sign = bits >> (n_exponent + n_mantissa) != 0 ? -1.0 : 1.0;
  const double fraction = std::ldexp(mantissa, -n_mantissa);
  return sign * (exponent == 0 ? std::ldexp(fraction, 1 - bias) : std::ldexp(1 + fraction, exponent - bias));
}

TEST(fp16_is_what_its_bits_say) {
  for (int bits = 0; bits < 0x10000; ++bits) {
    const Fp16 x{static_cast<std::uint16_t>(bits)};
    if ((bits & 0x7c00) != 0x7c00) {
      CHECK_EQ(double{to_float(x)}, value_of(bits, 5, 10));
      CHECK_EQ(from_float<Fp16>(to_float(x)).bits, x.bits);
    } else {
      CHECK_EQ(std::isnan(to_float(x)), (bits & 0x3ff) != 0);
      CHECK_EQ(std::isinf(to_float(x)), (bits & 0x3ff) == 0);
    }
  }
}

TEST(fp8_is_what_its_bits_say) {
  for (int bits = 0; bits < 0x100; ++bits) {
    const Fp8 x{static_cast<std::uint8_t>(bits)};
    if ((bits & 0x7f) != 0x7f) {
      CHECK_EQ(double{to_float(x)}, value_of(bits, 4, 3));
      CHECK_EQ(from_float<Fp8>(to_float(x)).bits, x.bits);
    } else {
      CHECK(std::isnan(to_float(x)));
    }
  }
}

// Between each two neighbours: halfway goes to the even one, a little less or more to the nearer one.
template <class T, class Bits>
void check_ties(int last_finite) {
  for (int bits = 0; bits < last_finite; ++bits) {
    const float low = to_float(T{static_cast<Bits>(bits)}), high = to_float(T{static_cast<Bits>(bits + 1)});
    const float half = (low + high) / 2;  // exact: one bit more
    const int even = bits % 2 == 0 ? bits : bits + 1;
    CHECK_EQ(int{from_float<T>(half).bits}, even);
    CHECK_EQ(int{from_float<T>(std::nextafter(half, 0.0f)).bits}, bits);
    CHECK_EQ(int{from_float<T>(std::nextafter(half, 1e30f)).bits}, bits + 1);
    CHECK_EQ(from_float<T>(-half).bits, static_cast<Bits>(even | 1 << (8 * sizeof(Bits) - 1)));
  }
}

TEST(floats_round_to_the_nearest_and_ties_to_even) {
  check_ties<Fp16, std::uint16_t>(0x7bff);
  check_ties<Fp8, std::uint8_t>(0x7e);
  check_ties<Bf16, std::uint16_t>(0x7000);
}

TEST(int8_rounds_to_the_nearest_and_ties_to_even) {
  for (int i = -127; i < 127; ++i) {
    const float low = static_cast<float>(i), half = low + 0.5f;
    CHECK_EQ(int{from_float<Int8>(low).value}, i);
    CHECK_EQ(int{from_float<Int8>(half).value}, i % 2 == 0 ? i : i + 1);
    CHECK_EQ(int{from_float<Int8>(std::nextafter(half, -1e30f)).value}, i);
    CHECK_EQ(int{from_float<Int8>(std::nextafter(half, 1e30f)).value}, i + 1);
    CHECK_EQ(to_float(Int8{static_cast<std::int8_t>(i)}), low);
  }
}

TEST(what_is_too_large_is_infinity_or_the_largest) {
  const float infinity = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
  CHECK_EQ(from_float<Fp16>(65519.996f).bits, 0x7bff);
  CHECK_EQ(from_float<Fp16>(65520.0f).bits, 0x7c00);
  CHECK_EQ(from_float<Fp16>(-infinity).bits, 0xfc00);
  CHECK(std::isnan(to_float(from_float<Fp16>(nan))));
  CHECK_EQ(to_float(from_float<Fp8>(1e9f)), 448.0f);
  CHECK_EQ(to_float(from_float<Fp8>(-infinity)), -448.0f);
  CHECK(std::isnan(to_float(from_float<Fp8>(nan))));
  CHECK(std::isnan(to_float(from_float<Bf16>(nan))));
  CHECK_EQ(int{from_float<Int8>(127.6f).value}, 127);
  CHECK_EQ(int{from_float<Int8>(infinity).value}, 127);
  CHECK_EQ(int{from_float<Int8>(-1e9f).value}, -127);
  CHECK_EQ(int{from_float<Int8>(nan).value}, 127);
  CHECK_EQ(to_float(from_float<Bf16>(infinity)), infinity);
}

}  // namespace
