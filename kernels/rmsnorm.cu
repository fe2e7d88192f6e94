// RMSNorm with the residual add in front of it, the norm or scale of the branch in front of that, and its
// backward. [Zhang & Sennrich 1910.07467]
//
//   forward   b = branch, branch * branch_gain, or branch * (branch_rstd * branch_factor) * branch_gain
//             x = stream_factor * residual + b (rounded to storage);  rstd = 1 / sqrt(mean(x^2) + epsilon)
//             out = x * rstd * gain, or x                                                      [T, D]
//   backward  g = out_gradient * (gain * branch_factor)
//             dx = rstd * (g - x * rstd^2 * mean(g * x)) + gradient_in                         [T, D]
//             gain_gradient[d] += branch_factor * sum_t out_gradient[t, d] * (x[t, d] * rstd[t])  [D]
//             out_gradient = stream_factor * out_gradient, where that is not 1: 2 TD more          [T, D]
//
// Bytes, BF16: forward 4 TD read, 4 TD written (2 without a norm; + TD of codes): floor 8 TD / bandwidth.
// Backward 6 TD read, 2 TD written for dx and 4 TD read again for the gain's gradient, whose sums run down
// the columns: floor 12 TD / bandwidth. All bound by memory.
//
// A warp has a row, because a row is summed in 256 lanes (numerics/sums.h). What a thread needs again after
// the sum it keeps in shared memory, where no other thread looks; rows too wide for that are read twice.
#include "kernels/rmsnorm.h"

#include "kernels/gpu.h"
#include "kernels/output.cuh"
#include "numerics/sums.h"

