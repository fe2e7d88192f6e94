// A function on a stack of its own that can be left and entered again: one per thread of a block. The
// sanitizers are told of every switch; to the thread sanitizer each fiber is a thread that no switch orders
// with another.
#pragma once
#include <cstddef>

#if !defined(__x86_64__) || defined(OCTET_UCONTEXT)
#include <ucontext.h>
#endif

namespace gpu {
inline namespace interpreted {

class Fiber {
 public:
  Fiber();
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // Prepares entry(argument); the first resume() enters it. It must end in finish(), not return. Afterwards
  // the fiber can be started again.
  void start(void (*entry)(void*), void* argument);
  void resume();   // from outside: returns when the fiber suspends or finishes
  void suspend();  // from inside
  [[noreturn]] void finish();

 private:
  static constexpr size_t stack_bytes = 256 * 1024;  // sanitizers' reports need most of it
  static void enter(void* fiber);
  void switch_back(void** frames);

#if defined(__x86_64__) && !defined(OCTET_UCONTEXT)
  using Context = void*;  // the stack pointer; registers lie above it
#else
  using Context = ucontext_t;
#endif
  char* mapping_;
  char* stack_;
  size_t begin_;  // where in the stack the first frame lies; stacks grow down
  Context inside_{}, outside_{};
  void (*entry_)(void*) = nullptr;
  void* argument_ = nullptr;
  const void* outside_stack_ = nullptr;  // address sanitizer: the stack that resume() ran on
  size_t outside_bytes_ = 0;
  void *race_inside_ = nullptr, *race_outside_ = nullptr;  // thread sanitizer: handles
};

}  // namespace interpreted
}  // namespace gpu
