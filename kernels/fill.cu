// out[i] = value. Writes 4 (FP32) or 2 (BF16) bytes a value, reads nothing: bound by memory, floor
// bytes / bandwidth.
#include "kernels/fill.h"

#include "kernels/gpu.h"
#include "kernels/grid.h"
#include "kernels/values.cuh"

OCTET_KERNELS_BEGIN
namespace {

constexpr unsigned threads = 256;

// 16 bytes at a time in the aligned middle, single values at the ragged ends.
template <class T>
__global__ void __launch_bounds__(threads) fill_kernel(T* __restrict__ out, int64_t count, T value) {
  constexpr int64_t together = 16 / sizeof(T);
  const int64_t to_alignment = static_cast<int64_t>((0 - reinterpret_cast<uintptr_t>(out)) % 16 / sizeof(T));
  const int64_t head = to_alignment < count ? to_alignment : count, vectors = (count - head) / together;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  T copies[together];
#pragma unroll
  for (int i = 0; i < together; ++i) copies[i] = value;
  uint4 pattern;
  memcpy(&pattern, copies, 16);
  uint4* const middle = reinterpret_cast<uint4*>(out + head);
  for (int64_t i = first; i < vectors; i += stride) gpu::store_streaming(middle + i, pattern);
  for (int64_t i = first; i < count - together * vectors; i += stride) {
    out[i < head ? i : i + together * vectors] = value;
  }
}

template <class T>
void fill_values(const FillArguments& args, T value) {
  const int64_t vectors = args.count * static_cast<int64_t>(sizeof(T)) / 16;
  gpu::launch(fill_kernel<T>,
              {.grid = walking_grid(vectors + 1, threads), .block = threads, .stream = args.stream},
              static_cast<T*>(args.out), args.count, value);
}

}  // namespace

void fill(const FillArguments& args) {
  if (args.count <= 0) return;
  if (args.storage == octet::Format::FP32) {
    fill_values(args, args.value);
  } else {
    fill_values(args, to_bfloat16(args.value));
  }
}

OCTET_KERNELS_END
