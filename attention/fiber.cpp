#include "fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <system_error>

#include "llm_decoder/types.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define WITH_ASAN(...) __VA_ARGS__
#else
#define WITH_ASAN(...)
#endif

namespace llm_decoder {
namespace gpu {
namespace {

// Sanitizers make frames several times larger. Memory that is never touched costs nothing.
constexpr std::size_t kStackBytes = 256 << 10;

std::size_t guard_bytes() { return static_cast<std::size_t>(sysconf(_SC_PAGESIZE)); }

}  // namespace

// An overflow runs into a page that nobody may touch instead of into a neighbour.
Fiber::Fiber() {
  const std::size_t n_bytes = kStackBytes + guard_bytes();
  void* mapped = mmap(nullptr, n_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapped == MAP_FAILED) throw std::system_error(errno, std::generic_category(), "[Fiber] mmap of a stack");
  mprotect(mapped, guard_bytes(), PROT_NONE);
  stack_ = static_cast<std::byte*>(mapped) + guard_bytes();
}

Fiber::~Fiber() { munmap(stack_ - guard_bytes(), kStackBytes + guard_bytes()); }

void Fiber::start(void (*entry)(void*), void* argument) {
  WITH_ASAN(__asan_unpoison_memory_region(stack_, kStackBytes); fake_stack_ = nullptr;)
  entry_ = entry;
  argument_ = argument;
  has_returned_ = false;
  getcontext(&context_);
  context_.uc_stack.ss_sp = stack_;
  context_.uc_stack.ss_size = kStackBytes;
  context_.uc_link = nullptr;
  // makecontext passes ints.
  const auto self = static_cast<std::uint64_t>(reinterpret_cast<std::uintptr_t>(this));
  makecontext(&context_, reinterpret_cast<void (*)()>(&Fiber::run), 2, static_cast<unsigned int>(self >> 32),
              static_cast<unsigned int>(self));
}

void Fiber::run(unsigned int high, unsigned int low) {
  auto* self = reinterpret_cast<Fiber*>(static_cast<std::uintptr_t>((std::uint64_t{high} << 32) | low));
  WITH_ASAN(__sanitizer_finish_switch_fiber(nullptr, &self->resumer_stack_, &self->resumer_stack_bytes_);)
  self->entry_(self->argument_);
  self->has_returned_ = true;
  self->leave(nullptr);
}

void Fiber::resume() {
  WITH_ASAN(void* fake_stack = nullptr; __sanitizer_start_switch_fiber(&fake_stack, stack_, kStackBytes);)
  swapcontext(&resumer_, &context_);
  WITH_ASAN(__sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);)
}

void Fiber::yield() {
  leave(&fake_stack_);
  WITH_ASAN(__sanitizer_finish_switch_fiber(fake_stack_, &resumer_stack_, &resumer_stack_bytes_);)
}

void Fiber::leave([[maybe_unused]] void** fake_stack) {
  WITH_ASAN(__sanitizer_start_switch_fiber(fake_stack, resumer_stack_, resumer_stack_bytes_);)
  swapcontext(&context_, &resumer_);
}

}  // namespace gpu
}  // namespace llm_decoder
