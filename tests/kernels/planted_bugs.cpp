// One wrong kernel a bug, each beside its correction: planted_bugs BUG [fixed]. planted_bugs_test.cpp runs
// them and reads what the interpreter or a sanitizer says. Exit status 0: nothing was found.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "kernels/block.h"
#include "kernels/gpu.h"

namespace {

constexpr unsigned all = 0xffffffffu;

// ---- barriers and shared memory

template <bool fixed>
__global__ void missing_barrier(const float* x, float* y) {
  GPU_SHARED(float, reversed, 64);
  reversed[63 - threadIdx.x] = x[threadIdx.x];
  if (fixed) __syncthreads();
  y[threadIdx.x] = reversed[threadIdx.x];
}
// The barrier before the second round's writes is missing: a fast thread overwrites what a slow one still
// reads.
template <bool fixed>
__global__ void missing_second_barrier(const float* x, float* y) {
  GPU_SHARED(float, staged, 64);
  float sum = 0;
  for (int round = 0; round < 2; ++round) {
    staged[threadIdx.x] = x[threadIdx.x] + static_cast<float>(round);
    __syncthreads();
    sum += staged[63 - threadIdx.x];
    if (fixed) __syncthreads();
  }
  y[threadIdx.x] = sum;
}
template <bool fixed>
__global__ void missing_syncwarp(const float* x, float* y) {
  GPU_SHARED(float, staged, 32);
  staged[threadIdx.x] = x[threadIdx.x];
  const float other = __shfl_xor_sync(all, x[threadIdx.x], 1);  // orders no memory
  if (fixed) __syncwarp();
  y[threadIdx.x] = staged[threadIdx.x ^ 1] - other;
}
template <bool fixed>
__global__ void uninitialised_shared(const float*, float* y) {
  GPU_SHARED(float, sums, 32);
  if (fixed) sums[threadIdx.x] = 0.0f;
  sums[threadIdx.x] += 1.0f;
  y[threadIdx.x] = sums[threadIdx.x];
}
template <bool fixed>
__global__ void unreached_barrier(const float*, float* y) {
  if (!fixed && threadIdx.x >= 40) return;
  __syncthreads();
  y[threadIdx.x] = 1.0f;
}
template <bool fixed>
__global__ void divergent_barriers(const float*, float* y) {
  if (!fixed && threadIdx.x >= 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  y[threadIdx.x] = 1.0f;
}

// ---- warps

template <bool fixed>
__global__ void divergent_shuffle(const float*, float* y) {
  float value = 1.0f;
  if (threadIdx.x < 16) value += __shfl_xor_sync(fixed ? 0xffffu : all, value, 8);
  y[threadIdx.x] = value;
}
template <bool fixed>
__global__ void divergent_shuffles(const float*, float* y) {
  float value = 1.0f;
  if (!fixed && threadIdx.x < 16) {
    value += __shfl_xor_sync(all, value, 8);
  } else {
    value += __shfl_xor_sync(all, value, 8);
  }
  y[threadIdx.x] = value;
}
template <bool fixed>
__global__ void inactive_lane(const float*, float* y) {
  if (threadIdx.x < 16) y[threadIdx.x] = __shfl_sync(0xffffu, 1.0f, fixed ? 15 : 16);
}
template <bool fixed>
__global__ void outside_own_mask(const float*, float* y) {
  if (threadIdx.x < 16 || !fixed) y[threadIdx.x] = __shfl_sync(0xffffu, 1.0f, 0);
}

// ---- addresses

template <bool fixed>
__global__ void global_overrun(const float*, float* y) {
  if (threadIdx.x < (fixed ? 64 : 65)) y[threadIdx.x] = 1.0f;
}
template <bool fixed>
__global__ void static_shared_overrun(const float*, float* y) {
  GPU_SHARED(float, values, 64);
  float* const last = values + 63 + (fixed ? 0 : 1);
  if (threadIdx.x == 0) *last = 1.0f;
  y[threadIdx.x] = 1.0f;
}
template <bool fixed>
__global__ void static_shared_index(const float*, float* y) {
  GPU_SHARED(float, values, 64);
  values[threadIdx.x + (fixed ? 0 : 1)] = 1.0f;
  y[threadIdx.x] = 1.0f;
}
template <bool fixed>
__global__ void dynamic_shared_overrun(const float*, float* y) {
  GPU_DYNAMIC_SHARED(float, values);
  values[threadIdx.x + (fixed ? 0 : 1)] = 1.0f;
  y[threadIdx.x] = 1.0f;
}
template <bool fixed>
__global__ void misaligned_load(const float* x, float* y) {
  if (threadIdx.x == 0) y[0] = gpu::load(reinterpret_cast<const float4*>(x + (fixed ? 4 : 1))).x;
}
template <bool fixed>
__global__ void misaligned_store(const float*, float* y) {
  if (threadIdx.x == 0) gpu::store_streaming(reinterpret_cast<float2*>(y + (fixed ? 2 : 1)), {1.0f, 1.0f});
}
template <bool fixed>
__global__ void missing_dynamic_shared(const float*, float* y) {
  GPU_DYNAMIC_SHARED(float, values);
  values[threadIdx.x] = y[threadIdx.x];
}
template <bool fixed>
__global__ void too_much_static_shared(const float*, float* y) {
  GPU_SHARED(float, first, 8 * 1024);
  GPU_SHARED(float, second, fixed ? 4 * 1024 : 4 * 1024 + 1);
  first[threadIdx.x] = second[threadIdx.x] = y[threadIdx.x];
}

// 46 KiB of dynamic memory and, when broken, 3 KiB of static: a GPU refuses the launch.
template <bool fixed>
__global__ void unasked_shared(const float*, float* y) {
  GPU_SHARED(float, more, fixed ? 256 : 768);
  GPU_DYNAMIC_SHARED(float, values);
  more[threadIdx.x] = values[threadIdx.x] = y[threadIdx.x];
}

// ---- arithmetic, and races between blocks

template <bool fixed>
__global__ void integer_overflow(const float*, float* y) {
  const int rows = static_cast<int>(threadIdx.x) + 40000;
  y[threadIdx.x] =
      fixed ? static_cast<float>(static_cast<int64_t>(rows) * 65536) : static_cast<float>(rows * 65536);
}
template <bool fixed>
__global__ void race_between_blocks(const float*, float* y) {
  if (threadIdx.x != 0) return;
  if (fixed) {
    atomicAdd(reinterpret_cast<unsigned*>(y), 1u);
  } else {
    y[0] += 1.0f;
  }
}
// Every block of a column of the grid writes the column's sum, after a barrier.
template <bool fixed>
__global__ void race_of_distant_blocks(const float* x, float* y) {
  __syncthreads();
  y[fixed ? blockIdx.x + gridDim.x * blockIdx.y : blockIdx.x] = x[blockIdx.y];
}
// The last block to finish reads what the others wrote.
template <bool fixed>
__global__ void missing_fence(const float* x, float* y) {
  unsigned* const counter = reinterpret_cast<unsigned*>(y + 63);
  y[blockIdx.x] = x[blockIdx.x];
  if (fixed) __threadfence();
  if (atomicAdd(counter, 1u) + 1 != gridDim.x) return;
  if (fixed) __threadfence();
  float sum = 0;
  for (unsigned block = 0; block < gridDim.x; ++block) sum += y[block];
  y[62] = sum;
}

using Kernel = void (*)(const float*, float*);
struct Bug {
  Kernel wrong, fixed;
  gpu::Launch launch = {.grid = 1, .block = 64};
  std::function<float(int)> expected = {};
};
#define BUG(name) \
#name, {        \
    name<false>, name<true>
std::map<std::string, Bug> all_bugs(){return {{BUG(missing_barrier),
                                               {.grid = 1, .block = 64},
                                               [](int i) { return static_cast<float>(63 - i); }}},
                                             {BUG(missing_second_barrier),
                                              {.grid = 1, .block = 64},
                                              [](int i) { return static_cast<float>(2 * (63 - i) + 1); }}},
{
  BUG(missing_syncwarp), { .grid = 1, .block = 32 }
}
}
, {
  BUG(uninitialised_shared), {.grid = 1, .block = 32}, [](int i) { return i < 32 ? 1.0f : 0.0f; }
}
}
, { BUG(unreached_barrier) }
}
, { BUG(divergent_barriers) }
}
, {
  BUG(divergent_shuffle), { .grid = 1, .block = 32 }
}
}
, {
  BUG(divergent_shuffles), { .grid = 1, .block = 32 }
}
}
, {
  BUG(inactive_lane), { .grid = 1, .block = 32 }
}
}
, {
  BUG(outside_own_mask), { .grid = 1, .block = 32 }
}
}
, {
  BUG(global_overrun), { .grid = 1, .block = 96 }
}
}
, { BUG(static_shared_overrun) }
}
, { BUG(static_shared_index) }
}
, {
  BUG(dynamic_shared_overrun), { .grid = 1, .block = 64, .shared_bytes = 64 * sizeof(float) }
}
}
, { BUG(misaligned_load) }
}
, { BUG(misaligned_store) }
}
, { BUG(too_much_static_shared) }
}
, {
  BUG(unasked_shared), { .grid = 1, .block = 32, .shared_bytes = 46 * 1024 }
}
}
, { BUG(integer_overflow) }
}
, {
  BUG(race_between_blocks), { .grid = 3, .block = 32 }
}
}
, {
  BUG(race_of_distant_blocks), { .grid = dim3(2, 8), .block = 1 }
}
}
, {
  BUG(missing_fence), { .grid = 4, .block = 1 }
}
}
,
}
;
}

