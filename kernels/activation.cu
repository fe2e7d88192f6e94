// Activations with one input and their backward, one pass each.
//
//   forward   h = f(x)                                              [T, F] -> [T, F]
//   backward  dx = dh * f'(x)                                       [T, F], [T, F] -> [T, F]
//             xIELU: d a = sum of dh * df/da, d c = sum of dh * df/dc, over a row, then over the tokens
//
// Bytes, BF16: forward 2 TF read, 2 TF written (+ TF of codes): floor 4 TF / bandwidth; backward 4 TF read, 2
// TF written (+ TF): floor 6 TF / bandwidth. ReLU^2 is bound by memory; GELU (an exponential, a division, a
// polynomial) and xIELU (an exponential, a polynomial) need some 60 instructions for four bytes and more,
// about as long as memory takes on an H200: an estimate.
#include "kernels/activation.h"

#include "kernels/gpu.h"
#include "kernels/output.cuh"
#include "numerics/sums.h"

OCTET_KERNELS_BEGIN
namespace {

using octet::Activation;

constexpr unsigned warps = 8, threads = 32 * warps;
constexpr int64_t warp_values = 32 * vector_values;
static_assert(warp_values == sum_lanes,
              "a thread's eight values of each step are its eight lanes of the sum");
// Loads of this many steps are issued before the first is used, so that enough bytes are in flight.
constexpr int steps_ahead = 2;

struct Shape {
  Access access;
  size_t column_bytes;
};

template <Activation activation, class Arguments>
__device__ __forceinline__ octet::Xielu parameters_of(const Arguments& args) {
  if constexpr (activation == Activation::XIELU) {
    return octet::xielu_of(*args.positive, *args.negative);
  } else {
    return {};
  }
}

template <class T, Activation activation>
__global__ void __launch_bounds__(threads) forward_kernel(ActivationForwardArguments args, Shape shape) {
  GPU_DYNAMIC_SHARED(uint32_t, columns);
  OutputWriter out(args.out, args.width, shape.column_bytes ? columns : nullptr);
  const octet::Xielu by = parameters_of<activation>(args);
  const int64_t width = args.width;
  for (int64_t row = first_row(); row < args.tokens; row += rows_apart()) {
    const T* const x = static_cast<const T*>(args.x) + row * width;
    for (int64_t begin = vector_values * lane_in_warp(); begin < width; begin += steps_ahead * warp_values) {
      float v[steps_ahead][8];
#pragma unroll
      for (int step = 0; step < steps_ahead; ++step) {
        const int64_t c = begin + step * warp_values;
        if (c < width) load_up_to8_streaming(shape.access, x + c, width - c, v[step]);
      }
#pragma unroll
      for (int step = 0; step < steps_ahead; ++step) {
        const int64_t c = begin + step * warp_values;
        if (c >= width) continue;
#pragma unroll
        for (int i = 0; i < 8; ++i) v[step][i] = octet::activate<activation>(v[step][i], by);
        out.write({row, c, width - c, shape.access}, v[step]);
      }
    }
    out.end_row(row);
  }
  out.finish();
}

template <class T, Activation activation>
__global__ void __launch_bounds__(threads) backward_kernel(ActivationBackwardArguments args, Shape shape) {
  GPU_DYNAMIC_SHARED(uint32_t, columns);
  OutputWriter out(args.out, args.width, shape.column_bytes ? columns : nullptr);
  const octet::Xielu by = parameters_of<activation>(args);
  const int64_t width = args.width;
  for (int64_t row = first_row(); row < args.tokens; row += rows_apart()) {
    const T* const x = static_cast<const T*>(args.x) + row * width;
    const T* const h_gradient = static_cast<const T*>(args.h_gradient) + row * width;
    [[maybe_unused]] float positive[8] = {}, negative[8] = {};  // by xIELU only
#pragma unroll 2
    for (int64_t c = vector_values * lane_in_warp(); c < width; c += warp_values) {
      float v[8], d[8];
      load_up_to8_streaming(shape.access, x + c, width - c, v);
      load_up_to8_streaming(shape.access, h_gradient + c, width - c, d);
#pragma unroll
      for (int i = 0; i < 8; ++i) {  // beyond the row d is zero, and so is what it adds
        const octet::ActivationSlopes slopes = octet::activation_slopes<activation>(v[i], by);
        if constexpr (activation == Activation::XIELU) {
          positive[i] += d[i] * slopes.positive;
          negative[i] += d[i] * slopes.negative;
        }
        d[i] *= slopes.x;
      }
      out.write({row, c, width - c, shape.access}, d);
    }
    if constexpr (activation == Activation::XIELU) {
      const float p = sum_of_lanes(positive), n = sum_of_lanes(negative);
      if (lane_in_warp() == 0) {
        args.partial[2 * row] = p;
        args.partial[2 * row + 1] = n;
      }
    }
    out.end_row(row);
  }
  out.finish();
}

int64_t chunks_of(int64_t tokens) { return (tokens + column_chunk - 1) / column_chunk; }

// chunk_sums[chunk, which] = sum of rows[t, which] over the chunk's tokens, in order. Bound by latency.
__global__ void __launch_bounds__(threads)
    chunks_kernel(const float* __restrict__ rows, float* __restrict__ chunk_sums, int64_t tokens) {
  const int64_t item = static_cast<int64_t>(blockIdx.x) * threads + threadIdx.x, chunk = item / 2,
                which = item % 2, first = chunk * column_chunk;
  if (first >= tokens) return;
  const int64_t end = first + column_chunk < tokens ? first + column_chunk : tokens;
  float sum = 0.0f;
#pragma unroll 8
  for (int64_t t = first; t < end; ++t) sum += rows[2 * t + which];
  chunk_sums[item] = sum;
}

// gradient += the chunks' sums, added in order, times the derivative of a (c) by its parameter. Two threads.
__global__ void __launch_bounds__(32)
    parameters_kernel(ActivationBackwardArguments args, const float* __restrict__ chunk_sums,
                      int64_t chunks) {
  if (threadIdx.x >= 2) return;
  float total = 0.0f;
#pragma unroll 16
  for (int64_t chunk = 0; chunk < chunks; ++chunk) total += chunk_sums[2 * chunk + threadIdx.x];
  const float parameter = threadIdx.x == 0 ? *args.positive : *args.negative;
  float* const gradient = threadIdx.x == 0 ? args.positive_gradient : args.negative_gradient;
  *gradient += total * octet::xielu_chain(parameter);
}

// body(storage, activation): the latter a type with a constant in it.
template <Activation a>
struct Of {
  static constexpr Activation activation = a;
};
template <class Body>
void with_types(octet::Format storage, Activation activation, const Body& body) {
  with_storage(storage, [&](auto value) {
    switch (activation) {
      case Activation::GELU:
        return body(value, Of<Activation::GELU>());
      case Activation::ReLU2:
        return body(value, Of<Activation::ReLU2>());
      case Activation::XIELU:
        return body(value, Of<Activation::XIELU>());
      default:
        throw gpu::LaunchError("activation: a gated one has a kernel of its own");
    }
  });
}

}  // namespace

