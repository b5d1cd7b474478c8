#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

#include "llm_decoder/errors.h"
#include "llm_decoder/parallel.h"

#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#endif

namespace llm_decoder {
namespace {

// A worker that finds nothing spins this long, because the next region of a step is mere microseconds away; then it
// yields, which costs nothing when cores are free and much less than a spin when they are not; and if nothing has come
// in longer than lies between two steps, it sleeps.
constexpr auto kSpin = std::chrono::microseconds(80);
constexpr auto kSleep = std::chrono::microseconds(500);
constexpr int kPausesPerClockRead = 32;
// A ticket: 28 bits of generation, then the first place of a list that nobody has taken yet and the end of the list.
constexpr int kPlaceBits = 18;
constexpr std::uint64_t kMaxPlaces = (std::uint64_t{1} << kPlaceBits) - 1;
constexpr std::uint64_t kGenerations = std::uint64_t{1} << (64 - 2 * kPlaceBits);

constexpr std::uint64_t ticket_of(std::uint64_t generation, std::uint64_t begin, std::uint64_t end) {
  return generation << 2 * kPlaceBits | begin << kPlaceBits | end;
}
constexpr std::uint64_t generation_of(std::uint64_t ticket) { return ticket >> 2 * kPlaceBits; }
constexpr std::uint64_t begin_of(std::uint64_t ticket) { return ticket >> kPlaceBits & kMaxPlaces; }
constexpr std::uint64_t end_of(std::uint64_t ticket) { return ticket & kMaxPlaces; }

void pause() {
#if defined(__x86_64__) || defined(__i386__)
  _mm_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#else
  std::this_thread::yield();
#endif
}

// Waits until done() is true: spins, then yields. Returns false when `bound` passed first (bound 0: never).
template <class Done>
bool spin_until(const Done& done, std::chrono::microseconds bound) {
  const auto start = std::chrono::steady_clock::now();
  for (bool yielding = false;;) {
    for (int i = 0; i < kPausesPerClockRead; ++i) {
      if (done()) return true;
      if (yielding) {
        std::this_thread::yield();
      } else {
        pause();
      }
    }
    const auto waited = std::chrono::steady_clock::now() - start;
    if (bound.count() > 0 && waited > bound) return done();
    yielding = waited > kSpin;
  }
}

}  // namespace

// The items of a region lie in one list a thread: item i at place i / n_threads of list i % n_threads. A thread takes
// its own from the front, then those of the others from the back, so whoever is late keeps the items that follow each
// other. A list is one ticket, taken from by compare-and-swap on the whole of it: a worker that wakes late, with a
// ticket of an older region in hand, takes nothing, and the caller waits only for items that somebody took, never for a
// worker that the machine has not run.
struct ThreadPool::State {
  struct alignas(64) List {
    std::atomic<std::uint64_t> ticket{0};
  };

  explicit State(int n_threads) : lists(static_cast<std::size_t>(n_threads)) {}

  std::vector<List> lists;
  alignas(64) std::atomic<std::uint64_t> generation{0};
  // Written between regions only; atomic because a late worker may read them, and then fails to take an item.
  std::atomic<Task> task{nullptr};
  std::atomic<const void*> context{nullptr};
  alignas(64) std::atomic<std::uint64_t> n_done{0};
  alignas(64) std::atomic<int> n_sleeping{0};
  std::atomic<bool> stop{false};
  std::mutex mutex;
  std::condition_variable wake;
  std::vector<std::thread> workers;

  // Takes and runs the items of list `owner` until none is left; returns how many.
  std::uint64_t work_on(std::size_t owner, std::uint64_t of_generation, int thread) {
    std::atomic<std::uint64_t>& ticket = lists[owner].ticket;
    const bool is_own = owner == static_cast<std::size_t>(thread);
    std::uint64_t n_mine = 0;
    std::uint64_t seen = ticket.load(std::memory_order_acquire);
    while (generation_of(seen) == of_generation && begin_of(seen) < end_of(seen)) {
      // Read before the swap: while an item is left to take, these belong to the region of the ticket.
      const Task run_item = task.load(std::memory_order_relaxed);
      const void* argument = context.load(std::memory_order_relaxed);
      const std::uint64_t place = is_own ? begin_of(seen) : end_of(seen) - 1;
      const std::uint64_t rest =
          is_own ? ticket_of(of_generation, place + 1, end_of(seen)) : ticket_of(of_generation, begin_of(seen), place);
      if (!ticket.compare_exchange_weak(seen, rest, std::memory_order_acq_rel, std::memory_order_acquire)) continue;
      run_item(argument, static_cast<std::int64_t>(place * lists.size() + owner), thread);
      ++n_mine;
      seen = ticket.load(std::memory_order_acquire);
    }
    return n_mine;
  }