int run(const Bug& bug, Kernel kernel) {
  // Exactly 64 floats each, 16-byte aligned.
  const std::unique_ptr<float[]> x(new float[64]), y(new float[64]());
  for (int i = 0; i < 64; ++i) x[i] = static_cast<float>(i);
  gpu::launch(kernel, bug.launch, x.get(), y.get());
  if (!bug.expected) return 0;
  int wrong = 0, nans = 0;
  for (int i = 0; i < 64; ++i) {
    wrong += !(y[i] == bug.expected(i));
    nans += std::isnan(y[i]);
  }
  if (wrong) std::printf("wrong result: %d of 64 values, %d of them NaN\n", wrong, nans);
  return wrong ? 1 : 0;
}

}  // namespace

int main(int argc, char** argv) {
  const std::string name = argc > 1 ? argv[1] : "";
  const bool fixed = argc > 2 && std::strcmp(argv[2], "fixed") == 0;
  // These differ by their launch.
  Bug bug{missing_dynamic_shared<false>, missing_dynamic_shared<false>};
  const std::map<std::string, gpu::Launch> launches = {
      {"missing_dynamic_shared", {.grid = 1, .block = 64, .shared_bytes = fixed ? 256u : 0u}},
      {"too_much_dynamic_shared",
       {.grid = 1, .block = 64, .shared_bytes = fixed ? 99 * 1024u : 99 * 1024u + 1}},
      {"too_many_threads", {.grid = 1, .block = dim3(32, fixed ? 1 : 33), .shared_bytes = 256}},
      {"empty_grid", {.grid = fixed ? 1u : 0u, .block = 64, .shared_bytes = 256}},
  };
  try {
    if (const auto launch = launches.find(name); launch != launches.end()) {
      bug.launch = launch->second;
    } else {
      bug = all_bugs().at(name);
    }
    return run(bug, fixed ? bug.fixed : bug.wrong);
  } catch (const gpu::LaunchError& error) {
    std::printf("LaunchError: %s\n", error.what());
    return 2;
  }
}
