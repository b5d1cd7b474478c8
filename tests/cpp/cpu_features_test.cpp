// Which kernels run: the choice is made once, can be forced, and an impossible name is an error that lists the
// possible.
#include <cstdlib>
#include <string>

#include "check.h"
#include "llm_decoder/cpu_kernels.h"

using llm_decoder::cpu_kernels;
using llm_decoder::CpuKernels;
using llm_decoder::select_cpu_kernels;

TEST(generic_kernels_are_always_the_last_choice) { CHECK_EQ(std::string(cpu_kernels().back()->name), "generic"); }

TEST(auto_chooses_the_best_table) {
  unsetenv("LLM_DECODER_CPU_ISA");
  CHECK(&select_cpu_kernels("auto") == cpu_kernels().front());
  CHECK(&select_cpu_kernels("") == cpu_kernels().front());
}

TEST(a_named_table_is_the_one_that_is_chosen) {
  for (const CpuKernels* table : cpu_kernels()) CHECK(&select_cpu_kernels(table->name) == table);
}

TEST(the_environment_overrides_auto_and_no_explicit_name) {
  setenv("LLM_DECODER_CPU_ISA", "generic", 1);
  CHECK_EQ(std::string(select_cpu_kernels("auto").name), "generic");
  CHECK(&select_cpu_kernels(cpu_kernels().front()->name) == cpu_kernels().front());
  unsetenv("LLM_DECODER_CPU_ISA");
}

TEST(an_impossible_name_throws_and_lists_the_possible) {
  CHECK_THROWS(std::invalid_argument, "generic", select_cpu_kernels("avx9000"));
  setenv("LLM_DECODER_CPU_ISA", "mmx", 1);
  CHECK_THROWS(std::invalid_argument, "LLM_DECODER_CPU_ISA", select_cpu_kernels("auto"));
  unsetenv("LLM_DECODER_CPU_ISA");
}