OCTET_KERNELS_BEGIN
namespace {

constexpr unsigned warps = 4, threads = 32 * warps;
constexpr int64_t warp_values = 32 * vector_values;
static_assert(warp_values == sum_lanes,
              "a thread's eight values of each step are its eight lanes of the sum");

// Dynamic shared memory of a block: the column amaxes of its Output, then `kept` rows of T for each warp.
struct Shape {
  Access access;
  size_t column_bytes, kept_bytes;  // of a block; 0: not there
};
template <class T>
Shape shape_of(const RowGrid& rows, int64_t width, int64_t kept_rows, Access access) {
  const size_t bytes =
      warps * static_cast<size_t>(kept_rows * column_groups(width)) * vector_values * sizeof(T);
  return {access, rows.column_bytes, rows.column_bytes + bytes <= largest_dynamic_shared ? bytes : 0};
}
size_t shared_bytes(const Shape& shape) {
  const size_t bytes = shape.column_bytes + shape.kept_bytes;
  return bytes ? bytes : 16;
}
// The row number `kept` of this warp.
template <class T>
__device__ __forceinline__ T* kept_row(unsigned char* shared, const Shape& shape, int64_t width,
                                       int64_t kept) {
  return reinterpret_cast<T*>(shared + shape.column_bytes) +
         (kept * warps + threadIdx.x / 32) * column_groups(width) * vector_values;
}

__device__ __forceinline__ void add_products(float (&lanes)[8], const float (&a)[8], const float (&b)[8]) {
#pragma unroll
  for (int i = 0; i < 8; ++i) lanes[i] += a[i] * b[i];
}

__device__ __forceinline__ float rstd_of(float squares, int64_t width, float epsilon) {
  const float mean = __fdiv_rn(squares, static_cast<float>(width));
  return __fdiv_rn(1.0f, __fsqrt_rn(mean + epsilon));
}

// What happens to the branch before it is added, and whether the sum is normalised.
enum class Branch : uint8_t { AsIs, Scaled, Normalised };
enum class Sum : uint8_t { AsIs, Normalised };

template <class T, Branch branched, Sum summed>
__global__ void __launch_bounds__(threads) forward_kernel(RmsNormForwardArguments args, Shape shape) {
  GPU_DYNAMIC_SHARED(unsigned char, shared);
  OutputWriter out(args.out, args.width, shape.column_bytes ? reinterpret_cast<uint32_t*>(shared) : nullptr);
  const int64_t width = args.width;
  T* const kept = shape.kept_bytes ? kept_row<T>(shared, shape, width, 0) : nullptr;
  for (int64_t row = first_row(); row < args.tokens; row += rows_apart()) {
    const T* const residual = static_cast<const T*>(args.residual) + row * width;
    const T* const branch = args.branch ? static_cast<const T*>(args.branch) + row * width : nullptr;
    T* const sum = args.sum ? static_cast<T*>(args.sum) + row * width : nullptr;
    [[maybe_unused]] float branch_rstd = 1.0f;
    if constexpr (branched == Branch::Normalised) {
      float lanes[8] = {};
#pragma unroll 4
      for (int64_t c = vector_values * lane_in_warp(); c < width; c += warp_values) {
        float added[8];
        load_up_to8(shape.access, branch + c, width - c, added);
        if (kept) store8(kept + c, added);
        add_products(lanes, added, added);
      }
      branch_rstd = rstd_of(sum_of_lanes(lanes), width, args.epsilon);
      if (lane_in_warp() == 0) args.branch_rstd[row] = branch_rstd;
      branch_rstd *= args.branch_factor;
    }
    [[maybe_unused]] float lanes[8] = {};
#pragma unroll 4
    for (int64_t c = vector_values * lane_in_warp(); c < width; c += warp_values) {
      float x[8];
      load_up_to8(shape.access, residual + c, width - c, x);
      if (branch) {
        float added[8];
        if (branched == Branch::Normalised && kept) {
          load8(kept + c, added);
        } else {
          load_up_to8_streaming(shape.access, branch + c, width - c, added);
        }
        if constexpr (branched != Branch::AsIs) {
          float gain[8];
          load_up_to8(shape.access, args.branch_gain + c, width - c, gain);
#pragma unroll
          for (int i = 0; i < 8; ++i) {
            added[i] = added[i] * branch_rstd * gain[i];
            x[i] *= args.stream_factor;
          }
        }
#pragma unroll
        for (int i = 0; i < 8; ++i) x[i] = round_to<T>(x[i] + added[i]);
      }
      if constexpr (summed == Sum::AsIs) {
        out.write({row, c, width - c, shape.access}, x);
      } else {
        if (sum) store_up_to8(shape.access, sum + c, width - c, x);
        if (kept) store8(kept + c, x);
        add_products(lanes, x, x);
      }
    }
    if constexpr (summed == Sum::Normalised) {
      const float rstd = rstd_of(sum_of_lanes(lanes), width, args.epsilon);
      if (lane_in_warp() == 0) args.rstd[row] = rstd;
      const T* const x_row = sum ? sum : residual;
#pragma unroll 2
      for (int64_t c = vector_values * lane_in_warp(); c < width; c += warp_values) {
        float x[8], gain[8];
        if (kept) {
          load8(kept + c, x);
        } else {
          load_up_to8(shape.access, x_row + c, width - c, x);
        }
        load_up_to8(shape.access, args.gain + c, width - c, gain);
#pragma unroll
        for (int i = 0; i < 8; ++i) x[i] = x[i] * rstd * gain[i];
        out.write({row, c, width - c, shape.access}, x);
      }
    }
    out.end_row(row);
  }
  out.finish();
}

template <class T>
__global__ void __launch_bounds__(threads) backward_kernel(RmsNormBackwardArguments args, Shape shape) {
  GPU_DYNAMIC_SHARED(unsigned char, shared);
  OutputWriter out(args.out, args.width, shape.column_bytes ? reinterpret_cast<uint32_t*>(shared) : nullptr);
  const int64_t width = args.width;
  T* const kept_gradient = shape.kept_bytes ? kept_row<T>(shared, shape, width, 0) : nullptr;
  T* const kept_x = shape.kept_bytes ? kept_row<T>(shared, shape, width, 1) : nullptr;
  for (int64_t row = first_row(); row < args.tokens; row += rows_apart()) {
    const T* const out_gradient = static_cast<const T*>(args.out_gradient) + row * width;
    const T* const x_row = static_cast<const T*>(args.x) + row * width;
    // Without a gradient to add, zero times x is added: the CPU device's zero has that sign, too.
    const T* const in = args.gradient_in ? static_cast<const T*>(args.gradient_in) + row * width : nullptr;
    const float keep = in ? 1.0f : 0.0f;
    float rstd = 1.0f, shrink = 0.0f;
    if (args.rstd) {
      float lanes[8] = {};
#pragma unroll 4
      for (int64_t c = vector_values * lane_in_warp(); c < width; c += warp_values) {
        float gradient[8], x[8], gain[8];
        load_up_to8(shape.access, out_gradient + c, width - c, gradient);
        load_up_to8(shape.access, x_row + c, width - c, x);
        load_up_to8(shape.access, args.gain + c, width - c, gain);
        if (kept_x) {
          store8(kept_gradient + c, gradient);
          store8(kept_x + c, x);
        }
#pragma unroll
        for (int i = 0; i < 8; ++i) gradient[i] *= gain[i] * args.branch_factor;
        add_products(lanes, gradient, x);
      }
      rstd = args.rstd[row];
      shrink = rstd * rstd * __fdiv_rn(sum_of_lanes(lanes), static_cast<float>(width));
    }
#pragma unroll 2
    for (int64_t c = vector_values * lane_in_warp(); c < width; c += warp_values) {
      float gradient[8], x[8], gain[8], added[8];
      if (kept_x && args.rstd) {
        load8(kept_gradient + c, gradient);
        load8(kept_x + c, x);
      } else {
        load_up_to8(shape.access, out_gradient + c, width - c, gradient);
        load_up_to8(shape.access, x_row + c, width - c, x);
      }
      load_up_to8(shape.access, args.gain + c, width - c, gain);
      if (in) load_up_to8(shape.access, in + c, width - c, added);
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const float other = in ? added[i] : x[i];
        x[i] = keep * other + rstd * (gradient[i] * (gain[i] * args.branch_factor) - x[i] * shrink);
      }
      out.write({row, c, width - c, shape.access}, x);
      if (args.weighted_gradient) {
#pragma unroll
        for (int i = 0; i < 8; ++i) gradient[i] *= args.stream_factor;
        store_up_to8(shape.access, static_cast<T*>(args.weighted_gradient) + row * width + c, width - c,
                     gradient);
      }
    }
    out.end_row(row);
  }
  out.finish();
}

