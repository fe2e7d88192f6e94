// Architecture-specific instructions behind named functions; the only file with inline PTX. Each has a plain
// path, which the interpreter and architectures without the instruction run, and equals it bit for bit.
//   encode/decode: cvt to and from e4m3x2, e5m2x2, sm_89 and later; pack: cvt.rn.bf16x2, sm_80 and later
//   [PTX ISA, "cvt"]. Decoding and packing make one NaN of all; numerics/ keeps its sign (FP8) and
//   payload (BF16), so that is put back. Element i lies in bits 8 i (FP8) or 16 i (BF16) and up.
#pragma once
#include <cstdint>

#include "kernels/gpu.h"
#include "numerics/bfloat16.h"
#include "numerics/float8.h"

OCTET_KERNELS_BEGIN

// The plain paths, also callable on a GPU so that a test there can compare.
namespace plain {

__device__ __forceinline__ uint32_t join(uint8_t a, uint8_t b, uint8_t c, uint8_t d) {
  return static_cast<uint32_t>(a) | static_cast<uint32_t>(b) << 8 | static_cast<uint32_t>(c) << 16 |
         static_cast<uint32_t>(d) << 24;
}
__device__ __forceinline__ uint8_t code_of(uint32_t codes, int element) {
  return static_cast<uint8_t>(codes >> (8 * element));
}
__device__ __forceinline__ uint32_t encode_e4m3x4(float4 v) {
  return join(encode_e4m3(v.x), encode_e4m3(v.y), encode_e4m3(v.z), encode_e4m3(v.w));
}
__device__ __forceinline__ uint32_t encode_e5m2x4(float4 v) {
  return join(encode_e5m2(v.x), encode_e5m2(v.y), encode_e5m2(v.z), encode_e5m2(v.w));
}
__device__ __forceinline__ float4 decode_e4m3x4(uint32_t codes) {
  return make_float4(decode_e4m3(code_of(codes, 0)), decode_e4m3(code_of(codes, 1)),
                     decode_e4m3(code_of(codes, 2)), decode_e4m3(code_of(codes, 3)));
}
__device__ __forceinline__ float4 decode_e5m2x4(uint32_t codes) {
  return make_float4(decode_e5m2(code_of(codes, 0)), decode_e5m2(code_of(codes, 1)),
                     decode_e5m2(code_of(codes, 2)), decode_e5m2(code_of(codes, 3)));
}
__device__ __forceinline__ uint32_t pack_bfloat16x2(float low, float high) {
  return static_cast<uint32_t>(to_bfloat16(low).bits) | static_cast<uint32_t>(to_bfloat16(high).bits) << 16;
}

}  // namespace plain

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890

namespace instruction {

// NaN with the sign of the code, as numerics/ has it.
__device__ __forceinline__ float with_numerics_nan(float value, uint32_t code) {
  return value == value ? value : __uint_as_float(0x7fc00000u | (code & 0x80u) << 24);
}

}  // namespace instruction

#define OCTET_FLOAT8_INSTRUCTIONS(format)                                                       \
  __device__ __forceinline__ uint32_t encode_##format##x4(float4 v) {                           \
    uint16_t low, high;                                                                         \
    asm("cvt.rn.satfinite." #format "x2.f32 %0, %1, %2;" : "=h"(low) : "f"(v.y), "f"(v.x));     \
    asm("cvt.rn.satfinite." #format "x2.f32 %0, %1, %2;" : "=h"(high) : "f"(v.w), "f"(v.z));    \
    return static_cast<uint32_t>(low) | static_cast<uint32_t>(high) << 16;                      \
  }                                                                                             \
  __device__ __forceinline__ float2 decode_##format##x2(uint16_t codes) {                       \
    float2 v;                                                                                   \
    asm("{\n"                                                                                   \
        ".reg .b32 pair;\n"                                                                     \
        ".reg .b16 low, high;\n"                                                                \
        "cvt.rn.f16x2." #format                                                                 \
        "x2 pair, %2;\n"                                                                        \
        "mov.b32 {low, high}, pair;\n"                                                          \
        "cvt.f32.f16 %0, low;\n"                                                                \
        "cvt.f32.f16 %1, high;\n"                                                               \
        "}\n"                                                                                   \
        : "=f"(v.x), "=f"(v.y)                                                                  \
        : "h"(codes));                                                                          \
    return make_float2(instruction::with_numerics_nan(v.x, codes),                              \
                       instruction::with_numerics_nan(v.y, static_cast<uint32_t>(codes) >> 8)); \
  }                                                                                             \
  __device__ __forceinline__ float4 decode_##format##x4(uint32_t codes) {                       \
    const float2 low = decode_##format##x2(static_cast<uint16_t>(codes));                       \
    const float2 high = decode_##format##x2(static_cast<uint16_t>(codes >> 16));                \
    return make_float4(low.x, low.y, high.x, high.y);                                           \
  }
OCTET_FLOAT8_INSTRUCTIONS(e4m3)
OCTET_FLOAT8_INSTRUCTIONS(e5m2)
#undef OCTET_FLOAT8_INSTRUCTIONS

#else

// Four values to codes: round to nearest even, saturating (numerics/float8.h).
__device__ __forceinline__ uint32_t encode_e4m3x4(float4 v) { return plain::encode_e4m3x4(v); }
__device__ __forceinline__ uint32_t encode_e5m2x4(float4 v) { return plain::encode_e5m2x4(v); }
__device__ __forceinline__ float4 decode_e4m3x4(uint32_t codes) { return plain::decode_e4m3x4(codes); }
__device__ __forceinline__ float4 decode_e5m2x4(uint32_t codes) { return plain::decode_e5m2x4(codes); }

#endif

__device__ __forceinline__ uint32_t encode_x4(Format format, float4 v) {
  return format == Format::E4M3 ? encode_e4m3x4(v) : encode_e5m2x4(v);
}
__device__ __forceinline__ float4 decode_x4(Format format, uint32_t codes) {
  return format == Format::E4M3 ? decode_e4m3x4(codes) : decode_e5m2x4(codes);
}

// Two values to BF16, round to nearest even (numerics/bfloat16.h).
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
__device__ __forceinline__ uint32_t pack_bfloat16x2(float low, float high) {
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return low == low && high == high ? pair : plain::pack_bfloat16x2(low, high);
}
#else
__device__ __forceinline__ uint32_t pack_bfloat16x2(float low, float high) {
  return plain::pack_bfloat16x2(low, high);
}
#endif
__device__ __forceinline__ float2 unpack_bfloat16x2(uint32_t pair) {
  return make_float2(__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u));
}

OCTET_KERNELS_END
