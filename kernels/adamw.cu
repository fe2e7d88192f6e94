// AdamW on FP32 masters, moments in FP32, BF16 or FP8 with one exact scale a block or a tensor.
//
//   g = scale * gradient;  m = beta1 m + (1 - beta1) g;  v = beta2 v + (1 - beta2) g^2
//   w = w - (decay w + rate m / (sqrt(v) + epsilon))
//
// Reads and writes w and both moments, reads the gradient, once: 8 + 4 (gradient FP32; BF16: 2) + 2 bytes a
// stored moment's byte, so 16.1 a weight with FP8 moments and FP32 gradients. Bound by memory: floor 16.1 n /
// bandwidth. One scale a tensor (block 0) is known only after all of it: a first pass reads the gradient and
// the moments too.
#include "kernels/adamw.h"

#include <numeric>
#include <string>

#include "kernels/block.h"
#include "kernels/gpu.h"
#include "kernels/grid.h"
#include "kernels/instructions.h"
#include "kernels/values.cuh"
#include "numerics/bfloat16.h"
#include "numerics/moments.h"

OCTET_KERNELS_BEGIN
namespace {

constexpr unsigned threads = 256, warps = threads / 32;
constexpr int own = 4;                        // neighbours a thread has: 16 bytes of FP32, 4 of codes
constexpr int usual_block = 32 * own;         // a warp's: the blocks of the recipes, in one pass in registers
constexpr int64_t blocks_per_processor = 20;  // five are resident at 48 registers: four even waves (estimate)
constexpr int64_t largest_span = 1024;        // of other blocks: in shared memory

struct Rule {
  float beta1, rest1, beta2, rest2, decay, rate, epsilon;
};
struct Update {
  float* master;
  const void* gradient;
  MomentArguments first, second;
  int64_t count;
  Rule rule;
  const Control* control;
  uint32_t* amaxes;
  uint32_t* master_amax;
  int64_t span;  // whole blocks of both moments
};

__host__ __device__ __forceinline__ bool is_coded(const MomentArguments& moment) {
  return moment.format == octet::Format::E4M3 || moment.format == octet::Format::E5M2;
}
__host__ __device__ __forceinline__ bool has_one_scale(const MomentArguments& moment) {
  return is_coded(moment) && moment.block == 0;
}
__host__ __device__ __forceinline__ bool has_block_scales(const MomentArguments& moment) {
  return is_coded(moment) && moment.block != 0;
}
__device__ __forceinline__ const uint32_t* second_amax(const Update& update) {
  return update.amaxes ? update.amaxes + 1 : nullptr;
}
__device__ __forceinline__ uint32_t magnitude(float x) { return __float_as_uint(x) & 0x7fffffffu; }

// ---- four neighbours of a thread, from i on; n of them are there (vectors: all four, and aligned)

template <class T>
__device__ __forceinline__ void load_singles(const T* from, int n, float (&v)[own]) {
#pragma unroll
  for (int j = 0; j < own; ++j) v[j] = j < n ? octet::load(from[j]) : 0.0f;
}
template <class T>
__device__ __forceinline__ void store_singles(T* to, int n, const float (&v)[own]) {
#pragma unroll
  for (int j = 0; j < own; ++j) {
    if (j < n) octet::store(to + j, v[j]);
  }
}
__device__ __forceinline__ void load4(Access access, const float* from, int n, float (&v)[own]) {
  if (access == Access::Single) return load_singles(from, n, v);
  const float4 four = gpu::load_streaming(reinterpret_cast<const float4*>(from));
  v[0] = four.x, v[1] = four.y, v[2] = four.z, v[3] = four.w;
}
__device__ __forceinline__ void load4(Access access, const BFloat16* from, int n, float (&v)[own]) {
  if (access == Access::Single) return load_singles(from, n, v);
  const uint2 pairs = gpu::load_streaming(reinterpret_cast<const uint2*>(from));
  const float2 low = unpack_bfloat16x2(pairs.x), high = unpack_bfloat16x2(pairs.y);
  v[0] = low.x, v[1] = low.y, v[2] = high.x, v[3] = high.y;
}
__device__ __forceinline__ void store4(Access access, float* to, int n, const float (&v)[own]) {
  if (access == Access::Single) return store_singles(to, n, v);
  gpu::store_streaming(reinterpret_cast<float4*>(to), make_float4(v[0], v[1], v[2], v[3]));
}
__device__ __forceinline__ void store4(Access access, BFloat16* to, int n, const float (&v)[own]) {
  if (access == Access::Single) return store_singles(to, n, v);
  gpu::store_streaming(reinterpret_cast<uint2*>(to),
                       make_uint2(pack_bfloat16x2(v[0], v[1]), pack_bfloat16x2(v[2], v[3])));
}
__device__ __forceinline__ uint32_t load_codes(Access access, const uint8_t* from, int n) {
  if (access == Access::Vectors) return gpu::load_streaming(reinterpret_cast<const uint32_t*>(from));
  uint32_t codes = 0;
#pragma unroll
  for (int j = 0; j < own; ++j) codes |= j < n ? static_cast<uint32_t>(from[j]) << (8 * j) : 0u;
  return codes;
}
__device__ __forceinline__ void store_codes(Access access, uint8_t* to, int n, uint32_t codes) {
  if (access == Access::Vectors) return gpu::store_streaming(reinterpret_cast<uint32_t*>(to), codes);
#pragma unroll
  for (int j = 0; j < own; ++j) {
    if (j < n) to[j] = plain::code_of(codes, j);
  }
}

__device__ __forceinline__ void load_moment(const MomentArguments& moment, Access access, int64_t i, int n,
                                            float (&v)[own]) {
  if (moment.format == octet::Format::FP32) {
    load4(access, static_cast<const float*>(moment.values) + i, n, v);
  } else if (moment.format == octet::Format::BF16) {
    load4(access, static_cast<const BFloat16*>(moment.values) + i, n, v);
  } else {
    const float inverse = n > 0 ? moment.inverse[moment.block ? i / usual_block : 0] : 1.0f;
    const float4 four =
        decode_x4(moment.format, load_codes(access, static_cast<const uint8_t*>(moment.values) + i, n));
    v[0] = four.x * inverse, v[1] = four.y * inverse, v[2] = four.z * inverse, v[3] = four.w * inverse;
  }
}

// A positive second moment never becomes zero [numerics/moments.h].
__device__ __forceinline__ uint32_t encode4(octet::Format format, Moment order, const float (&v)[own],
                                            float scale) {
  const uint32_t codes =
      encode_x4(format, make_float4(v[0] * scale, v[1] * scale, v[2] * scale, v[3] * scale));
  if (order == Moment::First) return codes;
  uint32_t floors = 0;
#pragma unroll
  for (int j = 0; j < own; ++j) floors |= (v[j] > 0.0f && plain::code_of(codes, j) == 0 ? 1u : 0u) << (8 * j);
  return codes | floors;
}

// Called by whole warps; `shared`: the largest magnitude of the tensor, when that decides.
__device__ __forceinline__ void store_moment(const MomentArguments& moment, Moment order, Access access,
                                             int64_t i, int n, const float (&v)[own],
                                             const uint32_t* shared) {
  if (moment.format == octet::Format::FP32) {
    store4(access, static_cast<float*>(moment.values) + i, n, v);
    return;
  }
  if (moment.format == octet::Format::BF16) {
    store4(access, static_cast<BFloat16*>(moment.values) + i, n, v);
    return;
  }
  uint32_t largest = 0;
  if (moment.block == 0) {
    largest = *shared;
  } else {
#pragma unroll
    for (int j = 0; j < own; ++j) largest = j < n && magnitude(v[j]) > largest ? magnitude(v[j]) : largest;
    largest = __reduce_max_sync(all_lanes, largest);
  }
  const MomentScale scale = moment_scale(moment.format, __uint_as_float(largest));
  if (moment.block != 0 && threadIdx.x % 32 == 0) moment.inverse[i / usual_block] = scale.inverse;
  store_codes(access, static_cast<uint8_t*>(moment.values) + i, n,
              encode4(moment.format, order, v, scale.scale));
}

// ---- the equations

__device__ __forceinline__ void advance(const Rule& rule, float g, float& m, float& v) {
  m = rule.beta1 * m + rule.rest1 * g;
  v = rule.beta2 * v + rule.rest2 * (g * g);
}
__device__ __forceinline__ float updated(const Rule& rule, float w, float m, float v) {
  return w - (rule.decay * w + rule.rate * (m / (sqrtf(v) + rule.epsilon)));
}

// The largest magnitude of masters, of all threads of a block. Rounding keeps the order, so that the largest
// is rounded instead of each.
__device__ __forceinline__ void raise_master_amax(const Update& update, uint32_t largest) {
  const float amax = block_max_magnitude(__uint_as_float(largest));
  if (threadIdx.x == 0) raise_amax(reinterpret_cast<float*>(update.master_amax), round_to_bfloat16(amax));
}
__device__ __forceinline__ uint32_t larger(uint32_t largest, float w) {
  return magnitude(w) > largest ? magnitude(w) : largest;
}

// Moments after this step, of the four neighbours from i on.
template <class Gradient>
__device__ __forceinline__ void advance4(const Update& update, float scale, Access access, int64_t i, int n,
                                         float (&m)[own], float (&v)[own]) {
  float gradient[own];
  load4(access, static_cast<const Gradient*>(update.gradient) + i, n, gradient);
  load_moment(update.first, access, i, n, m);
  load_moment(update.second, access, i, n, v);
#pragma unroll
  for (int j = 0; j < own; ++j) advance(update.rule, scale * gradient[j], m[j], v[j]);
}

// ---- blocks of 128, or none, or one a tensor: 128 weights a warp

// Where a thread's neighbours are.
struct Place {
  int64_t i;
  int n;
  Access access;
};
template <bool vectors>
__device__ __forceinline__ Place place_of(int64_t begin, int64_t count) {
  const int64_t i = begin + own * static_cast<int64_t>(threadIdx.x % 32), left = count - i;
  const int n = static_cast<int>(left < 0 ? 0 : left < own ? left : own);
  return {n ? i : begin, n, vectors && n == own ? Access::Vectors : Access::Single};
}

template <class Gradient, bool vectors>
__global__ void __launch_bounds__(threads) update_kernel(Update update) {
  if (update.control->apply == 0) return;
  const float scale = update.control->scale;
  uint32_t largest = 0;
  for (int64_t begin = usual_block * (static_cast<int64_t>(blockIdx.x) * warps + threadIdx.x / 32);
       begin < update.count; begin += usual_block * static_cast<int64_t>(gridDim.x) * warps) {
    const Place at = place_of<vectors>(begin, update.count);
    float w[own], m[own], v[own];
    load4(at.access, update.master + at.i, at.n, w);
    advance4<Gradient>(update, scale, at.access, at.i, at.n, m, v);
#pragma unroll
    for (int j = 0; j < own; ++j) w[j] = updated(update.rule, w[j], m[j], v[j]);
#pragma unroll
    for (int j = 0; j < own; ++j) largest = j < at.n ? larger(largest, w[j]) : largest;
    store4(at.access, update.master + at.i, at.n, w);
    __syncwarp();  // all lanes have read the block's scales before one writes them
    store_moment(update.first, Moment::First, at.access, at.i, at.n, m, update.amaxes);
    store_moment(update.second, Moment::Second, at.access, at.i, at.n, v, second_amax(update));
  }
  if (update.master_amax) raise_master_amax(update, largest);
}

// Where nothing changes the masters' amax is wanted all the same.
__global__ void __launch_bounds__(threads) measure_masters(Update update) {
  if (update.control->apply != 0) return;
  uint32_t largest = 0;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * threads;
#pragma unroll 4
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * threads + threadIdx.x; i < update.count; i += stride)
    largest = larger(largest, update.master[i]);
  raise_master_amax(update, largest);
}

