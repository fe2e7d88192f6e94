#include "kernels/interpreter/fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <new>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(OCTET_RACE_CHECK)
#include <sanitizer/tsan_interface.h>
#endif

#if defined(__x86_64__) && !defined(OCTET_UCONTEXT)
// Saves the callee-saved registers on the present stack and continues on the other one. `argument` lands in
// the first argument register, where a new stack's entry function expects it. (System V ABI, AMD64; the
// floating-point control words are the same in all fibers.)
extern "C" void octet_fiber_switch(void** save, void* load, void* argument);
asm(R"(
.text
.p2align 4
.type octet_fiber_switch, @function
.globl octet_fiber_switch
.hidden octet_fiber_switch
octet_fiber_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  movq %rdx, %rdi
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size octet_fiber_switch, .-octet_fiber_switch
)");
#endif

namespace gpu {
inline namespace interpreted {

Fiber::Fiber() {
  // A page without access below the stack: an overflow stops instead of corrupting a neighbour.
  const size_t guard = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  void* mapping = mmap(nullptr, guard + stack_bytes, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapping == MAP_FAILED) throw std::bad_alloc();
  mprotect(mapping, guard, PROT_NONE);
  mapping_ = static_cast<char*>(mapping);
  stack_ = mapping_ + guard;
  // Stacks that all begin at the same place of a page would share one set of the cache.
  begin_ = stack_bytes - reinterpret_cast<uintptr_t>(mapping) / guard * 320 % 4096 / 64 * 64;
#if defined(OCTET_RACE_CHECK)
  race_inside_ = __tsan_create_fiber(0);
#endif
}
Fiber::~Fiber() {
#if defined(OCTET_RACE_CHECK)
  __tsan_destroy_fiber(race_inside_);
#endif
  munmap(mapping_, static_cast<size_t>(stack_ - mapping_) + stack_bytes);
}

void Fiber::start(void (*entry)(void*), void* argument) {
  entry_ = entry;
  argument_ = argument;
#if defined(__x86_64__) && !defined(OCTET_UCONTEXT)
  void** top = reinterpret_cast<void**>(stack_ + begin_);
  *--top = nullptr;  // a return address nobody returns to; it gives the entry the alignment it expects
  *--top = reinterpret_cast<void*>(&Fiber::enter);
  for (int i = 0; i < 6; ++i) *--top = nullptr;  // the callee-saved registers
  inside_ = top;
#else
  getcontext(&inside_);
  inside_.uc_stack.ss_sp = stack_;
  inside_.uc_stack.ss_size = begin_;
  inside_.uc_link = nullptr;
  const uintptr_t self = reinterpret_cast<uintptr_t>(this);  // makecontext passes ints
  makecontext(&inside_, reinterpret_cast<void (*)()>(+[](unsigned high, unsigned low) {
    enter(reinterpret_cast<void*>(static_cast<uintptr_t>(high) << 32 | low));
  }),
              2, static_cast<unsigned>(self >> 32), static_cast<unsigned>(self));
#endif
}

void Fiber::resume() {
#if defined(__SANITIZE_ADDRESS__)
  void* frames = nullptr;
  __sanitizer_start_switch_fiber(&frames, stack_, stack_bytes);
#endif
#if defined(OCTET_RACE_CHECK)
  race_outside_ = __tsan_get_current_fiber();
  __tsan_switch_to_fiber(race_inside_, __tsan_switch_to_fiber_no_sync);
#endif
#if defined(__x86_64__) && !defined(OCTET_UCONTEXT)
  octet_fiber_switch(&outside_, inside_, this);
#else
  swapcontext(&outside_, &inside_);
#endif
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(frames, nullptr, nullptr);
#endif
}

void Fiber::switch_back([[maybe_unused]] void** frames) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(frames, outside_stack_, outside_bytes_);
#endif
#if defined(OCTET_RACE_CHECK)
  __tsan_switch_to_fiber(race_outside_, __tsan_switch_to_fiber_no_sync);
#endif
#if defined(__x86_64__) && !defined(OCTET_UCONTEXT)
  octet_fiber_switch(&inside_, outside_, nullptr);
#else
  swapcontext(&inside_, &outside_);
#endif
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(*frames, &outside_stack_, &outside_bytes_);
#endif
}
void Fiber::suspend() {
  void* frames = nullptr;
  switch_back(&frames);
}
void Fiber::finish() {
  switch_back(nullptr);  // the address sanitizer forgets the stack's frames
  __builtin_unreachable();
}

void Fiber::enter(void* fiber) {
  Fiber& self = *static_cast<Fiber*>(fiber);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &self.outside_stack_, &self.outside_bytes_);
#endif
  self.entry_(self.argument_);
  __builtin_unreachable();
}

}  // namespace interpreted
}  // namespace gpu
