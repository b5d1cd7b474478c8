#include "fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define WITH_ASAN(...) __VA_ARGS__
#else
#define WITH_ASAN(...)
#endif

#if __has_include(<valgrind/valgrind.h>)
#include <valgrind/valgrind.h>
#define WITH_VALGRIND(...) __VA_ARGS__
#else
#define WITH_VALGRIND(...)
#endif

namespace llm_decoder {
namespace gpu {
namespace {

// Sanitizers make frames several times larger. Memory that is never touched costs nothing.
constexpr std::size_t kStackBytes = 256 << 10;

std::size_t guard_bytes() {
  static const auto kBytes = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  return kBytes;
}

}  // namespace

// An overflow runs into a page that nobody may touch instead of into a neighbour.
Fiber::Fiber() {
  const std::size_t n_bytes = kStackBytes + guard_bytes();
  void* mapped = mmap(nullptr, n_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapped == MAP_FAILED) throw std::system_error(errno, std::generic_category(), "[Fiber] mmap of a stack");
  mprotect(mapped, guard_bytes(), PROT_NONE);
  stack_ = static_cast<std::byte*>(mapped) + guard_bytes();
  WITH_VALGRIND(valgrind_id_ = VALGRIND_STACK_REGISTER(stack_, stack_ + kStackBytes - 1);)
}

Fiber::~Fiber() {
  WITH_VALGRIND(VALGRIND_STACK_DEREGISTER(valgrind_id_);)
  munmap(stack_ - guard_bytes(), kStackBytes + guard_bytes());
}

void Fiber::start(void (*entry)(void*), void* argument) {
  WITH_ASAN(__asan_unpoison_memory_region(stack_, kStackBytes); fake_stack_ = nullptr;)
  entry_ = entry;
  argument_ = argument;
  has_returned_ = false;
  here_.begin(stack_, kStackBytes, &Fiber::run, this);
}

void Fiber::run(void* fiber) {
  auto* self = static_cast<Fiber*>(fiber);
  WITH_ASAN(__sanitizer_finish_switch_fiber(nullptr, &self->resumer_stack_, &self->resumer_stack_bytes_);)
  self->entry_(self->argument_);
  self->has_returned_ = true;
  self->leave(nullptr);
}

void Fiber::resume() {
  WITH_ASAN(void* fake_stack = nullptr; __sanitizer_start_switch_fiber(&fake_stack, stack_, kStackBytes);)
  resumer_.stop_and_go_on_at(here_);
  WITH_ASAN(__sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);)
}

void Fiber::yield() {
  leave(&fake_stack_);
  WITH_ASAN(__sanitizer_finish_switch_fiber(fake_stack_, &resumer_stack_, &resumer_stack_bytes_);)
}

void Fiber::leave([[maybe_unused]] void** fake_stack) {
  WITH_ASAN(__sanitizer_start_switch_fiber(fake_stack, resumer_stack_, resumer_stack_bytes_);)
  here_.stop_and_go_on_at(resumer_);
}

}  // namespace gpu
}  // namespace llm_decoder
