// What only a GPU can answer, compiled by nvcc, and by the host compiler for the other side of the
// comparison.
#include <cstdint>

#include "kernels/block.h"
#include "kernels/fill.h"
#include "kernels/gpu.h"
#include "kernels/instructions.h"

OCTET_KERNELS_BEGIN
namespace {

__device__ unsigned differ(float a, float b) { return __float_as_uint(a) != __float_as_uint(b); }
__device__ unsigned differ(float4 a, float4 b) {
  return differ(a.x, b.x) + differ(a.y, b.y) + differ(a.z, b.z) + differ(a.w, b.w);
}

// Every bit pattern of a float, as each of the four elements. mismatches: E4M3, E5M2, BF16.
__global__ void compare_encoders(uint64_t patterns, unsigned long long* mismatches) {
  const uint64_t stride = static_cast<uint64_t>(gridDim.x) * blockDim.x;
  unsigned long long wrong[3] = {};
  for (uint64_t i = static_cast<uint64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < patterns; i += stride) {
    const unsigned u = static_cast<unsigned>(i);
    const float4 v = make_float4(__uint_as_float(u), __uint_as_float(u * 0x9e3779b1u), __uint_as_float(~u),
                                 __uint_as_float(u * 0x85ebca77u));  // odd factors: permutations
    wrong[0] += encode_e4m3x4(v) != plain::encode_e4m3x4(v);
    wrong[1] += encode_e5m2x4(v) != plain::encode_e5m2x4(v);
    wrong[2] += pack_bfloat16x2(v.x, v.y) != plain::pack_bfloat16x2(v.x, v.y);
    wrong[2] += pack_bfloat16x2(v.z, v.w) != plain::pack_bfloat16x2(v.z, v.w);
  }
  for (int i = 0; i < 3; ++i) atomicAdd(mismatches + i, wrong[i]);
}
// Every code in every place. mismatches: E4M3, E5M2.
__global__ void compare_decoders(unsigned long long* mismatches) {
  const uint32_t code = threadIdx.x,
                 codes = code | (255 - code) << 8 | (code ^ 0x55u) << 16 | (code ^ 0xaau) << 24;
  atomicAdd(mismatches,
            static_cast<unsigned long long>(differ(decode_e4m3x4(codes), plain::decode_e4m3x4(codes))));
  atomicAdd(mismatches + 1,
            static_cast<unsigned long long>(differ(decode_e5m2x4(codes), plain::decode_e5m2x4(codes))));
}

__global__ void reduce(const float* in, float* out) {
  const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  const float sum = block_sum(in[i]), magnitude = block_max_magnitude(in[i]);
  float lanes[8];
  for (int j = 0; j < 8; ++j) lanes[j] = in[256 * blockIdx.x + 8 * (threadIdx.x % 32) + j];
  const float row = sum_of_lanes(lanes);
  gpu::store(reinterpret_cast<float4*>(out) + i, make_float4(sum, magnitude, row, 0.0f));
}

}  // namespace

void count_mismatches(uint64_t patterns, unsigned long long* mismatches) {  // [5]
  gpu::launch(compare_encoders, {.grid = 8 * gpu::processors(), .block = 256}, patterns, mismatches);
  gpu::launch(compare_decoders, {.grid = 1, .block = 256}, mismatches + 3);
}
void reduce_blocks(const float* in, float* out) {  // [8, 256] -> [8, 256, 4]
  gpu::launch(reduce, {.grid = 8, .block = 256}, in, out);
}
void fill_floats(float* out, int64_t count, float value) {
  fill({.out = out, .storage = octet::Format::FP32, .count = count, .value = value});
}

OCTET_KERNELS_END
