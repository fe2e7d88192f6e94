// The kernel interpreter: runs a grid of CUDA threads on a CPU, one fiber each, so that every kernel is
// executed, under sanitizers, on machines without a GPU. A test tool: it checks what a kernel does, not how
// fast.
//
// What it finds, each with one line on standard error and abort():
//   - a barrier or warp operation that some of its threads do not reach, or reach at different places; a
//     thread that left the kernel counts as missing (stricter than sm_70 and later)
//   - a shuffle that reads a lane outside its mask, a lane outside its own mask
//   - misaligned gpu::load and gpu::store
//   - too much shared memory
// and, as gpu::LaunchError, a launch whose grid or block no GPU accepts. Shared memory starts as 0xFF bytes
// (NaN) and is allocated at its exact size. Built with sanitizers it also finds
//   - address: overruns of global, static and dynamic shared memory
//   - undefined: signed overflow, shifts, indices, misaligned types
//   - thread: data races between threads and between blocks, so missing barriers too. Barriers, __syncwarp
//     and __threadfence order memory; shuffles, votes and atomics do not, as in CUDA's memory model. A fence
//     orders with all earlier fences of the launch. The first 4 blocks (2 of more than 256 threads) are
//     compared with each other; of later pairs of blocks, one in 4 (2) is not (FiberPool).
//
// The environment chooses the order of execution, which a right kernel's result must not depend on:
//   OCTET_INTERPRETER_SCHEDULE   ascending (default), descending, shuffled or shuffled:SEED; of blocks and
//                                of threads
//   OCTET_INTERPRETER_THREADS    operating-system threads that run blocks (default 1)
//
// The language:
//   - threadIdx, blockIdx, blockDim, gridDim, warpSize
//   - __syncthreads, __syncthreads_or, _and, _count; __syncwarp; __threadfence
//   - __shfl_sync, __shfl_up_sync, _down, _xor; __ballot_sync, __any_sync, __all_sync
//   - __reduce_add_sync, _min, _max, _and, _or, _xor, of integers
//   - integer atomics; a floating-point atomic does not compile, because its order is not fixed
//   - the bits and the correctly rounded arithmetic of intrinsics.h, and <math.h>, whose expf and rsqrtf
//     differ from a GPU's in the last bits
// but no __activemask, cooperative groups, textures, nor inline PTX outside kernels/instructions.h.
#pragma once
#include <math.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "kernels/interpreter/intrinsics.h"
#include "kernels/interpreter/vector_types.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#if !defined(__restrict__)
#define __restrict__ __restrict
#endif

namespace gpu {
inline namespace interpreted {

struct BlockPosition {
  uint3 index;
  dim3 block, grid;  // their sizes
};
// What a running kernel sees of itself. Blocks do not change the operating-system thread.
struct Thread {
  uint3 index;
  const BlockPosition* block;
};
extern constinit thread_local const Thread* current_thread;
// Uninstrumented: the scheduler, which wrote these, is not ordered with kernels by the thread sanitizer.
__attribute__((no_sanitize("thread"))) inline const Thread& this_thread() { return *current_thread; }

struct Place {
  const char* operation;
  const char* file;
  int line;
};

struct Votes {
  int any, all, count;
};
Votes synchronize_block(int predicate, const Place&);
void fence_memory();
int lane_index();

// One operation of the lanes in `mask`, which all have to arrive: lane values in, `source`'s value out, or,
// with `combine`, all values folded from the lowest lane up.
struct WarpRequest {
  uint32_t mask;
  uint64_t value = 0;
  int source = -1;  // -1: own value
  uint64_t (*combine)(uint64_t, uint64_t) = nullptr;
  enum class Memory { Unordered, Ordered } memory = Memory::Unordered;
};
struct WarpAnswer {
  uint64_t value;
  uint32_t ballot;  // lanes of the mask whose value is not zero
  uint32_t mask;    // lanes that took part
};
WarpAnswer exchange(const WarpRequest&, const Place&);

// Shared memory of the block: one array per place in the source, told apart by `tag`.
void* shared_array(const void* tag, const char* name, size_t bytes);
void* dynamic_shared();

[[noreturn]] void fail_misaligned(const void* address, size_t bytes, const Place&);
template <class V>
void check_access(const void* address, const Place& place) {
  static_assert(std::is_trivially_copyable_v<V> && sizeof(V) <= 16 && (sizeof(V) & (sizeof(V) - 1)) == 0,
                "one access moves 1, 2, 4, 8 or 16 bytes");
  if (reinterpret_cast<uintptr_t>(address) % sizeof(V)) fail_misaligned(address, sizeof(V), place);
}

struct GridLaunch {
  dim3 grid, block;
  size_t shared_bytes;
  void (*run_thread)(const void* call);
  const void* call;
  const void* kernel;  // its address, for messages
  const char *launcher, *file;
  int line;
};
void run_grid(const GridLaunch&);

template <class T>
uint64_t to_word(T value) {
  static_assert(std::is_arithmetic_v<T> && (sizeof(T) == 4 || sizeof(T) == 8),
                "warp operations move 32- or 64-bit numbers");
  uint64_t word = 0;
  memcpy(&word, &value, sizeof(T));
  return word;
}
template <class T>
T from_word(uint64_t word) {
  T value;
  memcpy(&value, &word, sizeof(T));
  return value;
}
template <class T>
T shuffle(unsigned mask, T value, int source, const Place& place) {
  return from_word<T>(exchange({.mask = mask, .value = to_word(value), .source = source}, place).value);
}
template <class T, T (*operation)(T, T)>
T reduce(unsigned mask, T value, const Place& place) {
  static_assert(std::is_same_v<T, int> || std::is_same_v<T, unsigned>,
                "__reduce_*_sync takes 32-bit integers");
  const auto combine = [](uint64_t a, uint64_t b) {
    return to_word(operation(from_word<T>(a), from_word<T>(b)));
  };
  return from_word<T>(exchange({.mask = mask, .value = to_word(value), .combine = combine}, place).value);
}
template <class T>
T wrapping_add(T a, T b) {
  return static_cast<T>(static_cast<unsigned>(a) + static_cast<unsigned>(b));
}
template <class T>
T smaller(T a, T b) {
  return b < a ? b : a;
}
template <class T>
T larger(T a, T b) {
  return a < b ? b : a;
}
inline unsigned bits_and(unsigned a, unsigned b) { return a & b; }
inline unsigned bits_or(unsigned a, unsigned b) { return a | b; }
inline unsigned bits_xor(unsigned a, unsigned b) { return a ^ b; }

}  // namespace interpreted
}  // namespace gpu

