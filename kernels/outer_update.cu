// Eight neighbours a thread. The difference reads 8 bytes an element and writes 4, the update reads 12 and
// writes 12: bound by memory, floors 12 n and 24 n / bandwidth, once in sync_every steps.
#include "kernels/outer_update.h"

#include "kernels/gpu.h"
#include "kernels/grid.h"
#include "kernels/values.cuh"

OCTET_KERNELS_BEGIN
namespace {

constexpr unsigned threads = 256;
constexpr int own = vector_values;

template <bool vectors>
__device__ __forceinline__ void read(const float* from, int64_t count, float (&v)[own]) {
  if (vectors) {
    load8_streaming(from, v);
  } else {
    load_some(from, count, v);
  }
}
template <bool vectors>
__device__ __forceinline__ void write(float* to, int64_t count, const float (&v)[own]) {
  if (vectors) {
    store8_streaming(to, v);
  } else {
    store_some(to, count, v);
  }
}

template <bool vectors>
__global__ void __launch_bounds__(threads) difference_kernel(OuterDifferenceArguments args) {
  for (int64_t i = own * (static_cast<int64_t>(blockIdx.x) * threads + threadIdx.x); i < args.count;
       i += own * static_cast<int64_t>(gridDim.x) * threads) {
    const int64_t n = args.count - i < own ? args.count - i : own;
    float outer[own], local[own];
    read<vectors>(args.outer + i, n, outer);
    read<vectors>(args.local + i, n, local);
#pragma unroll
    for (int j = 0; j < own; ++j) local[j] = outer[j] - local[j];
    write<vectors>(args.local + i, n, local);
  }
}

template <bool vectors>
__global__ void __launch_bounds__(threads) update_kernel(OuterUpdateArguments args) {
  for (int64_t i = own * (static_cast<int64_t>(blockIdx.x) * threads + threadIdx.x); i < args.count;
       i += own * static_cast<int64_t>(gridDim.x) * threads) {
    const int64_t n = args.count - i < own ? args.count - i : own;
    float outer[own], velocity[own], local[own];
    read<vectors>(args.outer + i, n, outer);
    read<vectors>(args.velocity + i, n, velocity);
    read<vectors>(args.local + i, n, local);
#pragma unroll
    for (int j = 0; j < own; ++j) {
      const float d = args.scale * local[j];
      velocity[j] = args.momentum * velocity[j] + d;
      outer[j] = outer[j] - args.learning_rate * (d + args.momentum * velocity[j]);
    }
    write<vectors>(args.outer + i, n, outer);
    write<vectors>(args.velocity + i, n, velocity);
    write<vectors>(args.local + i, n, outer);
  }
}

unsigned grid_for(int64_t count) { return walking_grid((count + own - 1) / own, threads); }

}  // namespace

void outer_difference(const OuterDifferenceArguments& args) {
  if (args.count <= 0) return;
  gpu::launch(
      in_vectors(args.count, args.outer, args.local) ? difference_kernel<true> : difference_kernel<false>,
      {.grid = grid_for(args.count), .block = threads, .stream = args.stream}, args);
}

void outer_update(const OuterUpdateArguments& args) {
  if (args.count <= 0) return;
  gpu::launch(in_vectors(args.count, args.outer, args.velocity, args.local) ? update_kernel<true>
                                                                            : update_kernel<false>,
              {.grid = grid_for(args.count), .block = threads, .stream = args.stream}, args);
}

OCTET_KERNELS_END
