// What the width of a register is worth to int8 products: vpdpbusd on ymm and on zmm registers, nothing from memory,
// on one thread and on all.
//   g++ -O3 -std=c++17 -mavx512vnni -mavx512vl -pthread benchmarks/vector_width.cpp -o vector_width && ./vector_width
// Prints GOPS, a multiply-add counted as two, the median of 5 runs.
#include <immintrin.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <thread>
#include <vector>

namespace {

constexpr int kSums = 12;  // more than the instructions in flight: two ports, five cycles
constexpr std::int64_t kSteps = 20'000'000;

double now_s() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// Operations done. In assembly and not inlined, or GCC 12 stores the sums at every step.
template <class Register>
__attribute__((noinline)) std::int64_t multiply_add() {
  Register sums[kSums] = {};
  const Register line = Register{} + 0x0303030303030303, factor = Register{} - 0x0505050505050505;
  for (std::int64_t step = 0; step < kSteps; ++step) {
#pragma GCC unroll 12
    for (Register& sum : sums) asm volatile("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(line), "v"(factor));
  }
  return kSteps * kSums * static_cast<std::int64_t>(sizeof(Register)) * 2;
}

template <class Register>
double gops(unsigned n_threads) {
  std::vector<double> times;
  std::int64_t n_operations = 0;
  for (int run = 0; run < 6; ++run) {
    std::vector<std::thread> others;
    const double begin = now_s();
    for (unsigned i = 1; i < n_threads; ++i) others.emplace_back([] { multiply_add<Register>(); });
    n_operations = multiply_add<Register>() * n_threads;
    for (std::thread& other : others) other.join();
    if (run > 0) times.push_back(now_s() - begin);  // the first warms up
  }
  std::nth_element(times.begin(), times.begin() + 2, times.end());
  return static_cast<double>(n_operations) / times[2] * 1e-9;
}

}  // namespace

int main() {
  const unsigned n_all = std::max(1U, std::thread::hardware_concurrency());
  for (const unsigned n_threads : {1U, n_all}) {
    std::printf("%u threads: 256 bit %.0f GOPS, 512 bit %.0f GOPS\n", n_threads, gops<__m256i>(n_threads),
                gops<__m512i>(n_threads));
  }
}
