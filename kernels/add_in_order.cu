// Eight neighbours a thread, source after source. Reads 4 (BF16: 2) bytes a value and source and 4 of the
// sum, writes 4: bound by memory, floor (sources + 2) * 4 n / bandwidth. Doubles are a step's token losses,
// few: one a thread.
#include "kernels/add_in_order.h"

#include "kernels/gpu.h"
#include "kernels/grid.h"
#include "kernels/values.cuh"

OCTET_KERNELS_BEGIN
namespace {

constexpr unsigned threads = 256;
constexpr int own = vector_values;

template <class T, bool vectors>
__global__ void __launch_bounds__(threads)
    add_kernel(float* __restrict__ sum, const T* __restrict__ values, int64_t sources, int64_t count) {
  for (int64_t i = own * (static_cast<int64_t>(blockIdx.x) * threads + threadIdx.x); i < count;
       i += own * static_cast<int64_t>(gridDim.x) * threads) {
    const int64_t n = count - i < own ? count - i : own;
    float total[own], v[own];
    if (vectors) {
      load8_streaming(sum + i, total);
    } else {
      load_some(sum + i, n, total);
    }
#pragma unroll 4
    for (int64_t s = 0; s < sources; ++s) {
      if (vectors) {
        load8_streaming(values + s * count + i, v);
      } else {
        load_some(values + s * count + i, n, v);
      }
#pragma unroll
      for (int j = 0; j < own; ++j) total[j] += v[j];
    }
    if (vectors) {
      store8_streaming(sum + i, total);
    } else {
      store_some(sum + i, n, total);
    }
  }
}

__global__ void __launch_bounds__(threads) add_doubles_kernel(AddDoublesInOrderArguments args) {
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * threads + threadIdx.x; i < args.count;
       i += static_cast<int64_t>(gridDim.x) * threads) {
    double total = args.sum[i];
    for (int64_t s = 0; s < args.sources; ++s) total += args.values[s * args.count + i];
    args.sum[i] = total;
  }
}

}  // namespace

void add_in_order(const AddInOrderArguments& args) {
  if (args.count <= 0) return;
  const gpu::Launch launch{
      .grid = walking_grid((args.count + own - 1) / own, threads), .block = threads, .stream = args.stream};
  const bool vectors = in_vectors(args.count, args.sum, args.values);
  with_storage(args.storage, [&](auto value) {
    using T = decltype(value);
    gpu::launch(vectors ? add_kernel<T, true> : add_kernel<T, false>, launch, args.sum,
                static_cast<const T*>(args.values), args.sources, args.count);
  });
}

void add_doubles_in_order(const AddDoublesInOrderArguments& args) {
  if (args.count <= 0) return;
  gpu::launch(add_doubles_kernel,
              {.grid = walking_grid(args.count, threads), .block = threads, .stream = args.stream}, args);
}

OCTET_KERNELS_END
