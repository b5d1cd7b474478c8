// What this CPU can run: CPUID says what it has, XCR0 which registers the operating system saves. Asking and deciding
// are apart, so that the decision can be tested for machines that are not at hand.
#pragma once

#include <cstdint>

namespace llm_decoder {

// The answers that the decision needs, all zero where there is no such leaf, and on a CPU that is not x86.
struct CpuReport {
  std::uint32_t leaf1_ecx = 0;
  std::uint32_t leaf7_ebx = 0;
  std::uint32_t leaf7_ecx = 0;
  std::uint32_t xcr0 = 0;  // low half; means something only when leaf 1 has OSXSAVE
};

CpuReport read_cpu_report();

bool runs_avx2(const CpuReport& report);        // with FMA and F16C; the system saves xmm and ymm
bool runs_avx512vnni(const CpuReport& report);  // with F, BW, VL, DQ, and all of avx2; it saves opmasks and zmm too

}  // namespace llm_decoder