// ---- one scale a tensor

// One weight's moment, whatever the blocks.
__device__ __forceinline__ float load_one(const MomentArguments& moment, int64_t i) {
  if (moment.format == octet::Format::FP32) return static_cast<const float*>(moment.values)[i];
  if (moment.format == octet::Format::BF16) return to_float(static_cast<const BFloat16*>(moment.values)[i]);
  return decode_moment(moment.format, static_cast<const uint8_t*>(moment.values)[i],
                       moment.inverse[moment.block ? i / moment.block : 0]);
}

template <class Gradient>
__global__ void __launch_bounds__(threads) measure_kernel(Update update) {
  if (update.control->apply == 0) return;
  const float scale = update.control->scale;
  float first = 0.0f, second = 0.0f;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * threads;
#pragma unroll 4
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * threads + threadIdx.x; i < update.count; i += stride) {
    float m = load_one(update.first, i), v = load_one(update.second, i);
    advance(update.rule, scale * octet::load(static_cast<const Gradient*>(update.gradient)[i]), m, v);
    first = max_magnitude(first, m);
    second = max_magnitude(second, v);
  }
  first = block_max_magnitude(first);
  second = block_max_magnitude(second);
  if (threadIdx.x != 0) return;
  raise_amax(reinterpret_cast<float*>(update.amaxes), first);
  raise_amax(reinterpret_cast<float*>(update.amaxes + 1), second);
}

