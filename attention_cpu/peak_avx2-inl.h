// The peak of AVX2. int8 is bytes widened to 16 bit, multiplied and added in pairs, and added to a sum: two
// instructions for 16 multiply-adds, beside which widening is left out. In assembly, as the peak of AVX-512.

constexpr std::int64_t kPeakStepsPerRound = 64;

std::int64_t peak_int8(std::int64_t n_rounds) {
  constexpr std::int64_t kSums = 8;
  __m256i sums[kSums];
  for (__m256i& sum : sums) sum = _mm256_setzero_si256();
  const __m256i line = _mm256_set1_epi16(3), factor = _mm256_set1_epi16(-5);
  for (std::int64_t step = 0; step < n_rounds * kPeakStepsPerRound; ++step) {
    for (__m256i& sum : sums) {
      __m256i products;
      asm volatile("vpmaddwd %3, %2, %1\n vpaddd %1, %0, %0" : "+x"(sum), "=&x"(products) : "x"(line), "x"(factor));
    }
  }
  return n_rounds * kPeakStepsPerRound * kSums * 16 * 2;
}

std::int64_t peak_f32(std::int64_t n_rounds) {
  constexpr std::int64_t kSums = 12;
  __m256 sums[kSums];
  for (__m256& sum : sums) sum = _mm256_setzero_ps();
  const __m256 line = _mm256_set1_ps(0.5f), factor = _mm256_set1_ps(-0.25f);
  for (std::int64_t step = 0; step < n_rounds * kPeakStepsPerRound; ++step) {
    for (__m256& sum : sums) asm volatile("vfmadd231ps %2, %1, %0" : "+x"(sum) : "x"(line), "x"(factor));
  }
  return n_rounds * kPeakStepsPerRound * kSums * 8 * 2;
}