// partial[chunk, d] = sum over the chunk's tokens, in order, of out_gradient * (x * rstd). A thread has eight
// columns of a chunk.
template <class T>
__global__ void __launch_bounds__(threads) gain_chunks_kernel(RmsNormBackwardArguments args, Access access) {
  const int64_t width = args.width, groups = column_groups(width);
  const int64_t chunks = (args.tokens + column_chunk - 1) / column_chunk;
  const int64_t item = static_cast<int64_t>(blockIdx.x) * threads + threadIdx.x;
  if (item >= groups * chunks) return;
  const int64_t chunk = item / groups, c = item % groups * vector_values;
  const int64_t first = chunk * column_chunk,
                end = first + column_chunk < args.tokens ? first + column_chunk : args.tokens;
  float sums[8] = {};
#pragma unroll 4
  for (int64_t t = first; t < end; ++t) {
    float gradient[8], x[8];
    load_up_to8(access, static_cast<const T*>(args.out_gradient) + t * width + c, width - c, gradient);
    load_up_to8(access, static_cast<const T*>(args.x) + t * width + c, width - c, x);
    const float rstd = args.rstd ? args.rstd[t] : 1.0f;
#pragma unroll
    for (int i = 0; i < 8; ++i) sums[i] += gradient[i] * (x[i] * rstd);
  }
  store_up_to8(access, args.partial + chunk * width + c, width - c, sums);
}