// After everything has read the old ones.
__global__ void store_inverses(Update update) {
  if (update.control->apply == 0) return;
  const MomentArguments* const moments[2] = {&update.first, &update.second};
  for (int k = 0; k < 2; ++k) {
    if (has_one_scale(*moments[k]))
      *moments[k]->inverse = moment_scale(moments[k]->format, __uint_as_float(update.amaxes[k])).inverse;
  }
}

// ---- any blocks: a warp a span of whole blocks of both moments, which waits in shared memory for its scales

constexpr unsigned span_warps = 4;
using Span = float[largest_span];

// Weights [begin, begin + n); by one warp.
__device__ __forceinline__ void store_span(const MomentArguments& moment, Moment order, int64_t begin,
                                           int64_t n, const Span& values, const uint32_t* shared) {
  const int64_t lane = threadIdx.x % 32;
  if (!is_coded(moment)) {
    for (int64_t k = lane; k < n; k += 32) {
      if (moment.format == octet::Format::FP32) {
        static_cast<float*>(moment.values)[begin + k] = values[k];
      } else {
        static_cast<BFloat16*>(moment.values)[begin + k] = to_bfloat16(values[k]);
      }
    }
    return;
  }
  const int64_t block = moment.block ? moment.block : n;
  for (int64_t start = 0; start < n; start += block) {
    const int64_t end = start + block < n ? start + block : n;
    uint32_t largest = 0;
    if (moment.block == 0) {
      largest = *shared;
    } else {
      for (int64_t k = start + lane; k < end; k += 32)
        largest = magnitude(values[k]) > largest ? magnitude(values[k]) : largest;
      largest = __reduce_max_sync(all_lanes, largest);
    }
    const MomentScale scale = moment_scale(moment.format, __uint_as_float(largest));
    if (moment.block != 0 && lane == 0) moment.inverse[(begin + start) / block] = scale.inverse;
    for (int64_t k = start + lane; k < end; k += 32) {
      static_cast<uint8_t*>(moment.values)[begin + k] =
          encode_moment(moment.format, order, values[k], scale.scale);
    }
  }
}

