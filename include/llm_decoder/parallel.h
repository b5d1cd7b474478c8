// The one facade of threads: kernels take ranges, callers split them here. Which runtime does the work is private to
// decoder/thread_pool.cpp.
#pragma once

#include <cstdint>

namespace llm_decoder {

// Which of n_items, in an order of the caller's, to give to parallel_for as `item`, so that those of a thread follow
// each other.
constexpr std::int64_t neighbour_of(std::int64_t item, std::int64_t n_items, int n_threads) {
  const std::int64_t thread = item % n_threads, n_longer = n_items % n_threads;
  return n_items / n_threads * thread + (thread < n_longer ? thread : n_longer) + item / n_threads;
}

class ThreadPool {
 public:
  // `n_threads` >= 1 counts the calling thread. Workers spin for a bounded time between calls and then sleep.
  explicit ThreadPool(int n_threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int n_threads() const;

  // Calls fn(item, thread) once for each item in [0, n_items), on any thread, and returns when all are done. Thread t
  // begins with the items t, t + n_threads, t + 2 * n_threads... and helps the others when these are done. `thread` is
  // in [0, n_threads) and names the scratch the caller may use. fn must not throw. Not reentrant; one caller at a time,
  // except of a pool of one thread, which keeps no state.
  template <class Fn>
  void parallel_for(std::int64_t n_items, const Fn& fn) {
    run(
        n_items,
        [](const void* context, std::int64_t item, int thread) { (*static_cast<const Fn*>(context))(item, thread); },
        &fn);
  }

 private:
  using Task = void (*)(const void* context, std::int64_t item, int thread);
  void run(std::int64_t n_items, Task task, const void* context);

  struct State;
  State* state_;
};

}  // namespace llm_decoder
