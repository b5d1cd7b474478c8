// The peak of AVX-512: twelve independent sums, enough to hide the latency of a multiply-add on every CPU that has it.
// In assembly, as the products do it (gemm_avx512-inl.h): GCC 12 moves sums about around the intrinsics.

constexpr std::int64_t kPeakSums = 12;
constexpr std::int64_t kPeakStepsPerRound = 64;

std::int64_t peak_int8(std::int64_t n_rounds) {
  __m512i sums[kPeakSums];
  for (__m512i& sum : sums) sum = _mm512_setzero_si512();
  const __m512i line = _mm512_set1_epi8(3), factor = _mm512_set1_epi8(-5);
  for (std::int64_t step = 0; step < n_rounds * kPeakStepsPerRound; ++step) {
    for (__m512i& sum : sums) asm volatile("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(line), "v"(factor));
  }
  return n_rounds * kPeakStepsPerRound * kPeakSums * kPanelWidth * kDotWidth * 2;
}

std::int64_t peak_f32(std::int64_t n_rounds) {
  __m512 sums[kPeakSums];
  for (__m512& sum : sums) sum = _mm512_setzero_ps();
  const __m512 line = _mm512_set1_ps(0.5f), factor = _mm512_set1_ps(-0.25f);
  for (std::int64_t step = 0; step < n_rounds * kPeakStepsPerRound; ++step) {
    for (__m512& sum : sums) asm volatile("vfmadd231ps %2, %1, %0" : "+v"(sum) : "v"(line), "v"(factor));
  }
  return n_rounds * kPeakStepsPerRound * kPeakSums * kPanelWidth * 2;
}
