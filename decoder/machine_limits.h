// What this machine can do at most right now: how fast it reads memory and multiplies, with so many threads. Judge a
// step by its share of these.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>

#include "llm_decoder/cpu_kernels.h"
#include "llm_decoder/parallel.h"

namespace llm_decoder {

// Holds the memory that it reads, so that asking again is quick. Each figure is the best of `n_rounds` short rounds
// (about 30 ms each): other programs on the machine can only lower it.
class MachineLimits {
 public:
  // `isa` as select_cpu_kernels takes it. n_bytes of memory are taken and written once; as many as make several times
  // the last cache, or that is what is measured. Throws std::invalid_argument, std::bad_alloc.
  MachineLimits(const char* isa, int n_threads, std::size_t n_bytes);

  double read_bytes_per_s(int n_rounds);
  double int8_ops_per_s(int n_rounds);  // a multiply-add is two operations
  double f32_ops_per_s(int n_rounds);

  const char* isa() const { return kernels_.name; }
  int n_threads() const { return pool_.n_threads(); }
  std::size_t n_bytes() const { return n_bytes_; }

 private:
  double ops_per_s(std::int64_t (*peak)(std::int64_t n_rounds), int n_rounds);

  struct Free {
    void operator()(float* memory) const { std::free(memory); }
  };
  const CpuKernels& kernels_;
  ThreadPool pool_;
  std::size_t n_bytes_;
  std::unique_ptr<float, Free> memory_;
};

}  // namespace llm_decoder
