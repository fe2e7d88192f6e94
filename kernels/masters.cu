// Masters to numbers and back, four neighbours a thread. Reads and writes 2 (with a remainder or compensation
// 4) bytes of a master and 2 or 4 of its number: bound by memory, floor (2 .. 4 + 2 .. 4) count / bandwidth.
#include "kernels/masters.cuh"

#include "kernels/grid.h"

OCTET_KERNELS_BEGIN
namespace {

constexpr unsigned threads = 256, warps = threads / 32;

template <class T, bool vectors>
__global__ void __launch_bounds__(threads) read_kernel(MasterArguments master, T* to, int64_t count) {
  for (int64_t begin = usual_block * (static_cast<int64_t>(blockIdx.x) * warps + threadIdx.x / 32);
       begin < count; begin += usual_block * static_cast<int64_t>(gridDim.x) * warps) {
    const Place at = place_of<vectors>(begin, count);
    float w[own];
    read4(master, at.access, at.i, at.n, w, MasterValue());
    store4(at.access, to + at.i, at.n, w);
  }
}

template <bool vectors>
__global__ void __launch_bounds__(threads)
    write_kernel(const float* from, MasterArguments master, int64_t count) {
  for (int64_t begin = usual_block * (static_cast<int64_t>(blockIdx.x) * warps + threadIdx.x / 32);
       begin < count; begin += usual_block * static_cast<int64_t>(gridDim.x) * warps) {
    const Place at = place_of<vectors>(begin, count);
    float w[own];
    load4(at.access, from + at.i, at.n, w);
    store_masters(master, at.access, at.i, at.n, w, {});
  }
}

__global__ void __launch_bounds__(threads) measure_kernel(MeasureUnchangedArguments args) {
  if (args.control->apply != 0) return;
  uint32_t largest = 0;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * threads;
#pragma unroll 4
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * threads + threadIdx.x; i < args.count; i += stride)
    largest = larger(largest, value_of_one(args.master, i));
  raise_master_amax(args.amax, largest);
}

gpu::Launch walk(int64_t count, Stream stream) {
  return {.grid = walking_grid(count, warps * usual_block), .block = threads, .stream = stream};
}

}  // namespace

void read_masters(const ReadMastersArguments& args) {
  if (args.count <= 0) return;
  const bool vectors = is_aligned16(args.master) && is_aligned16(args.to);
  with_storage(args.storage, [&](auto type) {
    using T = decltype(type);
    gpu::launch(vectors ? read_kernel<T, true> : read_kernel<T, false>, walk(args.count, args.stream),
                args.master, static_cast<T*>(args.to), args.count);
  });
}

void write_masters(const WriteMastersArguments& args) {
  if (args.count <= 0) return;
  MasterArguments master = args.master;
  if (master.format == octet::MasterFormat::BF16Stochastic) master.format = octet::MasterFormat::BF16Nearest;
  const bool vectors = is_aligned16(master) && is_aligned16(args.from);
  gpu::launch(vectors ? write_kernel<true> : write_kernel<false>, walk(args.count, args.stream), args.from,
              master, args.count);
}

void measure_unchanged(const MeasureUnchangedArguments& args) {
  if (args.count <= 0) return;
  gpu::launch(measure_kernel, walk(args.count, args.stream), args);
}

OCTET_KERNELS_END
