// Muon's momentum, normalisation, weighted sums and update of masters. All are bound by memory; floors, of n
// values in BF16 with FP32 gradients and masters: momentum 6 n + 2 n a byte of the stored momentum, normalise
// 4 n, weighted sum 6 n, update 10 n, over the bandwidth. (The products beside them are bound by arithmetic.)
#include "kernels/muon.h"

#include <string>

#include "kernels/block.h"
#include "kernels/gpu.h"
#include "kernels/grid.h"
#include "kernels/masters.cuh"
#include "kernels/moments.cuh"
#include "kernels/values.cuh"
#include "numerics/muon.h"
#include "numerics/sums.h"

OCTET_KERNELS_BEGIN
namespace {

constexpr unsigned threads = 256, warps = threads / 32;
static_assert(sum_lanes == threads, "a block has a thread for each lane");

// ---- momentum: a warp a span of whole blocks, which waits in shared memory for its scales

constexpr unsigned span_warps = 4;
constexpr int64_t largest_span = 1024;
using Span = float[largest_span];

struct Momentum {
  MuonMomentumArguments args;
  float rest;
  int64_t span;
};

// The momentum after this step of value i, whose gradient becomes g.
template <class Gradient>
__device__ __forceinline__ float advanced(const Momentum& update, float scale, int64_t i, float& g) {
  g = scale * octet::load(static_cast<const Gradient*>(update.args.gradient)[i]);
  return update.args.momentum * load_one(update.args.first, i) + update.rest * g;
}

template <class Gradient, class Direction>
__global__ void __launch_bounds__(32 * span_warps) momentum_kernel(Momentum update) {
  GPU_SHARED(Span, spans, span_warps);
  const MuonMomentumArguments& args = update.args;
  if (args.control->apply == 0) return;
  const float scale = args.control->scale;
  Span& moment = spans[threadIdx.x / 32];
  for (int64_t begin = update.span * (static_cast<int64_t>(blockIdx.x) * span_warps + threadIdx.x / 32);
       begin < args.count; begin += update.span * static_cast<int64_t>(gridDim.x) * span_warps) {
    const int64_t left = args.count - begin, n = left < update.span ? left : update.span;
#pragma unroll 4
    for (int64_t k = threadIdx.x % 32; k < n; k += 32) {
      float g;
      const float m = advanced<Gradient>(update, scale, begin + k, g);
      octet::store(static_cast<Direction*>(args.direction) + begin + k, update.rest * g + args.momentum * m);
      moment[k] = m;
    }
    __syncwarp();  // all lanes have read the blocks' scales before one writes them
    store_span(args.first, Moment::First, begin, n, moment, args.amax);
    __syncwarp();  // the next span may overwrite
  }
}

// One scale for the tensor is known only after all of it.
template <class Gradient>
__global__ void __launch_bounds__(threads) measure_kernel(Momentum update) {
  if (update.args.control->apply == 0) return;
  const float scale = update.args.control->scale;
  float largest = 0.0f;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * threads;
#pragma unroll 4
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * threads + threadIdx.x; i < update.args.count;
       i += stride) {
    float g;
    largest = max_magnitude(largest, advanced<Gradient>(update, scale, i, g));
  }
  largest = block_max_magnitude(largest);
  if (threadIdx.x == 0) raise_amax(reinterpret_cast<float*>(update.args.amax), largest);
}

// After everything has read the old one.
__global__ void store_inverse(MomentArguments first, const Control* control, const uint32_t* amax) {
  if (control->apply != 0) *first.inverse = moment_scale(first.format, __uint_as_float(*amax)).inverse;
}

int64_t span_of(const MomentArguments& first) {
  if (!has_block_scales(first)) return largest_span;
  if (first.block < 0 || first.block > largest_span)
    throw gpu::LaunchError("muon_momentum: blocks of " + std::to_string(first.block) + " values; at most " +
                           std::to_string(largest_span));
  return largest_span / first.block * first.block;
}

// ---- eight neighbours a thread

template <class T, bool vectors>
__device__ __forceinline__ void read(const T* from, int64_t n, float (&v)[vector_values]) {
  if (vectors) {
    load8(from, v);
  } else {
    load_some(from, n, v);
  }
}
template <class T, bool vectors>
__device__ __forceinline__ void write(T* to, int64_t n, const float (&v)[vector_values]) {
  if (vectors) {
    store8(to, v);
  } else {
    store_some(to, n, v);
  }
}
__device__ __forceinline__ int64_t first_of_thread() {
  return vector_values * (static_cast<int64_t>(blockIdx.x) * threads + threadIdx.x);
}
__device__ __forceinline__ int64_t stride_of_grid() {
  return vector_values * static_cast<int64_t>(gridDim.x) * threads;
}

// Each block adds the partial sums up for itself: one in 16,384 of the values.
template <class T, bool vectors>
__global__ void __launch_bounds__(threads) normalize_kernel(NormalizeArguments args) {
  GPU_SHARED(float, factors, 1);
  const double sum = sum_by_block(args.partial, (args.count + norm_piece - 1) / norm_piece);
  if (threadIdx.x == 0) *factors = muon_factor(sum);
  __syncthreads();
  const float factor = *factors;
  T* const x = static_cast<T*>(args.x);
  for (int64_t i = first_of_thread(); i < args.count; i += stride_of_grid()) {
    float v[vector_values];
    read<T, vectors>(x + i, args.count - i, v);
#pragma unroll
    for (int j = 0; j < vector_values; ++j) v[j] = factor * v[j];
    write<T, vectors>(x + i, args.count - i, v);
  }
}

