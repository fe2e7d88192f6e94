// scale_beforehand, record_beforehand: a thread, some numbers; bound by their launch.
// decode: to[i] = codes[i] * inverse_scale. Reads 1 byte and writes 2 (BF16) or 4 (FP32) a value, eight
// values a thread: bound by memory, floor 3 (5) count / bandwidth.
#include "kernels/codes_beforehand.h"

#include "kernels/gpu.h"
#include "kernels/grid.h"
#include "kernels/values.cuh"

OCTET_KERNELS_BEGIN
namespace {

constexpr unsigned threads = 256;
constexpr uint32_t infinity_bits = 0x7f800000u;

__device__ __forceinline__ uint32_t magnitude_bits(float x) { return __float_as_uint(x) & 0x7fffffffu; }

__global__ void scale_beforehand_kernel(ScaleBeforehandArguments args) {
  const float largest_input = __fmul_rn(e4m3_max, *args.qkv_inverse_scale);
  float start = output_start(largest_input);
  if (args.start_of != StartOf::Output) {
    const float largest_gradient = __fmul_rn(e5m2_max, *args.gradient_inverse_scale);
    start = args.start_of == StartOf::ScoreGradient
                ? score_gradient_start(args.start, largest_input, largest_gradient)
                : qkv_gradient_start(args.start, largest_input, largest_gradient);
  }
  const float scale = octet::scale_beforehand(args.cast, args.site_scale ? *args.site_scale : 0.0f, start);
  *args.scale = scale;
  if (args.inverse_scale) *args.inverse_scale = __fdiv_rn(1.0f, scale);
  for (int i = 0; i < args.amax_count; ++i) args.amaxes[i] = 0.0f;
}

__global__ void record_beforehand_kernel(RecordBeforehandArguments args) {
  uint32_t largest = 0;
  for (int i = 0; i < args.amax_count; ++i) {
    const uint32_t bits = magnitude_bits(args.amaxes[i]);
    largest = bits > largest ? bits : largest;
  }
  const bool finite =
      largest < infinity_bits && (!args.other_amax || magnitude_bits(*args.other_amax) < infinity_bits);
  const float inverse = finite ? __fdiv_rn(1.0f, *args.scale) : __uint_as_float(0x7fc00000u);
  *args.inverse_scale = inverse;
  if (args.site_inverse_scale) *args.site_inverse_scale = inverse;
  const float amax = __uint_as_float(largest < infinity_bits ? largest : infinity_bits);
  if (args.site_amax && *args.site_amax < amax) *args.site_amax = amax;
}

template <class T>
__global__ void __launch_bounds__(threads) decode_vectors(T* __restrict__ to, DecodeArguments args) {
  const float inverse = *args.inverse_scale;
  const int64_t stride = vector_values * static_cast<int64_t>(gridDim.x) * blockDim.x;
  int64_t i = vector_values * (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x);
  for (; i + vector_values <= args.count; i += stride) {
    const uint2 codes = gpu::load_streaming(reinterpret_cast<const uint2*>(args.codes + i));
    float v[vector_values];
    unpack8(decode_x4(args.format, codes.x), decode_x4(args.format, codes.y), v);
#pragma unroll
    for (int j = 0; j < vector_values; ++j) v[j] *= inverse;
    store8(to + i, v);
  }
  for (int64_t last = i; last < args.count && last < i + vector_values;
       ++last)  // the ragged end is one thread's
    octet::store(to + last, octet::decode(args.format, args.codes[last]) * inverse);
}

// Any alignment.
template <class T>
__global__ void __launch_bounds__(threads) decode_values(T* __restrict__ to, DecodeArguments args) {
  const float inverse = *args.inverse_scale;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < args.count; i += stride)
    octet::store(to + i, octet::decode(args.format, args.codes[i]) * inverse);
}

}  // namespace

void scale_beforehand(const ScaleBeforehandArguments& args) {
  gpu::launch(scale_beforehand_kernel, {.grid = 1, .block = 1, .stream = args.stream}, args);
}

void record_beforehand(const RecordBeforehandArguments& args) {
  gpu::launch(record_beforehand_kernel, {.grid = 1, .block = 1, .stream = args.stream}, args);
}

void decode(const DecodeArguments& args) {
  if (args.count <= 0) return;
  const bool vectors = reinterpret_cast<uintptr_t>(args.codes) % 8 == 0 && is_aligned16(args.to);
  const int64_t work = vectors ? (args.count + vector_values - 1) / vector_values : args.count;
  const gpu::Launch launch{.grid = walking_grid(work, threads), .block = threads, .stream = args.stream};
  with_storage(args.storage, [&](auto to) {
    using T = decltype(to);
    gpu::launch(vectors ? decode_vectors<T> : decode_values<T>, launch, static_cast<T*>(args.to), args);
  });
}

OCTET_KERNELS_END
