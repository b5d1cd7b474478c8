// What the machine itself can do, so that a kernel's speed can be told as a share of it. Built and called by
// machine_limits.py, one call a thread.
#include <stddef.h>
#include <stdint.h>

#ifdef __AVX512F__
#include <immintrin.h>
#endif

// Reads `n_bytes` (a multiple of 256) once, as four streams.
uint64_t read_all(const uint64_t* data, size_t n_bytes) {
  const size_t n = n_bytes / sizeof(uint64_t) / 4;
  uint64_t sum = 0;
#ifdef __AVX512F__
  __m512i sums[4] = {_mm512_setzero_si512(), _mm512_setzero_si512(), _mm512_setzero_si512(), _mm512_setzero_si512()};
  for (size_t i = 0; i + 8 <= n; i += 8) {
    for (int s = 0; s < 4; ++s) {
      __builtin_prefetch(data + s * n + i + 128);
      sums[s] = _mm512_add_epi64(sums[s], _mm512_loadu_si512(data + s * n + i));
    }
  }
  for (int s = 0; s < 4; ++s) sum += (uint64_t)_mm512_reduce_add_epi64(sums[s]);
#else
  for (size_t i = 0; i < n; ++i) sum += data[i] + data[n + i] + data[2 * n + i] + data[3 * n + i];
#endif
  return sum;
}

// Operations (a product or a sum is one) that one loop of dot_int8 makes; 0 where the CPU has no vpdpbusd.
int64_t dot_int8_ops(void) {
#ifdef __AVX512VNNI__
  return 16 * 128;
#else
  return 0;
#endif
}

void dot_int8(int64_t n_loops) {
#ifdef __AVX512VNNI__
#define DOT(j) "vpdpbusd %%zmm16, %%zmm17, %%zmm" #j "\n"
  __asm__ volatile("1:\n" DOT(0) DOT(1) DOT(2) DOT(3) DOT(4) DOT(5) DOT(6) DOT(7) DOT(8) DOT(9) DOT(10) DOT(11) DOT(12)
                       DOT(13) DOT(14) DOT(15) "sub $1, %0\njnz 1b\n"
                   : "+r"(n_loops)
                   :
                   : "zmm0", "zmm1", "zmm2", "zmm3", "zmm4", "zmm5", "zmm6", "zmm7", "zmm8", "zmm9", "zmm10", "zmm11",
                     "zmm12", "zmm13", "zmm14", "zmm15", "cc");
#else
  (void)n_loops;
#endif
}
