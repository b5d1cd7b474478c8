// Bytes widened in registers: every byte, in every place, to both types, as the definition says.
#include <cmath>
#include <cstring>
#include <vector>

#include "check.h"
#include "widen_bytes.h"

namespace {

using namespace llm_decoder;
using namespace llm_decoder::gpu;

template <class T>
double half_of(std::uint32_t word, int i) {
  return to_float(T{static_cast<std::uint16_t>(word >> (16 * i))});
}

double fp8_value(int bits) {
  const int mantissa = bits & 7, exponent = bits >> 3 & 15;
  const double magnitude = exponent == 0 ? std::ldexp(mantissa, -9) : std::ldexp(8 + mantissa, exponent - 10);
  return bits & 0x80 ? -magnitude : magnitude;
}

// Of lane l words of the bytes 8 l to 8 l + 7, each of which comes to each place; pairs as attention takes them.
struct Words {
  std::uint32_t* out;  // [lane][rotation][pair]
};
constexpr int place(int pair, int i) {
  const int places[4][2] = {{0, 1}, {2, 3}, {0, 2}, {1, 3}};
  return places[pair][i];
}

struct FiniteFp8 {};

template <class T, class Kv>
GPU_FUNCTION std::uint32_t widen_pair(std::uint32_t word, int i, int j) {
  if constexpr (std::is_same_v<Kv, FiniteFp8>) {
    return widen_finite_fp8<T>(word, i, j);
  } else {
    return widen<T, Kv>(word, i, j);
  }
}

template <class T, class Kv>
GPU_KERNEL widen_all(const Words args) {
  for (int rotation = 0; rotation < 8; ++rotation) {
    std::uint32_t word = 0;
    for (int i = 0; i < 4; ++i) word |= static_cast<std::uint32_t>(lane() * 8 + (rotation + i) % 8) << (8 * i);
    for (int p = 0; p < 4; ++p) {
      args.out[(lane() * 8 + rotation) * 4 + p] = widen_pair<T, Kv>(word, place(p, 0), place(p, 1));
    }
  }
}

template <class T>
GPU_KERNEL move_all(const Words args) {
  for (int rotation = 0; rotation < 8; ++rotation) {
    const int first = lane() * 8 + rotation, second = lane() * 8 + (rotation + 1) % 8;
    args.out[first] = move_fp8<T>(static_cast<std::uint32_t>(first | second << 8));
  }
}

template <class T, class Kv, class Value>
void check_widened(const Value& value) {
  std::vector<std::uint32_t> out(32 * 8 * 4);
  launch<widen_all<T, Kv>>(nullptr, {{1, 1, 1}, 32, 0}, Words{out.data()});
  for (int at = 0; at < static_cast<int>(out.size()); ++at) {
    for (int i = 0; i < 2; ++i) {
      const int byte = at / 32 * 8 + (at / 4 % 8 + place(at % 4, i)) % 8;
      const double got = half_of<T>(out[static_cast<std::size_t>(at)], i) / double{kUnitOf<Kv>}, want = value(byte);
      if (std::isnan(want)) {
        CHECK(std::isnan(got));
      } else {
        CHECK_EQ(got, want);
        CHECK_EQ(std::signbit(got), std::signbit(want));
      }
    }
  }
}

double fp8_or_nan(int byte) { return (byte & 0x7f) == 0x7f ? std::nan("") : fp8_value(byte); }

TEST(every_int8_is_exact_in_both_types) {
  const auto value = [](int byte) { return static_cast<double>(byte < 128 ? byte : byte - 256); };
  check_widened<Bf16, Int8>(value);
  check_widened<Fp16, Int8>(value);
}

TEST(every_fp8_is_exact_in_both_types) {
  check_widened<Bf16, Fp8>(fp8_or_nan);
  check_widened<Fp16, Fp8>(fp8_or_nan);
}

TEST(every_finite_fp8_is_exact_in_both_types_by_integers_alone) {
  check_widened<Bf16, FiniteFp8>(fp8_value);
  check_widened<Fp16, FiniteFp8>(fp8_value);
}

template <class T>
void check_moved() {
  std::vector<std::uint32_t> out(256);
  launch<move_all<T>>(nullptr, {{1, 1, 1}, 32, 0}, Words{out.data()});
  for (int byte = 0; byte < 256; ++byte) {
    const int bytes[2] = {byte, byte / 8 * 8 + (byte + 1) % 8};
    for (int i = 0; i < 2; ++i) {
      const double got = half_of<T>(out[static_cast<std::size_t>(byte)], i), want = fp8_or_nan(bytes[i]);
      CHECK_EQ(std::isnan(got), std::isnan(want));
      if (std::isnan(want)) continue;
      CHECK_EQ(got, want);
      CHECK_EQ(std::signbit(got), std::signbit(want));
    }
  }
}

TEST(every_fp8_is_exact_where_no_instruction_knows_it) {
  check_moved<Bf16>();
  check_moved<Fp16>();
}

}  // namespace