int64_t activation_partial_elements(int64_t tokens) { return 2 * (tokens + chunks_of(tokens)); }

void activation_forward(const ActivationForwardArguments& args) {
  if (args.tokens <= 0 || args.width <= 0) return;
  const RowGrid rows = row_grid(args.out, args.tokens, args.width, warps);
  const Shape shape{
      in_vectors(args.width, args.x, args.out.high, args.out.row) ? Access::Vectors : Access::Single,
      rows.column_bytes};
  with_types(args.storage, args.activation, [&](auto storage, auto of) {
    launch_rows(
        forward_kernel<decltype(storage), decltype(of)::activation>, rows,
        {.grid = rows.needed, .block = threads, .shared_bytes = rows.shared_bytes(), .stream = args.stream},
        args, shape);
  });
}

void activation_backward(const ActivationBackwardArguments& args) {
  if (args.tokens <= 0 || args.width <= 0) return;
  const RowGrid rows = row_grid(args.out, args.tokens, args.width, warps);
  const Shape shape{in_vectors(args.width, args.x, args.h_gradient, args.out.high, args.out.row)
                        ? Access::Vectors
                        : Access::Single,
                    rows.column_bytes};
  with_types(args.storage, args.activation, [&](auto storage, auto of) {
    launch_rows(
        backward_kernel<decltype(storage), decltype(of)::activation>, rows,
        {.grid = rows.needed, .block = threads, .shared_bytes = rows.shared_bytes(), .stream = args.stream},
        args, shape);
  });
  if (args.activation != Activation::XIELU) return;
  const int64_t chunks = chunks_of(args.tokens);
  float* const chunk_sums = args.partial + 2 * args.tokens;
  gpu::launch(chunks_kernel,
              {.grid = static_cast<unsigned>((2 * chunks + threads - 1) / threads),
               .block = threads,
               .stream = args.stream},
              static_cast<const float*>(args.partial), chunk_sums, args.tokens);
  gpu::launch(parameters_kernel, {.grid = 1, .block = 32, .stream = args.stream}, args,
              static_cast<const float*>(chunk_sums), chunks);
}

OCTET_KERNELS_END
