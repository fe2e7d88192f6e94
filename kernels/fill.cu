// out[i] = value. Writes 4 count bytes, reads nothing: bound by memory, floor 4 count / bandwidth.
#include "kernels/fill.h"

#include "kernels/gpu.h"

OCTET_KERNELS_BEGIN
namespace {

constexpr unsigned threads = 256;

// Vectors of four in the aligned middle, single floats at the ragged ends.
__global__ void __launch_bounds__(threads) fill_kernel(float* __restrict__ out, int64_t count, float value) {
  const int64_t to_alignment = static_cast<int64_t>((0 - reinterpret_cast<uintptr_t>(out)) % 16 / 4);
  const int64_t head = to_alignment < count ? to_alignment : count, vectors = (count - head) / 4;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  float4* const middle = reinterpret_cast<float4*>(out + head);
  for (int64_t i = first; i < vectors; i += stride) {
    gpu::store_streaming(middle + i, make_float4(value, value, value, value));
  }
  for (int64_t i = first; i < count - 4 * vectors; i += stride) {
    out[i < head ? i : i + 4 * vectors] = value;
  }
}

}  // namespace

void fill(const FillArguments& args) {
  if (args.count <= 0) return;
  const int64_t blocks = (args.count / 4 + threads) / threads,
                enough = 8 * static_cast<int64_t>(gpu::processors());
  gpu::launch(fill_kernel,
              {.grid = static_cast<unsigned>(blocks < enough ? blocks : enough),
               .block = threads,
               .stream = args.stream},
              args.out, args.count, args.value);
}

OCTET_KERNELS_END
