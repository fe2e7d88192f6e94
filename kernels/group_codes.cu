// Activations kept as codes in groups of 16: two lanes a group, eight values a lane.
//
// encode: 2 (FP32: 4) bytes a value read, 1 + 1/16 written; decode the other way round. Some ten instructions
// a value: bound by memory, floor (3 + 1/16) n / bandwidth for BF16.
#include "kernels/group_codes.h"

#include "kernels/block.h"
#include "kernels/gpu.h"
#include "kernels/grid.h"
#include "kernels/values.cuh"
#include "numerics/group_codes.h"

OCTET_KERNELS_BEGIN
namespace {

constexpr unsigned threads = 256;
constexpr int own = vector_values;  // neighbours a thread has
static_assert(code_group == 2 * own, "two lanes have a group");

template <class T>
__global__ void __launch_bounds__(threads)
    encode_kernel(const T* __restrict__ source, int64_t vectors, uint8_t* codes, uint8_t* scales) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * threads;
  // A warp stays together: lanes beyond the end have zeros.
  for (int64_t first = static_cast<int64_t>(blockIdx.x) * threads; first < vectors; first += stride) {
    const int64_t e = first + threadIdx.x;
    float v[own] = {};
    if (e < vectors) load8_streaming(source + e * own, v);
    float largest = 0.0f;
#pragma unroll
    for (int j = 0; j < own; ++j) {
      v[j] = round_to<BFloat16>(v[j]);
      largest = max_magnitude(largest, v[j]);
    }
    const float neighbour = __shfl_xor_sync(all_lanes, largest, 1);
    const BlockScale scale = block_scale(max_magnitude(largest, neighbour), 0);
    if (e >= vectors) continue;
#pragma unroll
    for (int j = 0; j < own; ++j) v[j] *= scale.scale;
    gpu::store_streaming(reinterpret_cast<uint2*>(codes + e * own),
                         make_uint2(encode_e4m3x4(make_float4(v[0], v[1], v[2], v[3])),
                                    encode_e4m3x4(make_float4(v[4], v[5], v[6], v[7]))));
    if (e % 2 == 0) scales[e / 2] = scale.inverse;
  }
}

template <class T>
__global__ void __launch_bounds__(threads)
    decode_kernel(const uint8_t* __restrict__ codes, const uint8_t* __restrict__ scales, int64_t vectors,
                  T* __restrict__ out) {
  for (int64_t e = static_cast<int64_t>(blockIdx.x) * threads + threadIdx.x; e < vectors;
       e += static_cast<int64_t>(gridDim.x) * threads) {
    const uint2 eight = gpu::load_streaming(reinterpret_cast<const uint2*>(codes + e * own));
    const float inverse = e8m0_value(scales[e / 2]);
    float v[own];
    unpack8(decode_e4m3x4(eight.x), decode_e4m3x4(eight.y), v);
#pragma unroll
    for (int j = 0; j < own; ++j) v[j] *= inverse;
    store8(out + e * own, v);
  }
}

gpu::Launch launch_of(int64_t vectors, Stream stream) {
  return {.grid = walking_grid(vectors, threads), .block = threads, .stream = stream};
}

}  // namespace

void encode_groups(const EncodeGroupsArguments& args) {
  if (args.count <= 0) return;
  const int64_t vectors = args.count / own;
  with_storage(args.storage, [&](auto value) {
    using T = decltype(value);
    gpu::launch(encode_kernel<T>, launch_of(vectors, args.stream), static_cast<const T*>(args.source),
                vectors, args.codes, args.scales);
  });
}

void decode_groups(const DecodeGroupsArguments& args) {
  if (args.count <= 0) return;
  const int64_t vectors = args.count / own;
  with_storage(args.storage, [&](auto value) {
    using T = decltype(value);
    gpu::launch(decode_kernel<T>, launch_of(vectors, args.stream), args.codes, args.scales, vectors,
                static_cast<T*>(args.out));
  });
}

OCTET_KERNELS_END