#define threadIdx (::gpu::this_thread().index)
#define blockIdx (::gpu::this_thread().block->index)
#define blockDim (::gpu::this_thread().block->block)
#define gridDim (::gpu::this_thread().block->grid)
inline constexpr int warpSize = 32;

#define GPU_SHARED(T, name, ...)                                                        \
  static char name##_tag;                                                               \
  static_assert(std::is_trivially_copyable_v<T>, "shared memory runs no constructors"); \
  T(&name)                                                                              \
  [__VA_ARGS__] =                                                                       \
      *static_cast<T(*)[__VA_ARGS__]>(::gpu::shared_array(&name##_tag, #name, sizeof(T) * (__VA_ARGS__)))
#define GPU_DYNAMIC_SHARED(T, name) T* const name = static_cast<T*>(::gpu::dynamic_shared())

// The place of a call, for the diagnosis: default arguments are evaluated where the function is called.
#define GPU_HERE const char *file = __builtin_FILE(), int line = __builtin_LINE()
#define GPU_PLACE \
  { __func__, file, line }

inline void __syncthreads(GPU_HERE) { gpu::synchronize_block(0, GPU_PLACE); }
inline int __syncthreads_or(int predicate, GPU_HERE) {
  return gpu::synchronize_block(predicate, GPU_PLACE).any;
}
inline int __syncthreads_and(int predicate, GPU_HERE) {
  return gpu::synchronize_block(predicate, GPU_PLACE).all;
}
inline int __syncthreads_count(int predicate, GPU_HERE) {
  return gpu::synchronize_block(predicate, GPU_PLACE).count;
}
inline void __syncwarp(unsigned mask = 0xffffffffu, GPU_HERE) {
  gpu::exchange({.mask = mask, .memory = gpu::WarpRequest::Memory::Ordered}, GPU_PLACE);
}
inline void __threadfence() { gpu::fence_memory(); }

// Segments of `width` lanes (a power of two) shuffle among themselves; a source beyond the segment is
// oneself.
template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, GPU_HERE) {
  const int first = gpu::lane_index() & ~(width - 1);
  return gpu::shuffle(mask, value, first + (source & (width - 1)), GPU_PLACE);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, GPU_HERE) {
  const int lane = gpu::lane_index(), source = lane - static_cast<int>(delta);
  return gpu::shuffle(mask, value, source < (lane & ~(width - 1)) ? -1 : source, GPU_PLACE);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, GPU_HERE) {
  const int lane = gpu::lane_index(), source = lane + static_cast<int>(delta);
  return gpu::shuffle(mask, value, source > (lane | (width - 1)) ? -1 : source, GPU_PLACE);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32, GPU_HERE) {
  const int lane = gpu::lane_index(), source = lane ^ lanes;
  return gpu::shuffle(mask, value, source > (lane | (width - 1)) ? -1 : source, GPU_PLACE);
}
inline unsigned __ballot_sync(unsigned mask, int predicate, GPU_HERE) {
  return gpu::exchange({.mask = mask, .value = predicate != 0}, GPU_PLACE).ballot;
}
inline int __any_sync(unsigned mask, int predicate, GPU_HERE) {
  return gpu::exchange({.mask = mask, .value = predicate != 0}, GPU_PLACE).ballot != 0;
}
inline int __all_sync(unsigned mask, int predicate, GPU_HERE) {
  const gpu::WarpAnswer answer = gpu::exchange({.mask = mask, .value = predicate != 0}, GPU_PLACE);
  return answer.ballot == answer.mask;
}
template <class T>
T __reduce_add_sync(unsigned mask, T value, GPU_HERE) {
  return gpu::reduce<T, gpu::wrapping_add<T>>(mask, value, GPU_PLACE);
}
template <class T>
T __reduce_min_sync(unsigned mask, T value, GPU_HERE) {
  return gpu::reduce<T, gpu::smaller<T>>(mask, value, GPU_PLACE);
}
template <class T>
T __reduce_max_sync(unsigned mask, T value, GPU_HERE) {
  return gpu::reduce<T, gpu::larger<T>>(mask, value, GPU_PLACE);
}
inline unsigned __reduce_and_sync(unsigned mask, unsigned value, GPU_HERE) {
  return gpu::reduce<unsigned, gpu::bits_and>(mask, value, GPU_PLACE);
}
inline unsigned __reduce_or_sync(unsigned mask, unsigned value, GPU_HERE) {
  return gpu::reduce<unsigned, gpu::bits_or>(mask, value, GPU_PLACE);
}
inline unsigned __reduce_xor_sync(unsigned mask, unsigned value, GPU_HERE) {
  return gpu::reduce<unsigned, gpu::bits_xor>(mask, value, GPU_PLACE);
}

#undef GPU_HERE
#undef GPU_PLACE
