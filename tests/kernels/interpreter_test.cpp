// The language of the interpreter does what CUDA's documentation says.
#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "catch.h"
#include "environment.h"
#include "kernels/gpu.h"

namespace {

constexpr unsigned all = 0xffffffffu;

template <class T>
concept HasAtomicAdd = requires(T* p, T v) {
  atomicAdd(p, v);
};
template <class T>
concept HasAtomicMax = requires(T* p, T v) {
  atomicMax(p, v);
};
static_assert(HasAtomicAdd<int> && HasAtomicAdd<unsigned> && HasAtomicAdd<unsigned long long>);
static_assert(!HasAtomicAdd<float> && !HasAtomicAdd<double>,
              "the order of floating-point atomics is not fixed");
static_assert(!HasAtomicMax<float>);
static_assert(sizeof(float4) == 16 && alignof(float4) == 16 && alignof(uint2) == 8 && alignof(float3) == 4);
static_assert(sizeof(ulonglong2) == 16 && alignof(uchar4) == 4 && alignof(ushort4) == 8);

__global__ void record_indices(int* out) {
  const unsigned block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  const unsigned thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  out[block * blockDim.x * blockDim.y * blockDim.z + thread] += static_cast<int>(1000 * block + thread);
}

struct WarpResults {
  int index[32], up[32], down[32], exclusive_or[32];
  unsigned ballot[32], sum[32], bits[32];
  int any[32], every[32], smallest[32], largest[32];
};
__global__ void warp_operations(WarpResults* r) {
  const int lane = static_cast<int>(threadIdx.x);
  r->index[lane] = __shfl_sync(all, lane, 3, 8);
  r->up[lane] = __shfl_up_sync(all, lane, 2, 8);
  r->down[lane] = __shfl_down_sync(all, lane, 2, 8);
  r->exclusive_or[lane] = __shfl_xor_sync(all, lane, 9, 8);
  // Two halves at once, each with its own mask.
  const unsigned half = lane < 16 ? 0x0000ffffu : 0xffff0000u;
  r->ballot[lane] = __ballot_sync(half, lane % 3 == 0);
  r->any[lane] = __any_sync(half, lane == 5);
  r->every[lane] = __all_sync(half, lane < 16);
  r->sum[lane] = __reduce_add_sync(half, static_cast<unsigned>(lane));
  r->smallest[lane] = __reduce_min_sync(half, lane - 20);
  r->largest[lane] = __reduce_max_sync(half, lane - 20);
  r->bits[lane] = __reduce_or_sync(half, 1u << lane);
}

__global__ void block_votes(int* out) {
  const int thread = static_cast<int>(threadIdx.x);
  const int count = __syncthreads_count(thread % 3 == 0);
  const int any = __syncthreads_or(thread == 7), none = __syncthreads_or(thread == 700);
  const int every = __syncthreads_and(thread < 100), not_every = __syncthreads_and(thread != 7);
  if (count != 34 || !any || none || !every || not_every) out[thread] = 1;
}

__global__ void integer_atomics(unsigned* sum, int* largest, int* smallest, unsigned long long* wide,
                                unsigned* bits, unsigned* locked) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  atomicAdd(sum, static_cast<unsigned>(i));
  atomicMax(largest, i % 17 - 8);
  atomicMin(smallest, i % 17 - 8);
  atomicAdd(wide, 1ull << 33);
  atomicOr(bits, 1u << (i % 32));
  for (unsigned seen = 0, old; (old = atomicCAS(locked, seen, seen + 2)) != seen;) seen = old;
}

// Shared memory is new and poisoned in each block, one array a declaration.
__global__ void shared_memory(int* wrong, float* static_sums, float* dynamic_sums) {
  GPU_SHARED(float, first, 64);
  GPU_SHARED(float, second, 64);
  GPU_DYNAMIC_SHARED(float, dynamic);
  const unsigned thread = threadIdx.x;
  if (first[thread] == first[thread] || second[thread] == second[thread] ||
      dynamic[thread] == dynamic[thread]) {
    atomicAdd(wrong, 1);
  }
  if (reinterpret_cast<uintptr_t>(first) % 16 || reinterpret_cast<uintptr_t>(dynamic) % 16)
    atomicAdd(wrong, 1);
  first[thread] = static_cast<float>(thread);
  second[thread] = static_cast<float>(blockIdx.x);
  dynamic[thread] = 1.0f;
  __syncthreads();
  if (thread != 0) return;
  static_sums[blockIdx.x] = dynamic_sums[blockIdx.x] = 0.0f;
  for (int i = 0; i < 64; ++i) {
    static_sums[blockIdx.x] += first[i] + second[i];
    dynamic_sums[blockIdx.x] += dynamic[i];
  }
}

