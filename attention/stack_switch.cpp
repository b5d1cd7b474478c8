#include "stack_switch.h"

#include <cstdint>
#include <cstring>

namespace llm_decoder {
namespace gpu {

#ifdef LLM_DECODER_OWN_STACK_SWITCH

// switch(where to keep the stack pointer, the one to go on with): pushes what a callee preserves, changes stacks, pops
// the same. The way registers lie is the same on both stacks, so that what unwinds is told right throughout. Rounding
// modes stay those of the thread. A new stack is entered as if it had stopped before its first instruction.
extern "C" {
__attribute__((visibility("hidden"))) void llm_decoder_switch_stack(void** from, void* to);
__attribute__((visibility("hidden"))) void llm_decoder_enter_stack();
}

#if defined(__x86_64__)

asm(R"(
  .text
  .p2align 4
  .globl llm_decoder_switch_stack
  .hidden llm_decoder_switch_stack
  .type llm_decoder_switch_stack, @function
llm_decoder_switch_stack:
  .cfi_startproc
  pushq %rbp
  .cfi_adjust_cfa_offset 8
  .cfi_rel_offset %rbp, 0
  pushq %rbx
  .cfi_adjust_cfa_offset 8
  .cfi_rel_offset %rbx, 0
  pushq %r12
  .cfi_adjust_cfa_offset 8
  .cfi_rel_offset %r12, 0
  pushq %r13
  .cfi_adjust_cfa_offset 8
  .cfi_rel_offset %r13, 0
  pushq %r14
  .cfi_adjust_cfa_offset 8
  .cfi_rel_offset %r14, 0
  pushq %r15
  .cfi_adjust_cfa_offset 8
  .cfi_rel_offset %r15, 0
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  .cfi_adjust_cfa_offset -8
  .cfi_restore %r15
  popq %r14
  .cfi_adjust_cfa_offset -8
  .cfi_restore %r14
  popq %r13
  .cfi_adjust_cfa_offset -8
  .cfi_restore %r13
  popq %r12
  .cfi_adjust_cfa_offset -8
  .cfi_restore %r12
  popq %rbx
  .cfi_adjust_cfa_offset -8
  .cfi_restore %rbx
  popq %rbp
  .cfi_adjust_cfa_offset -8
  .cfi_restore %rbp
  ret
  .cfi_endproc
  .size llm_decoder_switch_stack, . - llm_decoder_switch_stack

  .p2align 4
  .globl llm_decoder_enter_stack
  .hidden llm_decoder_enter_stack
  .type llm_decoder_enter_stack, @function
llm_decoder_enter_stack:
  .cfi_startproc
  .cfi_undefined %rip
  movq %r13, %rdi
  call *%r12
  ud2
  .cfi_endproc
  .size llm_decoder_enter_stack, . - llm_decoder_enter_stack
)");

namespace {
struct SavedRegisters {
  void *r15, *r14;
  void* r13;           // the entry's argument
  void (*r12)(void*);  // the entry
  void *rbx, *rbp;
  void (*return_address)();  // the end of the stack, aligned to 16, is where calls want it to be
};

SavedRegisters first_registers(void (*entry)(void*), void* argument) {
  SavedRegisters out{};
  out.r12 = entry;
  out.r13 = argument;
  out.return_address = &llm_decoder_enter_stack;
  return out;
}
}  // namespace

#else  // __aarch64__

asm(R"(
  .text
  .p2align 4
  .globl llm_decoder_switch_stack
  .hidden llm_decoder_switch_stack
  .type llm_decoder_switch_stack, %function
llm_decoder_switch_stack:
  .cfi_startproc
  stp x29, x30, [sp, #-160]!
  .cfi_def_cfa_offset 160
  .cfi_offset x29, -160
  .cfi_offset x30, -152
  stp x19, x20, [sp, #16]
  stp x21, x22, [sp, #32]
  stp x23, x24, [sp, #48]
  stp x25, x26, [sp, #64]
  stp x27, x28, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp, #16]
  ldp x21, x22, [sp, #32]
  ldp x23, x24, [sp, #48]
  ldp x25, x26, [sp, #64]
  ldp x27, x28, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  ldp x29, x30, [sp], #160
  .cfi_def_cfa_offset 0
  .cfi_restore x29
  .cfi_restore x30
  ret
  .cfi_endproc
  .size llm_decoder_switch_stack, . - llm_decoder_switch_stack

  .p2align 4
  .globl llm_decoder_enter_stack
  .hidden llm_decoder_enter_stack
  .type llm_decoder_enter_stack, %function
llm_decoder_enter_stack:
  .cfi_startproc
  .cfi_undefined x30
  mov x0, x20
  blr x19
  brk #1
  .cfi_endproc
  .size llm_decoder_enter_stack, . - llm_decoder_enter_stack
)");

namespace {
struct SavedRegisters {
  void* x29;
  void (*x30)();       // where it goes on
  void (*x19)(void*);  // the entry
  void* x20;           // its argument
  void* x21_to_x28[8];
  double d8_to_d15[8];
};

SavedRegisters first_registers(void (*entry)(void*), void* argument) {
  SavedRegisters out{};
  out.x19 = entry;
  out.x20 = argument;
  out.x30 = &llm_decoder_enter_stack;
  return out;
}
}  // namespace

#endif

void StackPoint::begin(std::byte* stack, std::size_t n_bytes, void (*entry)(void*), void* argument) {
  const SavedRegisters registers = first_registers(entry, argument);
  stack_pointer_ = stack + n_bytes - sizeof(registers);
  std::memcpy(stack_pointer_, &registers, sizeof(registers));
}

void StackPoint::stop_and_go_on_at(StackPoint& to) { llm_decoder_switch_stack(&stack_pointer_, to.stack_pointer_); }

#else

namespace {
// makecontext passes ints.
template <class T>
T from_halves(unsigned int high, unsigned int low) {
  return reinterpret_cast<T>(static_cast<std::uintptr_t>((std::uint64_t{high} << 32) | low));
}

unsigned int high_half(std::uintptr_t bits) { return static_cast<unsigned int>(std::uint64_t{bits} >> 32); }
unsigned int low_half(std::uintptr_t bits) { return static_cast<unsigned int>(bits); }

void enter(unsigned int entry_high, unsigned int entry_low, unsigned int argument_high, unsigned int argument_low) {
  from_halves<void (*)(void*)>(entry_high, entry_low)(from_halves<void*>(argument_high, argument_low));
}
}  // namespace

void StackPoint::begin(std::byte* stack, std::size_t n_bytes, void (*entry)(void*), void* argument) {
  getcontext(&context_);
  context_.uc_stack.ss_sp = stack;
  context_.uc_stack.ss_size = n_bytes;
  context_.uc_link = nullptr;
  const auto function = reinterpret_cast<std::uintptr_t>(entry), data = reinterpret_cast<std::uintptr_t>(argument);
  makecontext(&context_, reinterpret_cast<void (*)()>(&enter), 4, high_half(function), low_half(function),
              high_half(data), low_half(data));
}

void StackPoint::stop_and_go_on_at(StackPoint& to) { swapcontext(&context_, &to.context_); }

#endif

}  // namespace gpu
}  // namespace llm_decoder
