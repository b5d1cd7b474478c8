// Several stacks on one thread: stop on one, go on where another stopped.
#pragma once

#include <cstddef>

// swapcontext asks the system twice a switch to keep masks of signals, which nobody changes here. Where the registers
// that a call preserves are known they are all that moves.
#if defined(__ELF__) && (defined(__x86_64__) || defined(__aarch64__))
#define LLM_DECODER_OWN_STACK_SWITCH
#else
#include <ucontext.h>
#endif

namespace llm_decoder {
namespace gpu {

// Where a stack stopped. Not copied or moved.
class StackPoint {
 public:
  StackPoint() = default;
  StackPoint(const StackPoint&) = delete;
  StackPoint& operator=(const StackPoint&) = delete;

  // Whoever goes on here begins entry(argument), which must not return or throw, on these bytes. Their end is aligned
  // to 16.
  void begin(std::byte* stack, std::size_t n_bytes, void (*entry)(void*), void* argument);

  // Stops here and goes on at `to`; returns once somebody goes on at this point.
  void stop_and_go_on_at(StackPoint& to);

 private:
#ifdef LLM_DECODER_OWN_STACK_SWITCH
  void* stack_pointer_ = nullptr;  // the registers lie there
#else
  ucontext_t context_;
#endif
};

}  // namespace gpu
}  // namespace llm_decoder
