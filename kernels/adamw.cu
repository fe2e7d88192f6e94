// AdamW on masters in FP32, BF16 or FP16 (numerics/masters.h), moments in FP32, BF16, FP16 or FP8 with one
// scale a block or a tensor (numerics/moments.h).
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
#include "kernels/masters.cuh"
#include "kernels/moments.cuh"
#include "numerics/update_clipping.h"

OCTET_KERNELS_BEGIN
namespace {

constexpr unsigned threads = 256, warps = threads / 32;
constexpr int64_t blocks_per_processor = 20;  // five are resident at 48 registers: four even waves (estimate)
constexpr int64_t largest_span = 1024;        // of other blocks: in shared memory

struct Rule {
  float beta1, rest1, beta2, rest2, decay, rate, epsilon;
};
struct Update {
  MasterArguments master;
  const void* gradient;
  MomentArguments first, second;
  int64_t count;
  Rule rule;
  const Control* control;
  uint32_t* amaxes;
  uint32_t* master_amax;
  uint64_t rounding_key;
  int64_t first_element;
  const float* update_rms;
  int64_t span;  // whole blocks of both moments, and of masters
};

__device__ __forceinline__ const uint32_t* second_amax(const Update& update) {
  return update.amaxes ? update.amaxes + 1 : nullptr;
}
// ---- the equations

__device__ __forceinline__ void advance(const Rule& rule, float g, float& m, float& v) {
  m = rule.beta1 * m + rule.rest1 * g;
  v = rule.beta2 * v + rule.rest2 * (g * g);
}
// The rates of this tensor's update.
__device__ __forceinline__ Rule rule_of(const Update& update) {
  Rule rule = update.rule;
  const float clip = update.update_rms ? update_clip(*update.update_rms) : 1.0f;
  rule.decay *= clip;
  rule.rate *= clip;
  return rule;
}
__device__ __forceinline__ float updated(const Rule& rule, float w, float m, float v) {
  return w - (rule.decay * w + rule.rate * (m / (sqrtf(v) + rule.epsilon)));
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

template <class Gradient, bool vectors>
__global__ void __launch_bounds__(threads) update_kernel(Update update) {
  if (update.control->apply == 0) return;
  const float scale = update.control->scale;
  const Rule rule = rule_of(update);
  const bool draws = update.master.format == octet::MasterFormat::BF16Stochastic;
  uint32_t largest = 0;
  for (int64_t begin = usual_block * (static_cast<int64_t>(blockIdx.x) * warps + threadIdx.x / 32);
       begin < update.count; begin += usual_block * static_cast<int64_t>(gridDim.x) * warps) {
    const Place at = place_of<vectors>(begin, update.count);
    float w[own], m[own], v[own];
    read4(update.master, at.access, at.i, at.n, w, LoadMaster());
    advance4<Gradient>(update, scale, at.access, at.i, at.n, m, v);
#pragma unroll
    for (int j = 0; j < own; ++j) w[j] = updated(rule, w[j], m[j], v[j]);
    __syncwarp();  // all lanes have read the block's scales before one writes them
    const auto four = static_cast<uint64_t>(update.first_element + at.i) >> 2;
    store_masters(update.master, at.access, at.i, at.n, w,
                  draws ? philox(update.rounding_key, four) : Random4{});
#pragma unroll
    for (int j = 0; j < own; ++j) largest = j < at.n ? larger(largest, w[j]) : largest;
    store_moment(update.first, Moment::First, at.access, at.i, at.n, m, update.amaxes);
    store_moment(update.second, Moment::Second, at.access, at.i, at.n, v, second_amax(update));
  }
  if (update.master_amax) raise_master_amax(update.master_amax, largest);
}

// ---- one scale a tensor

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

template <class Gradient>
__global__ void __launch_bounds__(32 * span_warps) update_spans(Update update) {
  GPU_SHARED(Span, firsts, span_warps);
  GPU_SHARED(Span, seconds, span_warps);
  if (update.control->apply == 0) return;
  const float scale = update.control->scale;
  const Rule rule = rule_of(update);
  const bool draws = update.master.format == octet::MasterFormat::BF16Stochastic;
  Span& first = firsts[threadIdx.x / 32];
  Span& second = seconds[threadIdx.x / 32];
  uint32_t largest = 0;
  for (int64_t begin = update.span * (static_cast<int64_t>(blockIdx.x) * span_warps + threadIdx.x / 32);
       begin < update.count; begin += update.span * static_cast<int64_t>(gridDim.x) * span_warps) {
    const int64_t left = update.count - begin, n = left < update.span ? left : update.span;
    for (int64_t block = 0; block < n; block += usual_block) {
      float w[own] = {};
#pragma unroll
      for (int j = 0; j < own; ++j) {
        const int64_t k = block + 32 * j + threadIdx.x % 32, i = begin + k;
        if (k >= n) continue;
        float m = load_one(update.first, i), v = load_one(update.second, i);
        advance(update.rule, scale * octet::load(static_cast<const Gradient*>(update.gradient)[i]), m, v);
        w[j] = updated(rule, load_one(update.master, i), m, v);
        first[k] = m;
        second[k] = v;
      }
      __syncwarp();  // all lanes have read the block's scale before one writes it
      const float master_scale = scale_masters(update.master, (begin + block) / usual_block, w);
#pragma unroll
      for (int j = 0; j < own; ++j) {
        const int64_t k = block + 32 * j + threadIdx.x % 32, i = begin + k;
        if (k >= n) continue;
        const uint32_t random =
            draws ? random_bits(update.rounding_key, static_cast<uint64_t>(update.first_element + i)) : 0u;
        largest = larger(largest, store_one(update.master, i, w[j], master_scale, random));
      }
    }
    __syncwarp();
    store_span(update.first, Moment::First, begin, n, first, update.amaxes);
    store_span(update.second, Moment::Second, begin, n, second, second_amax(update));
    __syncwarp();  // the next span may overwrite
  }
  if (update.master_amax) raise_master_amax(update.master_amax, largest);
}

// ---- host side

int64_t span_of(const AdamWArguments& args) {
  int64_t span = args.master.inverse ? usual_block : 1;
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
                      .rounding_key = args.rounding_key,
                      .first_element = args.first_element,
                      .update_rms = args.update_rms,
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
  if (args.master_amax)
    measure_unchanged({args.master, args.count, args.control, args.master_amax, args.stream});
  if (one_scale) gpu::launch(store_inverses, {.grid = 1, .block = 1, .stream = args.stream}, update);
}

OCTET_KERNELS_END
