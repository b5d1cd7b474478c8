// What this CPU can run: CPUID says what it has, XCR0 which registers the operating system saves.
#pragma once

namespace llm_decoder {

bool cpu_has_avx2();        // with FMA and F16C
bool cpu_has_avx512vnni();  // with F, BW, VL, DQ, and all of cpu_has_avx2

}  // namespace llm_decoder