template <class Gradient>
__global__ void __launch_bounds__(32 * span_warps) update_spans(Update update) {
  GPU_SHARED(Span, firsts, span_warps);
  GPU_SHARED(Span, seconds, span_warps);
  if (update.control->apply == 0) return;
  const float scale = update.control->scale;
  Span& first = firsts[threadIdx.x / 32];
  Span& second = seconds[threadIdx.x / 32];
  uint32_t largest = 0;
  for (int64_t begin = update.span * (static_cast<int64_t>(blockIdx.x) * span_warps + threadIdx.x / 32);
       begin < update.count; begin += update.span * static_cast<int64_t>(gridDim.x) * span_warps) {
    const int64_t left = update.count - begin, n = left < update.span ? left : update.span;
    for (int64_t k = threadIdx.x % 32; k < n; k += 32) {
      const int64_t i = begin + k;
      float m = load_one(update.first, i), v = load_one(update.second, i);
      advance(update.rule, scale * octet::load(static_cast<const Gradient*>(update.gradient)[i]), m, v);
      const float w = updated(update.rule, update.master[i], m, v);
      update.master[i] = w;
      largest = larger(largest, w);
      first[k] = m;
      second[k] = v;
    }
    __syncwarp();
    store_span(update.first, Moment::First, begin, n, first, update.amaxes);
    store_span(update.second, Moment::Second, begin, n, second, second_amax(update));
    __syncwarp();  // the next span may overwrite
  }
  if (update.master_amax) raise_master_amax(update, largest);
}

