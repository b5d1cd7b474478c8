#include "cpu_features.h"

#ifdef LLM_DECODER_X86
#include <cpuid.h>
#endif

namespace llm_decoder {

#ifdef LLM_DECODER_X86
namespace {

struct Leaf {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
};

// All zero when this CPU has no such leaf.
Leaf cpuid(unsigned leaf) {
  Leaf out;
  if (__get_cpuid_count(leaf, 0, &out.eax, &out.ebx, &out.ecx, &out.edx) == 0) return {};
  return out;
}

bool has(unsigned flags, unsigned wanted) { return (flags & wanted) == wanted; }

// XCR0 bits: xmm 1, ymm 2, opmask 5, upper halves of zmm 6, zmm 16-31 7. As an instruction, since the intrinsic wants
// -mxsave.
bool system_saves(unsigned state) {
  if (!has(cpuid(1).ecx, bit_OSXSAVE)) return false;
  unsigned low, high;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return has(low, state);
}

constexpr unsigned kYmmState = 0x06;
constexpr unsigned kZmmState = 0xe6;

}  // namespace

bool cpu_has_avx2() {
  return has(cpuid(1).ecx, bit_AVX | bit_FMA | bit_F16C) && has(cpuid(7).ebx, bit_AVX2) && system_saves(kYmmState);
}

bool cpu_has_avx512vnni() {
  const Leaf leaf = cpuid(7);
  return cpu_has_avx2() && has(leaf.ebx, bit_AVX512F | bit_AVX512BW | bit_AVX512VL | bit_AVX512DQ) &&
         has(leaf.ecx, bit_AVX512VNNI) && system_saves(kZmmState);
}
#else
bool cpu_has_avx2() { return false; }
bool cpu_has_avx512vnni() { return false; }
#endif

}  // namespace llm_decoder
