// A block has a row of the product and walks over its columns, four at a time. Reads 4 bytes a value and
// writes 2 or 4 (reads as many again to accumulate): bound by memory, floor 6 .. 12 rows columns / bandwidth.
#include "kernels/outer_scales.h"

#include "kernels/gpu.h"
#include "kernels/instructions.h"
#include "numerics/bfloat16.h"

OCTET_KERNELS_BEGIN
namespace {

constexpr unsigned threads = 256;
constexpr int64_t vector = 4;

__device__ __forceinline__ float4 load_four(const float* from) {
  return gpu::load_streaming(reinterpret_cast<const float4*>(from));
}
__device__ __forceinline__ float4 load_four(const BFloat16* from) {
  const uint2 pairs = gpu::load_streaming(reinterpret_cast<const uint2*>(from));
  const float2 low = unpack_bfloat16x2(pairs.x), high = unpack_bfloat16x2(pairs.y);
  return make_float4(low.x, low.y, high.x, high.y);
}
__device__ __forceinline__ void store_four(float* to, float4 v) {
  gpu::store_streaming(reinterpret_cast<float4*>(to), v);
}
__device__ __forceinline__ void store_four(BFloat16* to, float4 v) {
  gpu::store_streaming(reinterpret_cast<uint2*>(to),
                       make_uint2(pack_bfloat16x2(v.x, v.y), pack_bfloat16x2(v.z, v.w)));
}

template <class Out>
__global__ void __launch_bounds__(threads)
    outer_scales_kernel(const float* __restrict__ product, const float* __restrict__ row_scale,
                        const float* __restrict__ column_scale, Out* __restrict__ out, bool accumulate,
                        int64_t rows, int64_t columns) {
  for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    const float r = row_scale ? row_scale[row] : 1.0f;
    for (int64_t column = vector * threadIdx.x; column < columns; column += vector * blockDim.x) {
      const float4 p = load_four(product + row * columns + column);
      float4 v = make_float4(p.x * r, p.y * r, p.z * r, p.w * r);
      if (column_scale) {
        const float4 c = gpu::load(reinterpret_cast<const float4*>(column_scale + column));
        v = make_float4(v.x * c.x, v.y * c.y, v.z * c.z, v.w * c.w);
      }
      Out* const at = out + row * columns + column;
      if (accumulate) {
        const float4 old = load_four(at);
        v = make_float4(old.x + v.x, old.y + v.y, old.z + v.z, old.w + v.w);
      }
      store_four(at, v);
    }
  }
}

__global__ void __launch_bounds__(threads)
    spread_scale_kernel(float* __restrict__ out, const float* __restrict__ scale, int64_t count) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  const float value = *scale;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += stride) {
    out[i] = value;
  }
}

unsigned walking_blocks(int64_t blocks) {
  const int64_t enough = 16 * static_cast<int64_t>(gpu::processors());
  return static_cast<unsigned>(blocks < enough ? blocks : enough);
}

template <class Out>
void launch_outer_scales(const OuterScalesArguments& args) {
  gpu::launch(outer_scales_kernel<Out>,
              {.grid = walking_blocks(args.rows), .block = threads, .stream = args.stream}, args.product,
              args.row_scale, args.column_scale, static_cast<Out*>(args.out), args.accumulate, args.rows,
              args.columns);
}

}  // namespace

void apply_outer_scales(const OuterScalesArguments& args) {
  if (args.columns % vector != 0) {
    throw gpu::LaunchError("apply_outer_scales: " + std::to_string(args.columns) +
                           " columns are not a multiple of 4");
  }
  if (args.rows <= 0 || args.columns <= 0) return;
  if (args.storage == Format::BF16) {
    launch_outer_scales<BFloat16>(args);
  } else {
    launch_outer_scales<float>(args);
  }
}

void spread_scale(const SpreadScaleArguments& args) {
  if (args.count <= 0) return;
  gpu::launch(
      spread_scale_kernel,
      {.grid = walking_blocks((args.count + threads - 1) / threads), .block = threads, .stream = args.stream},
      args.out, args.scale, args.count);
}

OCTET_KERNELS_END