__global__ void record_order(unsigned* counter, unsigned* ticket) {
  ticket[blockIdx.x * blockDim.x + threadIdx.x] = atomicAdd(counter, 1u);
}
std::vector<unsigned> order_under(const std::string& schedule) {
  const InterpreterSetting setting("SCHEDULE", schedule);
  unsigned counter = 0;
  std::vector<unsigned> ticket(4 * 64);
  gpu::launch(record_order, {.grid = 4, .block = 64}, &counter, ticket.data());
  return ticket;
}

__global__ void short_warp(int* out) {
  out[threadIdx.x] = __shfl_xor_sync(all, static_cast<int>(threadIdx.x), 1);
  if (__ballot_sync(all, 1) != (threadIdx.x < 32 ? all : 0xffu)) out[threadIdx.x] = -1;
}

__global__ void many_barriers(int* out, int rounds) {
  GPU_SHARED(int, ring, 128);
  int value = static_cast<int>(threadIdx.x);
  for (int round = 0; round < rounds; ++round) {
    ring[threadIdx.x] = value;
    __syncthreads();
    value = ring[(threadIdx.x + 1) % 128];
    __syncthreads();
  }
  out[blockIdx.x * 128 + threadIdx.x] = value;
}

// The last block to arrive adds up what all blocks wrote.
__global__ void last_block_adds(float* parts, unsigned* arrived, float* sum) {
  parts[blockIdx.x] = static_cast<float>(blockIdx.x);
  __threadfence();
  if (atomicAdd(arrived, 1u) + 1 != gridDim.x) return;
  __threadfence();
  *sum = 0.0f;
  for (unsigned i = 0; i < gridDim.x; ++i) *sum += parts[i];
}

}  // namespace

TEST_CASE("every thread of a grid runs once, in every schedule and on several operating-system threads") {
  const dim3 grid(3, 2, 2), block(5, 3, 2);
  for (const char* schedule : schedules) {
    for (const char* threads : {"1", "3"}) {
      const InterpreterSetting order("SCHEDULE", schedule), os_threads("THREADS", threads);
      std::vector<int> out(12 * 30, 0);
      gpu::launch(record_indices, {.grid = grid, .block = block}, out.data());
      int wrong = 0;
      for (int i = 0; i < 12 * 30; ++i) wrong += out[static_cast<size_t>(i)] != 1000 * (i / 30) + i % 30;
      CHECK(wrong == 0);
    }
  }
}

TEST_CASE("warp operations follow the programming guide, also of two masks at once") {
  for (const char* schedule : schedules) {
    const InterpreterSetting order("SCHEDULE", schedule);
    WarpResults r{};
    gpu::launch(warp_operations, {.grid = 1, .block = 32}, &r);
    int wrong = 0;
    for (int lane = 0; lane < 32; ++lane) {
      const int segment = lane / 8 * 8;
      wrong += r.index[lane] != segment + 3;
      wrong += r.up[lane] != (lane - 2 < segment ? lane : lane - 2);
      wrong += r.down[lane] != (lane + 2 >= segment + 8 ? lane : lane + 2);
      // An earlier segment may be read, a later one not.
      wrong += r.exclusive_or[lane] != ((lane ^ 9) / 8 > lane / 8 ? lane : lane ^ 9);
      const bool low = lane < 16;
      wrong += r.ballot[lane] != (low ? 0x9249u : 0x49240000u);
      wrong += r.any[lane] != (low ? 1 : 0);
      wrong += r.every[lane] != (low ? 1 : 0);
      wrong += r.sum[lane] != (low ? 120u : 376u);
      wrong += r.smallest[lane] != (low ? -20 : -4);
      wrong += r.largest[lane] != (low ? -5 : 11);
      wrong += r.bits[lane] != (low ? 0x0000ffffu : 0xffff0000u);
    }
    CHECK(wrong == 0);
  }
}

