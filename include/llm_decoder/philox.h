// Philox4x32-10, the counter-based generator of Salmon et al. 2011 ("Parallel random numbers: as easy as 1, 2, 3"): a
// draw is a pure function of key and counter, so it never depends on who drew before. constexpr, so that kernels have
// it too.
#pragma once

#include <array>
#include <cstdint>

namespace llm_decoder {

constexpr std::array<std::uint32_t, 4> philox4x32(std::array<std::uint32_t, 4> counter,
                                                  std::array<std::uint32_t, 2> key) {
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t a = std::uint64_t{0xD2511F53u} * counter[0];
    const std::uint64_t b = std::uint64_t{0xCD9E8D57u} * counter[2];
    counter = {static_cast<std::uint32_t>(b >> 32) ^ counter[1] ^ key[0], static_cast<std::uint32_t>(b),
               static_cast<std::uint32_t>(a >> 32) ^ counter[3] ^ key[1], static_cast<std::uint32_t>(a)};
    key[0] += 0x9E3779B9u;
    key[1] += 0xBB67AE85u;
  }
  return counter;
}

// 128 random bits, number `index`, of the token at `position` of a sequence with this seed.
constexpr std::array<std::uint32_t, 4> philox_words(std::uint64_t seed, std::int64_t position, std::uint32_t index) {
  const std::uint64_t counter = static_cast<std::uint64_t>(position);
  return philox4x32({static_cast<std::uint32_t>(counter), static_cast<std::uint32_t>(counter >> 32), index, 0},
                    {static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(seed >> 32)});
}

// Uniform in [0, 1), 53 bits.
constexpr double philox_uniform(std::uint64_t seed, std::int64_t position) {
  const auto words = philox_words(seed, position, 0);
  const std::uint64_t bits = std::uint64_t{words[0]} << 21 ^ words[1] >> 11;
  return static_cast<double>(bits) * 0x1p-53;
}

}  // namespace llm_decoder
