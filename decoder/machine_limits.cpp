#include "machine_limits.h"

#include <algorithm>
#include <chrono>
#include <new>

#include "llm_decoder/errors.h"

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace llm_decoder {
namespace {

// Parts are long enough to stream and short enough that no thread waits long for the last one.
constexpr std::size_t kPartBytes = std::size_t{4} << 20;
constexpr double kPeakRoundSeconds = 0.03;
constexpr std::int64_t kPeakItemsPerThread = 16;

double seconds_of(const std::chrono::steady_clock::time_point begin) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

// On huge pages where the system has them: with small ones it is the page walks that are measured.
float* take_memory(std::size_t n_bytes) {
  float* memory = static_cast<float*>(std::aligned_alloc(kPartBytes, n_bytes));
  if (memory == nullptr) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
  madvise(memory, n_bytes, MADV_HUGEPAGE);
#endif
  return memory;
}

}  // namespace

MachineLimits::MachineLimits(const char* isa, int n_threads, std::size_t n_bytes)
    : kernels_(select_cpu_kernels(isa)),
      pool_(n_threads),
      n_bytes_((check_arg(n_bytes > 0, "MachineLimits", "n_bytes must be positive, got 0"),
                (n_bytes + kPartBytes - 1) / kPartBytes * kPartBytes)),
      memory_(take_memory(n_bytes_)) {
  pool_.parallel_for(static_cast<std::int64_t>(n_bytes_ / kPartBytes), [&](std::int64_t part, int) {
    std::fill_n(memory_.get() + part * (kPartBytes / sizeof(float)), kPartBytes / sizeof(float), 1.0f);
  });
}

double MachineLimits::read_bytes_per_s(int n_rounds) {
  // Memory is as fast as it is whatever multiplies, so the widest loads of this machine read it.
  const auto read_memory = cpu_kernels().front()->read_memory;
  double best = 0.0;
  for (int round = 0; round < n_rounds; ++round) {
    const auto begin = std::chrono::steady_clock::now();
    pool_.parallel_for(static_cast<std::int64_t>(n_bytes_ / kPartBytes), [&](std::int64_t part, int) {
      read_memory(memory_.get() + part * (kPartBytes / sizeof(float)), kPartBytes / sizeof(float));
    });
    best = std::max(best, static_cast<double>(n_bytes_) / seconds_of(begin));
  }
  return best;
}

double MachineLimits::ops_per_s(std::int64_t (*peak)(std::int64_t n_rounds), int n_rounds) {
  // A first try, which also warms up, tells how much of it fills an item.
  constexpr std::int64_t kFirst = 1000;
  const auto first_begin = std::chrono::steady_clock::now();
  const std::int64_t first_ops = peak(kFirst);
  const double item_seconds = kPeakRoundSeconds / static_cast<double>(kPeakItemsPerThread);
  const auto n_fills = static_cast<std::int64_t>(item_seconds / seconds_of(first_begin)) + 1;

  const std::int64_t n_items = kPeakItemsPerThread * pool_.n_threads();
  double best = 0.0;
  for (int round = 0; round < n_rounds; ++round) {
    const auto begin = std::chrono::steady_clock::now();
    pool_.parallel_for(n_items, [&](std::int64_t, int) { peak(kFirst * n_fills); });
    best = std::max(best, static_cast<double>(first_ops * n_fills * n_items) / seconds_of(begin));
  }
  return best;
}

double MachineLimits::int8_ops_per_s(int n_rounds) { return ops_per_s(kernels_.peak_int8, n_rounds); }
double MachineLimits::f32_ops_per_s(int n_rounds) { return ops_per_s(kernels_.peak_f32, n_rounds); }

}  // namespace llm_decoder