  void work(std::uint64_t of_generation, int thread) {
    std::uint64_t n_mine = 0;
    for (std::size_t i = 0; i < lists.size(); ++i) {
      n_mine += work_on((static_cast<std::size_t>(thread) + i) % lists.size(), of_generation, thread);
    }
    if (n_mine > 0) n_done.fetch_add(n_mine, std::memory_order_release);
  }

  void sleep_until_new(std::uint64_t old_generation) {
    std::unique_lock<std::mutex> lock(mutex);
    // Sequentially consistent with the caller's store of the generation and load of n_sleeping: one of the two sees the
    // other.
    n_sleeping.fetch_add(1);
    wake.wait(lock, [&] { return stop.load() || generation.load() != old_generation; });
    n_sleeping.fetch_sub(1, std::memory_order_relaxed);
  }

  void worker_loop(int thread) {
    std::uint64_t seen = 0;
    for (;;) {
      const auto is_new = [&] { return generation.load(std::memory_order_acquire) != seen; };
      if (!spin_until(is_new, kSleep)) sleep_until_new(seen);
      if (stop.load(std::memory_order_relaxed)) return;
      seen = generation.load(std::memory_order_acquire);
      work(seen, thread);
    }
  }

  // Opens a region of `n_items` and returns its generation.
  std::uint64_t publish(std::uint64_t n_items) {
    const std::uint64_t fresh = (generation.load(std::memory_order_relaxed) + 1) % kGenerations;
    for (std::size_t i = 0; i < lists.size(); ++i) {
      const std::uint64_t n_places = (n_items + lists.size() - 1 - i) / lists.size();
      lists[i].ticket.store(ticket_of(fresh, 0, n_places), std::memory_order_release);
    }
    generation.store(fresh);
    if (n_sleeping.load() > 0) {
      {
        std::lock_guard<std::mutex> lock(mutex);
      }
      wake.notify_all();
    }
    return fresh;
  }

  void shut_down() {
    stop.store(true);
    publish(0);
    for (std::thread& worker : workers) worker.join();
  }
};

ThreadPool::ThreadPool(int n_threads) : state_(nullptr) {
  check_arg(n_threads >= 1, "ThreadPool", "n_threads must be at least 1, got ", n_threads);
  state_ = new State(n_threads);
  try {
    state_->workers.reserve(static_cast<std::size_t>(n_threads - 1));
    for (int thread = 1; thread < n_threads; ++thread) {
      state_->workers.emplace_back([state = state_, thread] { state->worker_loop(thread); });
    }
  } catch (...) {
    state_->shut_down();
    delete state_;
    throw;
  }
}

ThreadPool::~ThreadPool() {
  state_->shut_down();
  delete state_;
}

int ThreadPool::n_threads() const { return static_cast<int>(state_->workers.size()) + 1; }

void ThreadPool::run(std::int64_t n_items, Task task, const void* context) {
  if (state_->workers.empty() || n_items <= 1) {
    for (std::int64_t item = 0; item < n_items; ++item) task(context, item, 0);
    return;
  }
  State& state = *state_;
  check_state(static_cast<std::uint64_t>(n_items) / state.lists.size() < kMaxPlaces, "ThreadPool",
              "too many items in one region: ", n_items);
  state.task.store(task, std::memory_order_relaxed);
  state.context.store(context, std::memory_order_relaxed);
  state.n_done.store(0, std::memory_order_relaxed);
  state.work(state.publish(static_cast<std::uint64_t>(n_items)), 0);
  spin_until([&] { return state.n_done.load(std::memory_order_acquire) == static_cast<std::uint64_t>(n_items); },
             std::chrono::microseconds(0));
}

}  // namespace llm_decoder
