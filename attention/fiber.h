// A function that runs on a stack of its own and can stop in its middle.
#pragma once

#include <cstddef>

#include "stack_switch.h"

namespace llm_decoder {
namespace gpu {

// Not copied or moved: its stack points into itself.
class Fiber {
 public:
  Fiber();
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // Makes the next resume() begin entry(argument), which must not throw. What ran here before and has not returned is
  // dropped where it stands: nothing is unwound.
  void start(void (*entry)(void*), void* argument);
  // Runs until the fiber yields or returns. Not from within a fiber.
  void resume();
  // Back to who resumed. Only from within this fiber.
  void yield();
  bool has_returned() const { return has_returned_; }

 private:
  static void run(void* fiber);
  void leave(void** fake_stack);

  std::byte* stack_;
  unsigned int valgrind_id_ = 0;
  StackPoint here_, resumer_;
  void (*entry_)(void*) = nullptr;
  void* argument_ = nullptr;
  bool has_returned_ = true;
  // For AddressSanitizer: the frames that it keeps aside, and the stack of who resumed.
  void* fake_stack_ = nullptr;
  const void* resumer_stack_ = nullptr;
  std::size_t resumer_stack_bytes_ = 0;
};

}  // namespace gpu
}  // namespace llm_decoder
