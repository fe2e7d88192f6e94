// The root mean square of a tensor's updates.
//
//   partial[p] = sum over piece p of g^2 / max(v / (1 - beta2^t), epsilon^2), FP64
//     Reads the gradient (4 or 2 bytes) and the second moment (1 byte in FP8) of a value: bound by memory,
//     floor bytes / bandwidth (range expansion: by its exponential and logarithm)
//   rms = sqrt(sum of partial / elements)     by one block: bound by latency
#include "kernels/update_rms.h"

#include "kernels/block.h"
#include "kernels/gpu.h"
#include "kernels/grid.h"
#include "kernels/moments.cuh"
#include "kernels/values.cuh"
#include "numerics/sums.h"
#include "numerics/update_clipping.h"

OCTET_KERNELS_BEGIN
namespace {

constexpr unsigned threads = 256;
constexpr int64_t warps = threads / 32;
static_assert(sum_lanes == 32 * vector_values, "eight neighbours a thread are a warp's lanes");
static_assert(sum_lanes == threads, "a block has a thread for each lane");

// A warp a piece.
template <class T, bool vectors>
__global__ void __launch_bounds__(threads) squares_kernel(UpdateSquaresArguments args) {
  const bool apply = args.control->apply != 0;
  const float scale = args.control->scale, rest2 = 1.0f - args.beta2;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * warps + threadIdx.x / 32, lane = threadIdx.x % 32;
  const int64_t pieces = (args.count + norm_piece - 1) / norm_piece;
  for (int64_t piece = first; piece < pieces; piece += gridDim.x * warps) {
    const int64_t begin = piece * norm_piece, left = args.count - begin,
                  end = begin + (left < norm_piece ? left : norm_piece);
    double lanes[vector_values] = {};
    for (int64_t i = begin + vector_values * lane; apply && i < end; i += sum_lanes) {
      const int64_t n = end - i < vector_values ? end - i : vector_values;
      const T* const from = static_cast<const T*>(args.gradient) + i;
      float g[vector_values];
      if (vectors && n == vector_values) {
        load8_streaming(from, g);
      } else {
        load_some(from, n, g);
      }
#pragma unroll
      for (int j = 0; j < vector_values; ++j) {
        if (j >= n) continue;
        const float x = scale * g[j];
        const float v = args.beta2 * load_one(args.second, i + j) + rest2 * (x * x);
        lanes[j] += static_cast<double>(update_square(x, v, args.correction, args.least));
      }
    }
    const double sum = sum_of_lanes(lanes);
    if (lane == 0) args.partial[piece] = sum;
  }
}

__global__ void __launch_bounds__(threads) rms_kernel(UpdateRmsArguments args) {
  const double sum = sum_by_block(args.partial, args.count);
  if (threadIdx.x == 0) *args.rms = static_cast<float>(sqrt(sum / static_cast<double>(args.elements)));
}

}  // namespace

void update_squares(const UpdateSquaresArguments& args) {
  const int64_t pieces = norm_pieces(args.count);
  if (pieces <= 0) return;
  with_storage(args.gradient_storage, [&](auto type) {
    using T = decltype(type);
    gpu::launch(is_aligned16(args.gradient) ? squares_kernel<T, true> : squares_kernel<T, false>,
                {.grid = walking_grid(pieces, warps), .block = threads, .stream = args.stream}, args);
  });
}

void update_rms(const UpdateRmsArguments& args) {
  gpu::launch(rms_kernel, {.grid = 1, .block = threads, .stream = args.stream}, args);
}

OCTET_KERNELS_END
