// What the interpreter tells the thread sanitizer. The interpreter's own files are compiled without it, so it
// sees nothing but the kernels, and orders them only as told here.
#pragma once
#include <cstdint>

#if defined(OCTET_RACE_CHECK)
#include <sanitizer/tsan_interface.h>
extern "C" {
void AnnotateIgnoreReadsBegin(const char* file, int line);
void AnnotateIgnoreReadsEnd(const char* file, int line);
void AnnotateIgnoreWritesBegin(const char* file, int line);
void AnnotateIgnoreWritesEnd(const char* file, int line);
}
#endif

namespace gpu {
inline namespace interpreted {

#if defined(OCTET_RACE_CHECK)
inline constexpr bool race_check = true;
inline void release([[maybe_unused]] uint64_t& event) { __tsan_release(&event); }
inline void acquire([[maybe_unused]] uint64_t& event) { __tsan_acquire(&event); }
// While one lives, library calls (memory allocation above all) of this fiber are not accesses.
struct Unwatched {
  Unwatched() {
    AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
    AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
  }
  ~Unwatched() {
    AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
    AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
  }
  Unwatched(const Unwatched&) = delete;
  Unwatched& operator=(const Unwatched&) = delete;
};
#else
inline constexpr bool race_check = false;
inline void release(uint64_t&) {}
inline void acquire(uint64_t&) {}
struct Unwatched {
  Unwatched() {}  // not trivial: a variable of this type is never "unused"
};
#endif

// Events of a launch. `end` collects what every thread did; `fence` orders each __threadfence after earlier
// ones.
struct GridEvents {
  uint64_t begin = 0, end = 0, fence = 0;
};
// Events of a block, fresh for each so that one block's barriers do not order it with another. Two of each
// kind take turns: while slow threads still leave one barrier, fast ones may already arrive at the next.
struct BlockEvents {
  uint64_t barrier[2] = {};
  uint64_t warp[32][32][2] = {};  // by warp and lowest lane of the mask
};

}  // namespace interpreted
}  // namespace gpu
