// How a thread reads and writes values in the storage types: eight neighbours at a time (16 bytes of BF16),
// or some of them one by one where a row ends or is not aligned. T is float or BFloat16.
#pragma once
#include <cstdint>

#include "kernels/gpu.h"
#include "kernels/instructions.h"
#include "numerics/bfloat16.h"
#include "numerics/elementary.h"
#include "numerics/recipe.h"

OCTET_KERNELS_BEGIN

inline constexpr int vector_values = 8;

// How the values of a row are reached: 16 bytes at a time, or one by one (any width, any alignment).
enum class Access : uint8_t { Vectors, Single };

__device__ __forceinline__ void unpack8(uint4 bits, float (&v)[8]) {
  const uint32_t pairs[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 two = unpack_bfloat16x2(pairs[i]);
    v[2 * i] = two.x;
    v[2 * i + 1] = two.y;
  }
}
__device__ __forceinline__ uint4 pack8(const float (&v)[8]) {
  return make_uint4(pack_bfloat16x2(v[0], v[1]), pack_bfloat16x2(v[2], v[3]), pack_bfloat16x2(v[4], v[5]),
                    pack_bfloat16x2(v[6], v[7]));
}
__device__ __forceinline__ void unpack8(float4 low, float4 high, float (&v)[8]) {
  v[0] = low.x, v[1] = low.y, v[2] = low.z, v[3] = low.w;
  v[4] = high.x, v[5] = high.y, v[6] = high.z, v[7] = high.w;
}

// v = from[0 .. 8), 16-byte aligned.
__device__ __forceinline__ void load8(const float* from, float (&v)[8]) {
  const float4* const at = reinterpret_cast<const float4*>(from);
  unpack8(gpu::load(at), gpu::load(at + 1), v);
}
__device__ __forceinline__ void load8(const BFloat16* from, float (&v)[8]) {
  unpack8(gpu::load(reinterpret_cast<const uint4*>(from)), v);
}
__device__ __forceinline__ void load8_streaming(const float* from, float (&v)[8]) {
  const float4* const at = reinterpret_cast<const float4*>(from);
  unpack8(gpu::load_streaming(at), gpu::load_streaming(at + 1), v);
}
__device__ __forceinline__ void load8_streaming(const BFloat16* from, float (&v)[8]) {
  unpack8(gpu::load_streaming(reinterpret_cast<const uint4*>(from)), v);
}

// to[0 .. 8) = v, each rounded once; 16-byte aligned.
__device__ __forceinline__ void store8(float* to, const float (&v)[8]) {
  float4* const at = reinterpret_cast<float4*>(to);
  gpu::store(at, make_float4(v[0], v[1], v[2], v[3]));
  gpu::store(at + 1, make_float4(v[4], v[5], v[6], v[7]));
}
__device__ __forceinline__ void store8(BFloat16* to, const float (&v)[8]) {
  gpu::store(reinterpret_cast<uint4*>(to), pack8(v));
}
__device__ __forceinline__ void store8_streaming(float* to, const float (&v)[8]) {
  float4* const at = reinterpret_cast<float4*>(to);
  gpu::store_streaming(at, make_float4(v[0], v[1], v[2], v[3]));
  gpu::store_streaming(at + 1, make_float4(v[4], v[5], v[6], v[7]));
}
__device__ __forceinline__ void store8_streaming(BFloat16* to, const float (&v)[8]) {
  gpu::store_streaming(reinterpret_cast<uint4*>(to), pack8(v));
}

// The first `count` of eight, any alignment of T; values beyond are zero and are not written.
template <class T>
__device__ __forceinline__ void load_some(const T* from, int64_t count, float (&v)[8]) {
#pragma unroll
  for (int i = 0; i < 8; ++i) v[i] = i < count ? octet::load(from[i]) : 0.0f;
}
template <class T>
__device__ __forceinline__ void store_some(T* to, int64_t count, const float (&v)[8]) {
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    if (i < count) octet::store(to + i, v[i]);
  }
}

// A value as it comes back from memory.
template <class T>
__device__ __forceinline__ float round_to(float v) {
  T stored;
  octet::store(&stored, v);
  return octet::load(stored);
}

// Host side: may 16-byte accesses be used? All pointers are aligned, and rows of `width` values keep it so.
// A null pointer is not accessed, hence aligned.
inline bool is_aligned16(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }
template <class... Pointers>
bool in_vectors(int64_t width, Pointers... pointers) {
  return width % vector_values == 0 && (is_aligned16(pointers) && ...);
}

// Host side: body(float()) or body(BFloat16()).
template <class Body>
void with_storage(octet::Format storage, const Body& body) {
  if (storage == octet::Format::FP32) {
    body(float());
  } else {
    body(BFloat16());
  }
}

OCTET_KERNELS_END