// ---- host side

int64_t span_of(const AdamWArguments& args) {
  int64_t span = 1;
  for (const MomentArguments* moment : {&args.first, &args.second}) {
    if (!has_block_scales(*moment)) continue;
    span = moment->block > 0 ? std::lcm(span, static_cast<int64_t>(moment->block)) : largest_span + 1;
    if (span > largest_span) {
      throw gpu::LaunchError("adamw: moment blocks of " + std::to_string(args.first.block) + " and " +
                             std::to_string(args.second.block) + " weights; at most " +
                             std::to_string(largest_span) + " together");
    }
  }
  return largest_span / span * span;
}
bool has_usual_blocks(const MomentArguments& moment) {
  return !has_block_scales(moment) || moment.block == usual_block;
}

}  // namespace

void adamw(const AdamWArguments& args) {
  if (args.count <= 0) return;
  const Update update{.master = args.master,
                      .gradient = args.gradient,
                      .first = args.first,
                      .second = args.second,
                      .count = args.count,
                      .rule = {.beta1 = args.beta1,
                               .rest1 = 1.0f - args.beta1,
                               .beta2 = args.beta2,
                               .rest2 = 1.0f - args.beta2,
                               .decay = args.decay,
                               .rate = args.rate,
                               .epsilon = args.epsilon},
                      .control = args.control,
                      .amaxes = args.amaxes,
                      .master_amax = args.master_amax,
                      .span = span_of(args)};
  const bool vectors = is_aligned16(args.master) && is_aligned16(args.gradient) &&
                       is_aligned16(args.first.values) && is_aligned16(args.second.values);
  const bool one_scale = has_one_scale(args.first) || has_one_scale(args.second);
  const gpu::Launch walk{.grid = walking_grid(args.count, warps * usual_block, blocks_per_processor),
                         .block = threads,
                         .stream = args.stream};
  with_storage(args.gradient_storage, [&](auto type) {
    using Gradient = decltype(type);
    if (one_scale) gpu::launch(measure_kernel<Gradient>, walk, update);
    if (has_usual_blocks(args.first) && has_usual_blocks(args.second)) {
      gpu::launch(vectors ? update_kernel<Gradient, true> : update_kernel<Gradient, false>, walk, update);
    } else {
      gpu::launch(update_spans<Gradient>,
                  {.grid = walking_grid(args.count, span_warps * update.span),
                   .block = 32 * span_warps,
                   .stream = args.stream},
                  update);
    }
  });
  if (args.master_amax) gpu::launch(measure_masters, walk, update);
  if (one_scale) gpu::launch(store_inverses, {.grid = 1, .block = 1, .stream = args.stream}, update);
}

OCTET_KERNELS_END
