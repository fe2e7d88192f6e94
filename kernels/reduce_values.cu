// out[i] = to_small_float(format, in[i]) on BF16 values: simulated precision of a product's operand
// [numerics/small_float.h].
//
// Bytes: 2 a value read, 2 written; floor 4 count / bandwidth, bound by memory.
#include "kernels/reduce_values.h"

#include "kernels/gpu.h"
#include "kernels/grid.h"
#include "kernels/values.cuh"
#include "numerics/small_float.h"

OCTET_KERNELS_BEGIN
namespace {

constexpr unsigned threads = 256;

__device__ __forceinline__ uint32_t reduce_pair(const SmallFloatBits& format, uint32_t pair) {
  const uint32_t low = to_small_float(format, BFloat16{static_cast<uint16_t>(pair)}).bits;
  const uint32_t high = to_small_float(format, BFloat16{static_cast<uint16_t>(pair >> 16)}).bits;
  return low | high << 16;
}

// Eight values at a time, then single ones: all of them where an address is not aligned.
__global__ void __launch_bounds__(threads)
    reduce_kernel(const BFloat16* __restrict__ in, BFloat16* __restrict__ out, int64_t count, int64_t vectors,
                  SmallFloatBits format) {
  const int64_t first = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = first; i < vectors; i += stride) {
    const uint4 v = gpu::load_streaming(reinterpret_cast<const uint4*>(in) + i);
    gpu::store(reinterpret_cast<uint4*>(out) + i,
               make_uint4(reduce_pair(format, v.x), reduce_pair(format, v.y), reduce_pair(format, v.z),
                          reduce_pair(format, v.w)));
  }
  for (int64_t i = vector_values * vectors + first; i < count; i += stride)
    out[i] = to_small_float(format, in[i]);
}

}  // namespace

void reduce_values(const ReduceValuesArguments& args) {
  if (args.count <= 0) return;
  const bool aligned = is_aligned16(args.in) && is_aligned16(args.out);
  const int64_t vectors = aligned ? args.count / vector_values : 0;
  const int64_t work =
      vectors > args.count - vector_values * vectors ? vectors : args.count - vector_values * vectors;
  gpu::launch(reduce_kernel, {.grid = walking_grid(work, threads), .block = threads, .stream = args.stream},
              static_cast<const BFloat16*>(args.in), static_cast<BFloat16*>(args.out), args.count, vectors,
              bits_of(args.format));
}

OCTET_KERNELS_END
