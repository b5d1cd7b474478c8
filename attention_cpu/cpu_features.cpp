#include "cpu_features.h"

#ifdef LLM_DECODER_X86
#include <cpuid.h>
#endif

namespace llm_decoder {
namespace {

// Intel's Software Developer's Manual, volume 2, CPUID, and volume 1, section 13.3, XCR0.
constexpr std::uint32_t bit(int i) { return std::uint32_t{1} << i; }

constexpr std::uint32_t kFma = bit(12), kOsxsave = bit(27), kAvx = bit(28), kF16c = bit(29);  // leaf 1, ecx
constexpr std::uint32_t kAvx2 = bit(5);                                                       // leaf 7, ebx
constexpr std::uint32_t kAvx512 = bit(16) /* F */ | bit(17) /* DQ */ | bit(30) /* BW */ | bit(31) /* VL */;
constexpr std::uint32_t kVnni = bit(11);                                   // leaf 7, ecx
constexpr std::uint32_t kYmmState = bit(1) | bit(2);                       // xmm, upper ymm
constexpr std::uint32_t kZmmState = kYmmState | bit(5) | bit(6) | bit(7);  // opmasks, upper zmm 0-15, zmm 16-31

constexpr bool has(std::uint32_t flags, std::uint32_t wanted) { return (flags & wanted) == wanted; }

}  // namespace

bool runs_avx2(const CpuReport& report) {
  return has(report.leaf1_ecx, kOsxsave | kAvx | kFma | kF16c) && has(report.leaf7_ebx, kAvx2) &&
         has(report.xcr0, kYmmState);
}

bool runs_avx512vnni(const CpuReport& report) {
  return runs_avx2(report) && has(report.leaf7_ebx, kAvx512) && has(report.leaf7_ecx, kVnni) &&
         has(report.xcr0, kZmmState);
}

#ifdef LLM_DECODER_X86
CpuReport read_cpu_report() {
  CpuReport report;
  std::uint32_t eax, ebx, ecx, edx;
  if (__get_cpuid_count(1, 0, &eax, &ebx, &ecx, &edx) != 0) report.leaf1_ecx = ecx;
  if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) != 0) {
    report.leaf7_ebx = ebx;
    report.leaf7_ecx = ecx;
  }
  // Without OSXSAVE the instruction faults. Written out, since the intrinsic wants -mxsave.
  if (has(report.leaf1_ecx, kOsxsave)) __asm__("xgetbv" : "=a"(report.xcr0), "=d"(edx) : "c"(0));
  return report;
}
#else
CpuReport read_cpu_report() { return {}; }
#endif

}  // namespace llm_decoder
