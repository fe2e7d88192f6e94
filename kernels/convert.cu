// to[i] = from[i] in another storage type. Reads and writes 6 bytes a value: bound by memory, floor
// 6 count / bandwidth.
#include "kernels/convert.h"

#include "kernels/gpu.h"
#include "kernels/grid.h"
#include "kernels/values.cuh"

OCTET_KERNELS_BEGIN
namespace {

constexpr unsigned threads = 256;

template <class To, class From>
__global__ void __launch_bounds__(threads)
    convert_vectors(To* __restrict__ to, const From* __restrict__ from, int64_t count) {
  const int64_t stride = vector_values * static_cast<int64_t>(gridDim.x) * blockDim.x;
  int64_t i = vector_values * (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x);
  float v[vector_values];
  for (; i + vector_values <= count; i += stride) {
    load8_streaming(from + i, v);
    store8_streaming(to + i, v);
  }
  if (i < count) {  // the ragged end is one thread's
    load_some(from + i, count - i, v);
    store_some(to + i, count - i, v);
  }
}

// Any alignment.
template <class To, class From>
__global__ void __launch_bounds__(threads)
    convert_values(To* __restrict__ to, const From* __restrict__ from, int64_t count) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += stride) {
    octet::store(to + i, octet::load(from[i]));
  }
}

}  // namespace

void convert(const ConvertArguments& args) {
  if (args.count <= 0) return;
  const bool vectors = is_aligned16(args.to) && is_aligned16(args.from);
  const int64_t work = vectors ? (args.count + vector_values - 1) / vector_values : args.count;
  const gpu::Launch launch{.grid = walking_grid(work, threads), .block = threads, .stream = args.stream};
  with_storage(args.to_storage, [&](auto to) {
    with_storage(args.from_storage, [&](auto from) {
      using To = decltype(to);
      using From = decltype(from);
      gpu::launch(vectors ? convert_vectors<To, From> : convert_values<To, From>, launch,
                  static_cast<To*>(args.to), static_cast<const From*>(args.from), args.count);
    });
  });
}

OCTET_KERNELS_END