// gain_gradient[d] += the chunks' sums, added in order.
__global__ void __launch_bounds__(threads) gain_kernel(RmsNormBackwardArguments args) {
  const int64_t d = static_cast<int64_t>(blockIdx.x) * threads + threadIdx.x;
  if (d >= args.width) return;
  const int64_t chunks = (args.tokens + column_chunk - 1) / column_chunk;
  float total = 0.0f;
#pragma unroll 16
  for (int64_t chunk = 0; chunk < chunks; ++chunk) total += args.partial[chunk * args.width + d];
  total *= args.branch_factor;
  if (args.gain_gradient_storage == octet::Format::FP32) {
    static_cast<float*>(args.gain_gradient)[d] += total;
  } else {
    BFloat16* const to = static_cast<BFloat16*>(args.gain_gradient) + d;
    octet::store(to, octet::load(*to) + total);
  }
}

unsigned blocks_for(int64_t items) { return static_cast<unsigned>((items + threads - 1) / threads); }

}  // namespace

int64_t rmsnorm_partial_elements(int64_t tokens, int64_t width) {
  return (tokens + column_chunk - 1) / column_chunk * width;
}

void rmsnorm_forward(const RmsNormForwardArguments& args) {
  if (args.tokens <= 0 || args.width <= 0) return;
  const RowGrid rows = row_grid(args.out, args.tokens, args.width, warps);
  const bool vectors = in_vectors(args.width, args.residual, args.branch, args.branch_gain, args.sum,
                                  args.gain, args.out.high, args.out.row);
  with_storage(args.storage, [&](auto storage) {
    using T = decltype(storage);
    const int64_t kept_rows = args.gain || args.branch_rstd ? 1 : 0;
    const Shape shape = shape_of<T>(rows, args.width, kept_rows, vectors ? Access::Vectors : Access::Single);
    const auto launch = [&](auto kernel) {
      launch_rows(
          kernel, rows,
          {.grid = rows.needed, .block = threads, .shared_bytes = shared_bytes(shape), .stream = args.stream},
          args, shape);
    };
    const auto with_branch = [&](auto as_is, auto normalised) { launch(args.gain ? normalised : as_is); };
    if (args.branch_rstd) {
      with_branch(forward_kernel<T, Branch::Normalised, Sum::AsIs>,
                  forward_kernel<T, Branch::Normalised, Sum::Normalised>);
    } else if (args.branch_gain) {
      with_branch(forward_kernel<T, Branch::Scaled, Sum::AsIs>,
                  forward_kernel<T, Branch::Scaled, Sum::Normalised>);
    } else {
      with_branch(forward_kernel<T, Branch::AsIs, Sum::AsIs>,
                  forward_kernel<T, Branch::AsIs, Sum::Normalised>);
    }
  });
}

void rmsnorm_backward(const RmsNormBackwardArguments& args) {
  if (args.tokens <= 0 || args.width <= 0) return;
  const RowGrid rows = row_grid(args.out, args.tokens, args.width, warps);
  const Access access = in_vectors(args.width, args.out_gradient, args.x, args.gain, args.gradient_in,
                                   args.partial, args.out.high, args.out.row)
                            ? Access::Vectors
                            : Access::Single;
  const int64_t partials = rmsnorm_partial_elements(args.tokens, column_groups(args.width));
  with_storage(args.storage, [&](auto storage) {
    using T = decltype(storage);
    // The gain's gradient first: out.high may take the place of an input.
    gpu::launch(gain_chunks_kernel<T>,
                {.grid = blocks_for(partials), .block = threads, .stream = args.stream}, args, access);
    const Shape shape = shape_of<T>(rows, args.width, 2, access);
    launch_rows(
        backward_kernel<T>, rows,
        {.grid = rows.needed, .block = threads, .shared_bytes = shared_bytes(shape), .stream = args.stream},
        args, shape);
  });
  gpu::launch(gain_kernel, {.grid = blocks_for(args.width), .block = threads, .stream = args.stream}, args);
}

OCTET_KERNELS_END
