// Gradient norm: squares of pieces, their sum, and the decision; the sum of token losses.
//
//   partial[p] = sum over piece p of x^2, FP64      reads 4 (FP32) or 2 (BF16) bytes a value: bound by
//   memory,
//                                                   floor bytes / bandwidth (GPUs with few FP64 units: by
//                                                   those)
//   norm = sqrt(sum of partial)                     8 bytes for 16384 values, by one block: bound by latency,
//   out += sum of x                                 about count / 4096 times that of a load
#include "kernels/gradient_norm.h"

#include "kernels/block.h"
#include "kernels/gpu.h"
#include "kernels/grid.h"
#include "kernels/values.cuh"
#include "numerics/sums.h"

OCTET_KERNELS_BEGIN
namespace {

constexpr unsigned threads = 256;
constexpr int64_t warps = threads / 32;
static_assert(sum_lanes == 32 * vector_values, "eight neighbours a thread are a warp's lanes");
static_assert(sum_lanes == threads, "a block has a thread for each lane");
static_assert(norm_piece % vector_values == 0, "pieces of an aligned gradient are aligned");

__device__ __forceinline__ void add_squares(double (&lanes)[8], const float (&v)[8]) {
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    const double value = static_cast<double>(v[j]);
    lanes[j] += value * value;
  }
}

// A warp a piece.
template <class T, bool vectors>
__global__ void __launch_bounds__(threads)
    squares_kernel(const T* __restrict__ values, int64_t count, double* __restrict__ partial) {
  constexpr int together = 4;  // loads in flight
  const int64_t first = static_cast<int64_t>(blockIdx.x) * warps + threadIdx.x / 32, lane = threadIdx.x % 32;
  const int64_t pieces = (count + norm_piece - 1) / norm_piece;
  for (int64_t piece = first; piece < pieces; piece += gridDim.x * warps) {
    const T* const x = values + piece * norm_piece;
    const int64_t left = count - piece * norm_piece, n = left < norm_piece ? left : norm_piece;
    double lanes[8] = {};
    int64_t i = vector_values * lane;
    if (vectors) {
      for (; i + (together - 1) * sum_lanes + vector_values <= n; i += together * sum_lanes) {
        float v[together][8];
#pragma unroll
        for (int k = 0; k < together; ++k) load8_streaming(x + i + k * sum_lanes, v[k]);
#pragma unroll
        for (int k = 0; k < together; ++k) add_squares(lanes, v[k]);
      }
    }
    for (; i < n; i += sum_lanes) {
      float v[8];
      if (vectors && i + vector_values <= n) {
        load8_streaming(x + i, v);
      } else {
        load_some(x + i, n - i, v);
      }
      add_squares(lanes, v);  // a missing value's square is +0, which changes nothing
    }
    const double sum = sum_of_lanes(lanes);
    if (lane == 0) partial[piece] = sum;
  }
}

struct Finish {
  const double* partial;
  int64_t count;
  const double* loss_sum;
  double loss_divisor;
  float clip_norm;
  Control* control;
};

template <class T>
__device__ __forceinline__ bool is_finite(T x) {
  return x - x == T{0};
}

__global__ void __launch_bounds__(threads) finish_kernel(Finish args) {
  GPU_SHARED(uint32_t, nonfinite_piece, 1);  // 1 + the first, or 0
  const double sum = sum_by_block(args.partial, args.count);
  if (threadIdx.x == 0) *nonfinite_piece = is_finite(sum) ? 0u : ~0u;
  __syncthreads();
  if (*nonfinite_piece != 0) {  // a sum of squares of floats does not overflow: some piece is not finite
    __syncthreads();
    for (int64_t i = threadIdx.x; i < args.count; i += threads) {
      if (is_finite(args.partial[i])) continue;
      atomicMin(nonfinite_piece, static_cast<uint32_t>(i + 1));
      break;
    }
    __syncthreads();
  }
  if (threadIdx.x != 0) return;
  const float norm = static_cast<float>(sqrt(sum));
  const float loss = static_cast<float>(*args.loss_sum / args.loss_divisor);
  const bool apply = is_finite(norm) && is_finite(loss),
             clip = args.clip_norm > 0.0f && norm > args.clip_norm;
  args.control->gradient_norm = norm;
  args.control->loss = loss;
  args.control->apply = apply ? 1u : 0u;
  args.control->nonfinite_piece = *nonfinite_piece;
  args.control->scale = !apply ? 0.0f : clip ? args.clip_norm / norm : 1.0f;
}

__global__ void __launch_bounds__(threads) accumulate_kernel(double* out, const float* x, int64_t count) {
  const double sum = sum_by_block(x, count);
  if (threadIdx.x == 0) *out += sum;
}

}  // namespace

int64_t norm_pieces(int64_t count) { return (count + norm_piece - 1) / norm_piece; }

void squares(const SquaresArguments& args) {
  const int64_t pieces = norm_pieces(args.count);
  if (pieces <= 0) return;
  with_storage(args.storage, [&](auto type) {
    using T = decltype(type);
    gpu::launch(is_aligned16(args.values) ? squares_kernel<T, true> : squares_kernel<T, false>,
                {.grid = walking_grid(pieces, warps), .block = threads, .stream = args.stream},
                static_cast<const T*>(args.values), args.count, args.partial);
  });
}

void finish_norm(const FinishNormArguments& args) {
  gpu::launch(finish_kernel, {.grid = 1, .block = threads, .stream = args.stream},
              Finish{.partial = args.partial,
                     .count = args.count,
                     .loss_sum = args.loss_sum,
                     .loss_divisor = args.loss_divisor,
                     .clip_norm = args.clip_norm,
                     .control = args.control});
}

void accumulate_sum(const AccumulateSumArguments& args) {
  gpu::launch(accumulate_kernel, {.grid = 1, .block = threads, .stream = args.stream}, args.out, args.x,
              args.count);
}

OCTET_KERNELS_END
