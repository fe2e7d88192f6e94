// From a matrix to the scales of its codes [cast.h]: amaxes in one pass, then one scale a tensor or one a row
// and column. encode.cu makes the codes.
//
//   measure   value[r, c] = source[r, c] * column_factor[c];  amaxes of BF16(value);  high = value
//
// Bytes: 2 (BF16) or 4 (FP32) a value read, and as many written where a high copy is wanted; floor
// bytes / bandwidth, bound by memory. The other kernels touch a few numbers a row or a column and are bound
// by their launch.
#include "kernels/cast.h"

#include "kernels/block.h"
#include "kernels/encode.cuh"
#include "kernels/gpu.h"
#include "kernels/grid.h"
#include "kernels/output.cuh"
#include "numerics/scaling.h"
#include "numerics/smooth_quant.h"

OCTET_KERNELS_BEGIN
namespace {

constexpr unsigned warps = 8, threads = 32 * warps;
constexpr int64_t warp_values = 32 * vector_values;
constexpr int steps_ahead = 2;  // loads issued before the first is used

struct Shape {
  Access access;
  size_t column_bytes;
};

template <class T>
__global__ void __launch_bounds__(threads) measure_kernel(CastSource source, Output wanted, Shape shape) {
  GPU_DYNAMIC_SHARED(uint32_t, columns);
  OutputWriter out(wanted, source.columns, shape.column_bytes ? columns : nullptr);
  const int64_t width = source.columns;
  for (int64_t row = first_row(); row < source.rows; row += rows_apart()) {
    const T* const values = static_cast<const T*>(source.values) + row * width;
    for (int64_t begin = vector_values * lane_in_warp(); begin < width; begin += steps_ahead * warp_values) {
      float v[steps_ahead][8];
#pragma unroll
      for (int step = 0; step < steps_ahead; ++step) {
        const int64_t c = begin + step * warp_values;
        if (c < width) load_up_to8(shape.access, values + c, width - c, v[step]);
      }
#pragma unroll
      for (int step = 0; step < steps_ahead; ++step) {
        const int64_t c = begin + step * warp_values;
        if (c >= width) continue;
        if (source.column_factor) {
          float factors[8];
          load_up_to8(shape.access, source.column_factor + c, width - c, factors);
#pragma unroll
          for (int i = 0; i < 8; ++i) v[step][i] *= factors[i];
        }
        out.write({row, c, width - c, shape.access}, v[step]);
      }
    }
    out.end_row(row);
  }
  out.finish();
}

// Rounding is monotonic, so the largest rounded product is the rounded product of the largest.
__global__ void __launch_bounds__(threads) measure_factored_kernel(MeasureFactoredArguments args) {
  uint32_t largest = 0;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t r = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; r < args.rows; r += stride) {
    const uint32_t amax = args.row_amax[r] < infinity_bits ? args.row_amax[r] : infinity_bits;
    const float factor = __uint_as_float(__float_as_uint(args.row_factor[r]) & 0x7fffffffu);
    const float product = round_to_bfloat16(__uint_as_float(amax) * factor);
    largest = larger_of(largest, __float_as_uint(product) & 0x7fffffffu);
  }
  const float of_block = block_max_magnitude(__uint_as_float(largest));
  if (threadIdx.x == 0) raise_amax(reinterpret_cast<float*>(args.factored), of_block);
}

__global__ void decide_kernel(DecideArguments args) {
  const uint32_t bits = *args.amax < infinity_bits ? *args.amax : infinity_bits;
  const float amax = __uint_as_float(bits);
  if (args.site_amax && *args.site_amax < amax) *args.site_amax = amax;
  if (args.only_record) return;
  const bool history = is_known_before(args.cast.scaling) && args.site_scale && *args.site_scale != 0.0f;
  const float scale = history ? *args.site_scale : scale_for(args.cast.rule, amax, max_of(args.cast.format));
  if (args.cast.scaling == octet::Scaling::Current && args.site_scale) *args.site_scale = scale;
  if (args.site_inverse_scale) *args.site_inverse_scale = inverse_or_nan(scale, bits);
  *args.scale = scale;
  if (args.encode) *args.encode = history ? 0 : 1;
}

__global__ void __launch_bounds__(threads) decide_fine_kernel(DecideFineArguments args) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < args.count; i += stride) {
    const uint32_t bits = args.amax[i] < infinity_bits ? args.amax[i] : infinity_bits;
    const float scale = fine_scale(args.cast, __uint_as_float(bits));
    args.inverse_scale[i] = inverse_or_nan(scale, bits);
  }
}

// One block, because S is of all columns, of which a model has some ten thousand.
constexpr unsigned smoothing_threads = 512;
__global__ void __launch_bounds__(smoothing_threads) decide_smooth_kernel(DecideSmoothArguments args) {
  const auto amax_of = [&](int64_t i) {
    return __uint_as_float(args.amax[i] < infinity_bits ? args.amax[i] : infinity_bits);
  };
  float largest = 0;
  for (int64_t i = threadIdx.x; i < args.count; i += blockDim.x)
    largest = max_magnitude(largest, smoothed_amax(amax_of(i), args.weight_amax[i], args.alpha));
  const float scale = power_of_two_scale(block_max_magnitude(largest), max_of(args.format));
  for (int64_t i = threadIdx.x; i < args.count; i += blockDim.x)
    args.inverse_scale[i] = smoothed_inverse_scale(amax_of(i), args.weight_amax[i], args.alpha, scale);
}

}  // namespace

void measure(const MeasureArguments& args) {
  const CastSource& source = args.source;
  if (source.rows <= 0 || source.columns <= 0) return;
  Output wanted;
  wanted.high = args.high;
  wanted.storage = args.high_storage;
  wanted.amax = args.amax;
  wanted.row_amax = args.row_amax;
  wanted.column_amax = args.column_amax;
  const RowGrid rows = row_grid(wanted, source.rows, source.columns, warps);
  const Shape shape{in_vectors(source.columns, source.values, source.column_factor, args.high)
                        ? Access::Vectors
                        : Access::Single,
                    rows.column_bytes};
  with_storage(source.storage, [&](auto storage) {
    launch_rows(
        measure_kernel<decltype(storage)>, rows,
        {.grid = rows.needed, .block = threads, .shared_bytes = rows.shared_bytes(), .stream = args.stream},
        source, wanted, shape);
  });
}

void measure_factored(const MeasureFactoredArguments& args) {
  if (args.rows <= 0) return;
  gpu::launch(measure_factored_kernel,
              {.grid = walking_grid(args.rows, threads), .block = threads, .stream = args.stream}, args);
}

void decide(const DecideArguments& args) {
  gpu::launch(decide_kernel, {.grid = 1, .block = 1, .stream = args.stream}, args);
}

void decide_smooth(const DecideSmoothArguments& args) {
  if (args.count <= 0) return;
  gpu::launch(decide_smooth_kernel, {.grid = 1, .block = smoothing_threads, .stream = args.stream}, args);
}

void decide_fine(const DecideFineArguments& args) {
  if (args.count <= 0) return;
  gpu::launch(decide_fine_kernel,
              {.grid = walking_grid(args.count, threads), .block = threads, .stream = args.stream}, args);
}

OCTET_KERNELS_END
