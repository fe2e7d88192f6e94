// Reductions over a warp and over a block, in a fixed order: the same values give the same bits in every run
// and on every GPU. Blocks consist of whole warps, and all threads of the warp or block take part and get the
// result.
#pragma once
#include <cstdint>

#include "kernels/gpu.h"
#include "numerics/scaling.h"
#include "numerics/sums.h"

OCTET_KERNELS_BEGIN

inline constexpr unsigned all_lanes = 0xffffffffu;

__device__ __forceinline__ unsigned thread_in_block() {
  return threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
}
__device__ __forceinline__ unsigned warps_in_block() { return blockDim.x * blockDim.y * blockDim.z / 32; }

// Pairs at distance 16, then 8, 4, 2, 1: ((v0 + v16) + (v8 + v24)) + ... A butterfly, and + commutes, so all
// lanes compute the same tree.
__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) value += __shfl_xor_sync(all_lanes, value, distance);
  return value;
}

// The sum of numerics/sums.h by one warp: thread t holds lanes 8 t .. 8 t + 7 (value i of the row is in lane
// i % 256, so 16 bytes of BF16 are a thread's share). Bit-equal to sum_of(Lanes). At the first three
// distances a thread keeps half of its lanes and hands over the others, so 12 shuffles do for 40.
template <class T>
__device__ __forceinline__ T sum_of_lanes(const T (&lanes)[8]) {
  const unsigned thread = thread_in_block() % 32;
  T four[4], two[2];
#pragma unroll
  for (int i = 0; i < 4; ++i) {  // lane l takes lane l + 128
    const bool upper = (thread & 16u) != 0;
    four[i] =
        (upper ? lanes[4 + i] : lanes[i]) + __shfl_xor_sync(all_lanes, upper ? lanes[i] : lanes[4 + i], 16);
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {  // l + 64
    const bool upper = (thread & 8u) != 0;
    two[i] = (upper ? four[2 + i] : four[i]) + __shfl_xor_sync(all_lanes, upper ? four[i] : four[2 + i], 8);
  }
  const bool upper = (thread & 4u) != 0;
  T sum = (upper ? two[1] : two[0]) + __shfl_xor_sync(all_lanes, upper ? two[0] : two[1], 4);  // l + 32
  sum += __shfl_xor_sync(all_lanes, sum, 2);                                                   // l + 16
  sum += __shfl_xor_sync(all_lanes, sum, 1);                                                   // l + 8
  sum += __shfl_xor_sync(all_lanes, sum, 16);                                                  // l + 4
  sum += __shfl_xor_sync(all_lanes, sum, 8);                                                   // l + 2
  sum += __shfl_xor_sync(all_lanes, sum, 4);                                                   // l + 1
  return sum;
}

// The sum of numerics/sums.h over one long row, by one block of a thread a lane. The sum is thread 0's.
template <class T>
__device__ __forceinline__ double sum_by_block(const T* __restrict__ x, int64_t count) {
  constexpr int together = 16;  // loads in flight
  GPU_SHARED(double, lanes, sum_lanes);
  double sum = 0;
  int64_t i = threadIdx.x;
  for (; i + (together - 1) * sum_lanes < count; i += together * sum_lanes) {
    T v[together];
#pragma unroll
    for (int k = 0; k < together; ++k) v[k] = x[i + k * sum_lanes];
#pragma unroll
    for (int k = 0; k < together; ++k) sum += static_cast<double>(v[k]);
  }
  for (; i < count; i += sum_lanes) sum += static_cast<double>(x[i]);
  lanes[threadIdx.x] = sum;
  for (unsigned width = sum_lanes / 2; width > 0; width /= 2) {
    __syncthreads();
    if (threadIdx.x < width) lanes[threadIdx.x] += lanes[threadIdx.x + width];
  }
  return threadIdx.x == 0 ? lanes[0] : 0.0;
}

// The sums of the warps, added from the first warp to the last.
__device__ __forceinline__ float block_sum(float value) {
  GPU_SHARED(float, sums, 32);
  value = warp_sum(value);
  __syncthreads();  // readers of an earlier call are done
  if (thread_in_block() % 32 == 0) sums[thread_in_block() / 32] = value;
  __syncthreads();
  float sum = sums[0];
  for (unsigned warp = 1; warp < warps_in_block(); ++warp) sum += sums[warp];
  return sum;
}

// The largest magnitude, NaN above infinity above numbers (numerics/scaling.h): exact in any order, because
// it is an integer maximum of the bits.
__device__ __forceinline__ float warp_max_magnitude(float value) {
  return __uint_as_float(__reduce_max_sync(all_lanes, __float_as_uint(value) & 0x7fffffffu));
}
__device__ __forceinline__ float block_max_magnitude(float value) {
  GPU_SHARED(float, magnitudes, 32);
  value = warp_max_magnitude(value);
  __syncthreads();  // readers of an earlier call are done
  if (thread_in_block() % 32 == 0) magnitudes[thread_in_block() / 32] = value;
  __syncthreads();
  float largest = magnitudes[0];
  for (unsigned warp = 1; warp < warps_in_block(); ++warp) largest = max_magnitude(largest, magnitudes[warp]);
  return largest;
}
// amax = the larger magnitude of amax and value, by any number of threads and blocks. amax starts at 0.
__device__ __forceinline__ void raise_amax(float* amax, float value) {
  atomicMax(reinterpret_cast<unsigned*>(amax), __float_as_uint(value) & 0x7fffffffu);
}

OCTET_KERNELS_END
