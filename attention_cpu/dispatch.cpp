// Which table runs: listed best first, chosen once when a decoder is built, never in a loop.
#include <cstdlib>
#include <string>

#include "cpu_features.h"
#include "kernel_tables.h"
#include "llm_decoder/cpu_kernels.h"
#include "llm_decoder/errors.h"

namespace llm_decoder {

const std::vector<const CpuKernels*>& cpu_kernels() {
  static const std::vector<const CpuKernels*> tables = [] {
    std::vector<const CpuKernels*> runnable;
#ifdef LLM_DECODER_X86
    const CpuReport report = read_cpu_report();
    if (runs_avx512vnni(report)) runnable.push_back(kernels_avx512vnni());
    if (runs_avx2(report)) runnable.push_back(kernels_avx2());
#endif
    runnable.push_back(kernels_generic());
    return runnable;
  }();
  return tables;
}

const CpuKernels& select_cpu_kernels(const char* isa) {
  std::string name = isa == nullptr ? "" : isa;
  const char* place = "CPU kernels";
  if (name.empty() || name == "auto") {
    const char* forced = std::getenv("LLM_DECODER_CPU_ISA");
    name = forced == nullptr ? "" : forced;
    place = "LLM_DECODER_CPU_ISA";
    if (name.empty() || name == "auto") return *cpu_kernels().front();
  }
  std::string choices;
  for (const CpuKernels* table : cpu_kernels()) {
    if (name == table->name) return *table;
    choices += choices.empty() ? table->name : std::string(", ") + table->name;
  }
  throw std::invalid_argument(
      concat("[", place, "] need one of auto, ", choices, " (what this machine runs), got '", name, "'"));
}

}  // namespace llm_decoder
