// What this CPU can run and the operating system saves: CPUID and XCR0 together, as the compiler's runtime reads them.
#pragma once

namespace llm_decoder {

bool cpu_has_avx2();        // with FMA and F16C
bool cpu_has_avx512vnni();  // with F, BW, VL, DQ

}  // namespace llm_decoder
