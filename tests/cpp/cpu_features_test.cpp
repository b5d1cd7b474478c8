// Which kernels run: what a CPU has and its system saves decides; the choice is made once, can be forced, and an
// impossible name is an error that lists the possible.
#include <cstdlib>
#include <string>

#include "check.h"
#include "cpu_features.h"
#include "llm_decoder/cpu_kernels.h"

using llm_decoder::cpu_kernels;
using llm_decoder::CpuKernels;
using llm_decoder::CpuReport;
using llm_decoder::runs_avx2;
using llm_decoder::runs_avx512vnni;
using llm_decoder::select_cpu_kernels;

// What an Ice Lake server under Linux answers, its bits as the manual numbers them.
constexpr CpuReport kServer = {1u << 12 | 1u << 27 | 1u << 28 | 1u << 29,
                               1u << 5 | 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31, 1u << 11, 0xe7};

// The best table for a CPU that answers `report`.
std::string best_isa(const CpuReport& report) {
  return runs_avx512vnni(report) ? "avx512vnni" : runs_avx2(report) ? "avx2" : "generic";
}

std::string best_isa_without(std::uint32_t CpuReport::* answer, int bit) {
  CpuReport report = kServer;
  report.*answer &= ~(1u << bit);
  return best_isa(report);
}

TEST(a_cpu_and_a_system_with_everything_run_avx512vnni) { CHECK_EQ(best_isa(kServer), "avx512vnni"); }

TEST(an_avx512_cpu_whose_system_saves_only_ymm_runs_avx2) {
  CpuReport report = kServer;
  report.xcr0 = 0x07;
  CHECK_EQ(best_isa(report), "avx2");
}

TEST(each_part_of_the_zmm_state_is_needed_for_avx512) {
  for (int bit : {5, 6, 7}) CHECK_EQ(best_isa_without(&CpuReport::xcr0, bit), "avx2");
}

TEST(a_system_that_saves_only_xmm_runs_generic) {
  CpuReport report = kServer;
  report.xcr0 = 0x03;
  CHECK_EQ(best_isa(report), "generic");
}

TEST(zmm_state_without_ymm_state_runs_generic) {
  for (int bit : {1, 2}) CHECK_EQ(best_isa_without(&CpuReport::xcr0, bit), "generic");
}

TEST(without_osxsave_xcr0_is_not_believed) { CHECK_EQ(best_isa_without(&CpuReport::leaf1_ecx, 27), "generic"); }

TEST(avx2_without_avx_fma_or_f16c_runs_generic) {
  for (int bit : {12, 28, 29}) CHECK_EQ(best_isa_without(&CpuReport::leaf1_ecx, bit), "generic");
}

TEST(avx_without_avx2_runs_generic) { CHECK_EQ(best_isa_without(&CpuReport::leaf7_ebx, 5), "generic"); }

TEST(avx512_without_f_dq_bw_vl_or_vnni_runs_avx2) {
  for (int bit : {16, 17, 30, 31}) CHECK_EQ(best_isa_without(&CpuReport::leaf7_ebx, bit), "avx2");
  CHECK_EQ(best_isa_without(&CpuReport::leaf7_ecx, 11), "avx2");
}

TEST(a_cpu_that_answers_nothing_runs_generic) { CHECK_EQ(best_isa(CpuReport{}), "generic"); }

TEST(this_machine_runs_the_tables_of_its_report) {
  CHECK_EQ(std::string(cpu_kernels().front()->name), best_isa(llm_decoder::read_cpu_report()));
}

#ifdef __x86_64__
TEST(this_machine_answers_what_the_compiler_finds) {
  const CpuReport report = llm_decoder::read_cpu_report();
  CHECK_EQ(runs_avx2(report), __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"));
  CHECK_EQ(runs_avx512vnni(report), __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bw"));
}
#endif

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
