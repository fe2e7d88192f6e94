// How the optimizer's kernels read and write: four neighbours a thread, 128 a warp, which is the block of the
// recipes. Neighbours from i on, i a multiple of four; n of them are there (Access::Vectors: all four, and
// aligned).
#pragma once
#include <cstdint>

#include "kernels/block.h"
#include "kernels/gpu.h"
#include "kernels/instructions.h"
#include "kernels/values.cuh"
#include "numerics/bfloat16.h"

OCTET_KERNELS_BEGIN

inline constexpr int own = 4;                 // neighbours a thread has: 16 bytes of FP32, 4 of codes
inline constexpr int usual_block = 32 * own;  // a warp's

__device__ __forceinline__ uint32_t magnitude(float x) { return __float_as_uint(x) & 0x7fffffffu; }
__device__ __forceinline__ uint32_t larger(uint32_t largest, float w) {
  return magnitude(w) > largest ? magnitude(w) : largest;
}

template <class T>
__device__ __forceinline__ void load_singles(const T* from, int n, float (&v)[own]) {
#pragma unroll
  for (int j = 0; j < own; ++j) v[j] = j < n ? octet::load(from[j]) : 0.0f;
}
template <class T>
__device__ __forceinline__ void store_singles(T* to, int n, const float (&v)[own]) {
#pragma unroll
  for (int j = 0; j < own; ++j) {
    if (j < n) octet::store(to + j, v[j]);
  }
}
__device__ __forceinline__ void load4(Access access, const float* from, int n, float (&v)[own]) {
  if (access == Access::Single) return load_singles(from, n, v);
  const float4 four = gpu::load_streaming(reinterpret_cast<const float4*>(from));
  v[0] = four.x, v[1] = four.y, v[2] = four.z, v[3] = four.w;
}
__device__ __forceinline__ void load4(Access access, const BFloat16* from, int n, float (&v)[own]) {
  if (access == Access::Single) return load_singles(from, n, v);
  const uint2 pairs = gpu::load_streaming(reinterpret_cast<const uint2*>(from));
  const float2 low = unpack_bfloat16x2(pairs.x), high = unpack_bfloat16x2(pairs.y);
  v[0] = low.x, v[1] = low.y, v[2] = high.x, v[3] = high.y;
}
__device__ __forceinline__ void store4(Access access, float* to, int n, const float (&v)[own]) {
  if (access == Access::Single) return store_singles(to, n, v);
  gpu::store_streaming(reinterpret_cast<float4*>(to), make_float4(v[0], v[1], v[2], v[3]));
}
__device__ __forceinline__ void store4(Access access, BFloat16* to, int n, const float (&v)[own]) {
  if (access == Access::Single) return store_singles(to, n, v);
  gpu::store_streaming(reinterpret_cast<uint2*>(to),
                       make_uint2(pack_bfloat16x2(v[0], v[1]), pack_bfloat16x2(v[2], v[3])));
}
__device__ __forceinline__ uint32_t load_codes(Access access, const uint8_t* from, int n) {
  if (access == Access::Vectors) return gpu::load_streaming(reinterpret_cast<const uint32_t*>(from));
  uint32_t codes = 0;
#pragma unroll
  for (int j = 0; j < own; ++j) codes |= j < n ? static_cast<uint32_t>(from[j]) << (8 * j) : 0u;
  return codes;
}
__device__ __forceinline__ void store_codes(Access access, uint8_t* to, int n, uint32_t codes) {
  if (access == Access::Vectors) return gpu::store_streaming(reinterpret_cast<uint32_t*>(to), codes);
#pragma unroll
  for (int j = 0; j < own; ++j) {
    if (j < n) to[j] = plain::code_of(codes, j);
  }
}
// Sixteen bits each, as they are.
__device__ __forceinline__ void load_halves(Access access, const uint16_t* from, int n, uint16_t (&h)[own]) {
  if (access == Access::Vectors) {
    const uint2 pairs = gpu::load_streaming(reinterpret_cast<const uint2*>(from));
    h[0] = static_cast<uint16_t>(pairs.x), h[1] = static_cast<uint16_t>(pairs.x >> 16);
    h[2] = static_cast<uint16_t>(pairs.y), h[3] = static_cast<uint16_t>(pairs.y >> 16);
    return;
  }
#pragma unroll
  for (int j = 0; j < own; ++j) h[j] = j < n ? from[j] : uint16_t{0};
}
__device__ __forceinline__ void store_halves(Access access, uint16_t* to, int n, const uint16_t (&h)[own]) {
  if (access == Access::Vectors) {
    gpu::store_streaming(reinterpret_cast<uint2*>(to), make_uint2(h[0] | static_cast<uint32_t>(h[1]) << 16,
                                                                  h[2] | static_cast<uint32_t>(h[3]) << 16));
    return;
  }
#pragma unroll
  for (int j = 0; j < own; ++j) {
    if (j < n) to[j] = h[j];
  }
}

// Where a thread's neighbours are, of the 128 from `begin` on that its warp has.
struct Place {
  int64_t i;
  int n;
  Access access;
};
template <bool vectors>
__device__ __forceinline__ Place place_of(int64_t begin, int64_t count) {
  const int64_t i = begin + own * static_cast<int64_t>(threadIdx.x % 32), left = count - i;
  const int n = static_cast<int>(left < 0 ? 0 : left < own ? left : own);
  return {n ? i : begin, n, vectors && n == own ? Access::Vectors : Access::Single};
}

OCTET_KERNELS_END
