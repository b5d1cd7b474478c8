// What this machine can do right now: read bandwidth and the int8 dot-product peak, with as many threads as asked for.
// usage: limits N_THREADS   prints "<GB/s> <GOPS>".  Build: g++ -O3 -march=native -pthread limits.cpp -o limits
#include <immintrin.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

namespace {

double seconds_of(int n_threads, void (*work)(int thread, int n_threads)) {
  const auto start = std::chrono::steady_clock::now();
  std::vector<std::thread> threads;
  for (int t = 0; t < n_threads; ++t) threads.emplace_back(work, t, n_threads);
  for (std::thread& thread : threads) thread.join();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

constexpr std::size_t kBytes = std::size_t{1} << 30;  // far larger than any cache
std::uint8_t* buffer;
volatile std::int64_t sink;

void read_all(int thread, int n_threads) {
  const std::size_t part = kBytes / n_threads / 4096 * 4096;
  const auto* p = reinterpret_cast<const __m256i*>(buffer + part * thread);
  __m256i sum[8] = {};
  for (std::size_t i = 0; i + 8 <= part / 32; i += 8) {
    for (int j = 0; j < 8; ++j) sum[j] = _mm256_add_epi64(sum[j], _mm256_load_si256(p + i + j));
  }
  for (int j = 1; j < 8; ++j) sum[0] = _mm256_add_epi64(sum[0], sum[j]);
  sink = sink + _mm256_extract_epi64(sum[0], 0);
}

constexpr std::int64_t kDots = 40'000'000;
#ifdef __AVX512VNNI__
constexpr double kOpsPerDot = 128;
// Assembly, so that the sums stay in registers whatever the compiler: GCC 12 moves them about around its intrinsic, and
// the peak would read low. Twelve independent sums hide the latency; their values do not matter.
void dot_all(int, int) {
  for (std::int64_t i = 0; i < kDots / 12; ++i) {
    asm volatile(
        "vpdpbusd %%zmm30, %%zmm31, %%zmm16\n vpdpbusd %%zmm30, %%zmm31, %%zmm17\n"
        "vpdpbusd %%zmm30, %%zmm31, %%zmm18\n vpdpbusd %%zmm30, %%zmm31, %%zmm19\n"
        "vpdpbusd %%zmm30, %%zmm31, %%zmm20\n vpdpbusd %%zmm30, %%zmm31, %%zmm21\n"
        "vpdpbusd %%zmm30, %%zmm31, %%zmm22\n vpdpbusd %%zmm30, %%zmm31, %%zmm23\n"
        "vpdpbusd %%zmm30, %%zmm31, %%zmm24\n vpdpbusd %%zmm30, %%zmm31, %%zmm25\n"
        "vpdpbusd %%zmm30, %%zmm31, %%zmm26\n vpdpbusd %%zmm30, %%zmm31, %%zmm27"
        :
        :
        : "xmm16", "xmm17", "xmm18", "xmm19", "xmm20", "xmm21", "xmm22", "xmm23", "xmm24", "xmm25", "xmm26", "xmm27");
  }
}
#else
constexpr double kOpsPerDot = 32;
void dot_all(int, int) {
  __m256i acc[12];
  for (int j = 0; j < 12; ++j) acc[j] = _mm256_set1_epi32(j);
  __m256i a = _mm256_set1_epi16(3), b = _mm256_set1_epi16(-5);
  for (std::int64_t i = 0; i < kDots / 12; ++i) {
    for (int j = 0; j < 12; ++j) acc[j] = _mm256_add_epi32(acc[j], _mm256_madd_epi16(a, b));
    asm volatile("" : "+x"(a), "+x"(b));
  }
  for (int j = 1; j < 12; ++j) acc[0] = _mm256_add_epi32(acc[0], acc[j]);
  sink = sink + _mm256_extract_epi32(acc[0], 0);
}
#endif

}  // namespace

int main(int argc, char** argv) {
  const int n_threads = argc > 1 ? std::max(1, std::atoi(argv[1])) : 1;
  buffer = static_cast<std::uint8_t*>(std::aligned_alloc(4096, kBytes));
  for (std::size_t i = 0; i < kBytes; i += 64) buffer[i] = static_cast<std::uint8_t>(i >> 6);
  double read_s = 1e9, dot_s = 1e9;
  for (int repeat = 0; repeat < 3; ++repeat) {
    read_s = std::min(read_s, seconds_of(n_threads, read_all));
    dot_s = std::min(dot_s, seconds_of(n_threads, dot_all));
  }
  std::printf("%.1f %.0f\n", kBytes / read_s / 1e9, kDots * kOpsPerDot * n_threads / dot_s / 1e9);
}
