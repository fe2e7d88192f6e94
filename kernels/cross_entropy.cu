// Softmax cross-entropy with z-loss, in place; a block a row x of V logits.
//
//   m = max x;  sum = sum_v e^(x_v - m), FP32 in chunks of 512, FP64 between them
//   loss = log(sum) + (m - x_target);  lse = m + log(sum);  weight = (1 + 2 z_loss lse) gradient_scale
//   x_v = weight / sum * e^(x_v - m), at the target weight * e^-loss - gradient_scale
//
// Three walks over the row: the first reads it from memory, the others mostly from the L2 cache; the third
// writes it. 2 (BF16) or 4 bytes read and as many written a logit: floor 4 T V / bandwidth in BF16. Two e^x a
// logit, 33 instructions each without fused multiply-adds (the CPU's bits), should bind it on an H200: about
// 75 T V instructions (an estimate).
#include "kernels/cross_entropy.h"

#include "kernels/block.h"
#include "kernels/gpu.h"
#include "kernels/values.cuh"
#include "numerics/elementary.h"
#include "numerics/sums.h"

OCTET_KERNELS_BEGIN
namespace {

// Two blocks and more a multiprocessor: one computes while another's first thread adds up.
constexpr unsigned threads_of_wide_rows = 512, threads_of_narrow_rows = 256;
constexpr int64_t wide_row = 1 << 14;
constexpr int64_t wave = 1024;  // chunks whose sums are in shared memory at a time
static_assert(cross_entropy_chunk == 2 * sum_lanes, "a warp sums a chunk in two loads a thread");
static_assert(sum_lanes == 32 * vector_values, "eight neighbours a thread are a warp's lanes");

struct Rows {
  void* logits;
  const int32_t* targets;
  float* loss;
  int64_t vocabulary;
  float gradient_scale, z_loss;
  bool backward;
  uint32_t* bad_target;
};

// The values of a row from i on, for one thread: up to eight.
template <bool vectors, class T>
__device__ __forceinline__ int load_logits(const T* x, int64_t i, int64_t n, float (&v)[8]) {
  const int64_t left = n - i;
  if (vectors) {  // rows are whole vectors
    if (left <= 0) return 0;
    load8(x + i, v);
    return vector_values;
  }
  load_some(x + i, left, v);
  return static_cast<int>(left < 0 ? 0 : left < vector_values ? left : vector_values);
}

// NaN is not larger than anything: it shows in the sum.
__device__ __forceinline__ float larger(float a, float b) { return b > a ? b : a; }

template <bool vectors, class T>
__device__ __forceinline__ float largest_logit(const T* x, int64_t n) {
  GPU_SHARED(float, of_warps, 32);
  float m = -INFINITY;
#pragma unroll 4
  for (int64_t i = vector_values * static_cast<int64_t>(threadIdx.x); i < n;
       i += vector_values * blockDim.x) {
    float v[8];
    const int count = load_logits<vectors>(x, i, n, v);
#pragma unroll
    for (int j = 0; j < 8; ++j) m = j < count ? larger(m, v[j]) : m;
  }
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) m = larger(m, __shfl_xor_sync(all_lanes, m, distance));
  if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = m;
  __syncthreads();
  m = of_warps[0];
  for (unsigned warp = 1; warp < blockDim.x / 32; ++warp) m = larger(m, of_warps[warp]);
  return m;
}

// By one warp, which gets it in all threads.
template <bool vectors, class T>
__device__ __forceinline__ float chunk_sum(const T* x, int64_t n, float m) {
  const int64_t i = vector_values * static_cast<int64_t>(threadIdx.x % 32);
  float first[8], second[8], lanes[8];
  const int firsts = load_logits<vectors>(x, i, n, first);
  const int seconds = load_logits<vectors>(x, i + sum_lanes, n, second);
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    lanes[j] = j < firsts ? vector_exp(first[j] - m) : 0.0f;
    if (j < seconds) lanes[j] += vector_exp(second[j] - m);
  }
  return sum_of_lanes(lanes);
}