TEST_CASE("the last warp of a block may be short") {
  std::vector<int> out(40);
  gpu::launch(short_warp, {.grid = 1, .block = 40}, out.data());
  for (int i = 0; i < 40; ++i) CHECK(out[static_cast<size_t>(i)] == (i ^ 1));
}

TEST_CASE("barriers count votes") {
  std::vector<int> wrong(100, 0);
  gpu::launch(block_votes, {.grid = 1, .block = 100}, wrong.data());
  CHECK(std::count(wrong.begin(), wrong.end(), 0) == 100);
}

TEST_CASE("barriers hold over many rounds, in every schedule") {
  for (const char* schedule : schedules) {
    const InterpreterSetting order("SCHEDULE", schedule);
    std::vector<int> out(2 * 128);
    gpu::launch(many_barriers, {.grid = 2, .block = 128}, out.data(), 50);
    int wrong = 0;
    for (int i = 0; i < 256; ++i) wrong += out[static_cast<size_t>(i)] != (i % 128 + 50) % 128;
    CHECK(wrong == 0);
  }
}

TEST_CASE("integer atomics lose nothing on several operating-system threads") {
  const InterpreterSetting os_threads("THREADS", "4");
  unsigned sum = 0, bits = 0, locked = 0;
  int largest = -100, smallest = 100;
  unsigned long long wide = 0;
  gpu::launch(integer_atomics, {.grid = 16, .block = 64}, &sum, &largest, &smallest, &wide, &bits, &locked);
  CHECK(sum == 1023u * 1024u / 2u);
  CHECK(largest == 8);
  CHECK(smallest == -8);
  CHECK(wide == 1024ull << 33);
  CHECK(bits == all);
  CHECK(locked == 2048u);
}

TEST_CASE("a fence and an integer atomic let the last block read what all wrote") {
  for (const char* schedule : schedules) {
    const InterpreterSetting order("SCHEDULE", schedule), os_threads("THREADS", "2");
    std::vector<float> parts(20);
    unsigned arrived = 0;
    float sum = 0.0f;
    gpu::launch(last_block_adds, {.grid = 20, .block = 1}, parts.data(), &arrived, &sum);
    CHECK(sum == 190.0f);
  }
}

TEST_CASE("shared memory is new and poisoned in every block") {
  for (const char* threads : {"1", "3"}) {
    const InterpreterSetting os_threads("THREADS", threads);
    int wrong = 0;
    std::vector<float> static_sums(6), dynamic_sums(6);
    gpu::launch(shared_memory, {.grid = 6, .block = 64, .shared_bytes = 64 * sizeof(float)}, &wrong,
                static_sums.data(), dynamic_sums.data());
    CHECK(wrong == 0);
    for (int block = 0; block < 6; ++block) {
      CHECK(static_sums[static_cast<size_t>(block)] == static_cast<float>(2016 + 64 * block));
      CHECK(dynamic_sums[static_cast<size_t>(block)] == 64.0f);
    }
  }
}

TEST_CASE("the schedule is the one that was asked for") {
  std::vector<unsigned> ascending(4 * 64);
  std::iota(ascending.begin(), ascending.end(), 0u);
  std::vector<unsigned> descending(ascending.rbegin(), ascending.rend());
  CHECK(order_under("ascending") == ascending);
  CHECK(order_under("descending") == descending);
  const std::vector<unsigned> one = order_under("shuffled:1"), two = order_under("shuffled:2");
  CHECK(one == order_under("shuffled:1"));
  CHECK(one != two);
  std::vector<unsigned> sorted = one;
  std::sort(sorted.begin(), sorted.end());
  CHECK(sorted == ascending);
}

TEST_CASE("an unknown setting is refused with what was found") {
  CHECK_THROWS_WITH(order_under("sideways"), contains_text("found \"sideways\""));
  CHECK_THROWS_WITH(order_under("shuffled:x"), contains_text("found \"x\""));
  const InterpreterSetting os_threads("THREADS", "0");
  CHECK_THROWS_WITH(order_under("ascending"), contains_text("OCTET_INTERPRETER_THREADS"));
}
