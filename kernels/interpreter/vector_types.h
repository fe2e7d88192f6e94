// CUDA's built-in vector types, with CUDA's layout and alignment (CUDA C++ Programming Guide, "Built-in
// Vector Types"), for machines without its headers. Not to be included together with CUDA's own.
#pragma once

#define GPU_VECTOR2(Name, T, Bytes) \
  struct alignas(Bytes) Name {      \
    T x, y;                         \
  };                                \
  inline Name make_##Name(T x, T y) { return {x, y}; }
#define GPU_VECTOR3(Name, T) \
  struct Name {              \
    T x, y, z;               \
  };                         \
  inline Name make_##Name(T x, T y, T z) { return {x, y, z}; }
#define GPU_VECTOR4(Name, T, Bytes) \
  struct alignas(Bytes) Name {      \
    T x, y, z, w;                   \
  };                                \
  inline Name make_##Name(T x, T y, T z, T w) { return {x, y, z, w}; }

GPU_VECTOR2(uchar2, unsigned char, 2)
GPU_VECTOR4(uchar4, unsigned char, 4)
GPU_VECTOR2(ushort2, unsigned short, 4)
GPU_VECTOR4(ushort4, unsigned short, 8)
GPU_VECTOR2(int2, int, 8)
GPU_VECTOR3(int3, int)
GPU_VECTOR4(int4, int, 16)
GPU_VECTOR2(uint2, unsigned, 8)
GPU_VECTOR3(uint3, unsigned)
GPU_VECTOR4(uint4, unsigned, 16)
GPU_VECTOR2(float2, float, 8)
GPU_VECTOR3(float3, float)
GPU_VECTOR4(float4, float, 16)
GPU_VECTOR2(double2, double, 16)
GPU_VECTOR2(longlong2, long long, 16)
GPU_VECTOR2(ulonglong2, unsigned long long, 16)

#undef GPU_VECTOR2
#undef GPU_VECTOR3
#undef GPU_VECTOR4

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned width = 1, unsigned height = 1, unsigned depth = 1)
      : x(width), y(height), z(depth) {}
  constexpr dim3(uint3 d) : x(d.x), y(d.y), z(d.z) {}
};