// Thread 0 gets it.
template <bool vectors, class T>
__device__ __forceinline__ double exponential_sum(const T* x, int64_t n, float m) {
  GPU_SHARED(float, sums, wave);
  const int64_t chunks = (n + cross_entropy_chunk - 1) / cross_entropy_chunk;
  double total = 0;
  for (int64_t begin = 0; begin < chunks; begin += wave) {
    const int64_t end = begin + wave < chunks ? begin + wave : chunks;
    for (int64_t chunk = begin + threadIdx.x / 32; chunk < end; chunk += blockDim.x / 32) {
      const int64_t start = chunk * cross_entropy_chunk, left = n - start;
      const float sum =
          chunk_sum<vectors>(x + start, left < cross_entropy_chunk ? left : cross_entropy_chunk, m);
      if (threadIdx.x % 32 == 0) sums[chunk - begin] = sum;
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      for (int64_t chunk = begin; chunk < end; ++chunk) total += static_cast<double>(sums[chunk - begin]);
    }
    __syncthreads();  // the next wave may overwrite
  }
  return total;
}

struct Gradient {
  float factor, at_target;
};

template <bool vectors, class T>
__device__ __forceinline__ void write_gradient(T* x, int64_t n, float m, float factor) {
#pragma unroll 2
  for (int64_t i = vector_values * static_cast<int64_t>(threadIdx.x); i < n;
       i += vector_values * blockDim.x) {
    float v[8];
    const int count = load_logits<vectors>(x, i, n, v);
#pragma unroll
    for (int j = 0; j < 8; ++j) v[j] = factor * vector_exp(v[j] - m);
    if (vectors) {
      store8(x + i, v);
    } else {
      store_some(x + i, count, v);
    }
  }
}

template <bool vectors, class T>
__device__ __forceinline__ void clear_row(T* x, int64_t n) {
  const float zeros[8] = {};
  for (int64_t i = vector_values * static_cast<int64_t>(threadIdx.x); i < n;
       i += vector_values * blockDim.x) {
    if (vectors) {
      store8(x + i, zeros);
    } else {
      store_some(x + i, n - i, zeros);
    }
  }
}

template <class T, bool vectors>
__global__ void __launch_bounds__(threads_of_wide_rows) cross_entropy_kernel(Rows rows) {
  GPU_SHARED(Gradient, gradient, 1);
  const int64_t t = blockIdx.x, n = rows.vocabulary;
  T* const x = static_cast<T*>(rows.logits) + t * n;
  const int32_t target = rows.targets[t];
  if (target < 0) {
    if (threadIdx.x == 0) rows.loss[t] = 0.0f;
    if (rows.backward) clear_row<vectors>(x, n);
    return;
  }
  if (target >= n) {  // a loss that is not a number: the step must not be applied
    if (threadIdx.x == 0) {
      rows.loss[t] = NAN;
      if (rows.bad_target) atomicMax(rows.bad_target, static_cast<uint32_t>(t + 1));
    }
    return;
  }
  const float m = largest_logit<vectors>(x, n);
  const double sum = exponential_sum<vectors>(x, n, m);
  if (threadIdx.x == 0) {
    const double log_sum = log(sum),
                 below = static_cast<double>(m) - static_cast<double>(octet::load(x[target]));
    rows.loss[t] = static_cast<float>(log_sum + below);
    const double lse = static_cast<double>(m) + log_sum;
    const double weight =
        (1.0 + 2.0 * static_cast<double>(rows.z_loss) * lse) * static_cast<double>(rows.gradient_scale);
    gradient[0] = {
        static_cast<float>(weight / sum),
        // A difference of nearly equal numbers when the model is sure.
        static_cast<float>(weight * exp(-(log_sum + below)) - static_cast<double>(rows.gradient_scale))};
  }
  if (!rows.backward) return;
  __syncthreads();
  write_gradient<vectors>(x, n, m, gradient[0].factor);
  // After its neighbours, by the thread that wrote these.
  if (threadIdx.x == target / vector_values % blockDim.x) octet::store(x + target, gradient[0].at_target);
}

}  // namespace

void cross_entropy(const CrossEntropyArguments& args) {
  if (args.tokens <= 0 || args.vocabulary <= 0) return;
  with_storage(args.storage, [&](auto type) {
    using T = decltype(type);
    const bool vectors = in_vectors(args.vocabulary, args.logits);
    gpu::launch(vectors ? cross_entropy_kernel<T, true> : cross_entropy_kernel<T, false>,
                {.grid = static_cast<unsigned>(args.tokens),
                 .block = args.vocabulary < wide_row ? threads_of_narrow_rows : threads_of_wide_rows,
                 .stream = args.stream},
                Rows{.logits = args.logits,
                     .targets = args.targets,
                     .loss = args.loss,
                     .vocabulary = args.vocabulary,
                     .gradient_scale = args.gradient_scale,
                     .z_loss = args.z_loss,
                     .backward = args.backward,
                     .bad_target = args.bad_target});
  });
}

OCTET_KERNELS_END