template <class T, bool vectors>
__global__ void __launch_bounds__(threads) sum_kernel(WeightedSumArguments args) {
  for (int64_t i = first_of_thread(); i < args.count; i += stride_of_grid()) {
    const int64_t left = args.count - i;
    float x[vector_values], y[vector_values];
    read<T, vectors>(static_cast<const T*>(args.x) + i, left, x);
    read<T, vectors>(static_cast<const T*>(args.y) + i, left, y);
#pragma unroll
    for (int j = 0; j < vector_values; ++j) x[j] = args.alpha * x[j] + args.beta * y[j];
    write<T, vectors>(static_cast<T*>(args.out) + i, left, x);
  }
}

unsigned grid_for(int64_t count) {
  return walking_grid((count + vector_values - 1) / vector_values, threads);
}

// ---- masters: four neighbours a thread, a block of masters a warp

template <class Direction, bool vectors>
__global__ void __launch_bounds__(threads) update_kernel(MuonUpdateArguments args) {
  if (args.control->apply == 0) return;
  const bool draws = args.master.format == octet::MasterFormat::BF16Stochastic;
  uint32_t largest = 0;
  for (int64_t begin = usual_block * (static_cast<int64_t>(blockIdx.x) * warps + threadIdx.x / 32);
       begin < args.count; begin += usual_block * static_cast<int64_t>(gridDim.x) * warps) {
    const Place at = place_of<vectors>(begin, args.count);
    float w[own], direction[own];
    read4(args.master, at.access, at.i, at.n, w, LoadMaster());
    load4(at.access, static_cast<const Direction*>(args.direction) + at.i, at.n, direction);
#pragma unroll
    for (int j = 0; j < own; ++j) w[j] = w[j] - (args.decay * w[j] + args.rate * direction[j]);
    __syncwarp();  // all lanes have read the block's scale before one writes it
    const auto four = static_cast<uint64_t>(args.first_element + at.i) >> 2;
    store_masters(args.master, at.access, at.i, at.n, w, draws ? philox(args.rounding_key, four) : Random4{});
#pragma unroll
    for (int j = 0; j < own; ++j) largest = j < at.n ? larger(largest, w[j]) : largest;
  }
  if (args.master_amax) raise_master_amax(args.master_amax, largest);
}

}  // namespace

void muon_momentum(const MuonMomentumArguments& args) {
  if (args.count <= 0) return;
  const Momentum update{args, 1.0f - args.momentum, span_of(args.first)};
  const bool one_scale = has_one_scale(args.first);
  with_storage(args.gradient_storage, [&](auto gradient) {
    using Gradient = decltype(gradient);
    if (one_scale)
      gpu::launch(measure_kernel<Gradient>,
                  {.grid = walking_grid(args.count, threads), .block = threads, .stream = args.stream},
                  update);
    with_storage(args.direction_storage, [&](auto direction) {
      gpu::launch(momentum_kernel<Gradient, decltype(direction)>,
                  {.grid = walking_grid(args.count, span_warps * update.span),
                   .block = 32 * span_warps,
                   .stream = args.stream},
                  update);
    });
  });
  if (one_scale)
    gpu::launch(store_inverse, {.grid = 1, .block = 1, .stream = args.stream}, args.first, args.control,
                static_cast<const uint32_t*>(args.amax));
}

void normalize(const NormalizeArguments& args) {
  if (args.count <= 0) return;
  with_storage(args.storage, [&](auto type) {
    using T = decltype(type);
    gpu::launch(in_vectors(args.count, args.x) ? normalize_kernel<T, true> : normalize_kernel<T, false>,
                {.grid = grid_for(args.count), .block = threads, .stream = args.stream}, args);
  });
}

void weighted_sum(const WeightedSumArguments& args) {
  if (args.count <= 0) return;
  with_storage(args.storage, [&](auto type) {
    using T = decltype(type);
    gpu::launch(in_vectors(args.count, args.x, args.y, static_cast<const void*>(args.out))
                    ? sum_kernel<T, true>
                    : sum_kernel<T, false>,
                {.grid = grid_for(args.count), .block = threads, .stream = args.stream}, args);
  });
}

void muon_update(const MuonUpdateArguments& args) {
  if (args.count <= 0) return;
  const bool vectors = is_aligned16(args.master) && is_aligned16(args.direction);
  with_storage(args.direction_storage, [&](auto type) {
    using T = decltype(type);
    gpu::launch(
        vectors ? update_kernel<T, true> : update_kernel<T, false>,
        {.grid = walking_grid(args.count, warps * usual_block), .block = threads, .stream = args.stream},
        args);
  });
  if (args.master_amax)
    measure_unchanged({args.master, args.count, args.control, args.master_amax, args.stream});
}

OCTET_KERNELS_END
