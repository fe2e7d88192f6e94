// SwiGLU and its backward, one pass each.
//
//   forward   s = 1 / (1 + e^-gate);  h = (gate * s) * up          [T, 2F] -> [T, F]
//   backward  d gate = dh * up * (s * (1 + gate * (1 - s)));  d up = dh * (gate * s)   [T, 2F], [T, F] -> [T,
//   2F]
//
// Bytes, BF16: forward 4 TF read, 2 TF written (+ TF of codes): floor 6 TF / bandwidth; backward 6 TF read, 4
// TF written (+ 2 TF): floor 10 TF / bandwidth. e^x (33 instructions without fused multiply-adds), two
// divisions, packing and amaxes are some 50 instructions for six bytes and more: an estimate that puts memory
// and arithmetic close to each other on an H200.
#include "kernels/swiglu.h"

#include "kernels/gpu.h"
#include "kernels/output.cuh"
#include "numerics/elementary.h"

OCTET_KERNELS_BEGIN
namespace {

constexpr unsigned warps = 8, threads = 32 * warps;
constexpr int64_t warp_values = 32 * vector_values;
// Loads of this many steps are issued before the first is used, so that enough bytes are in flight.
constexpr int steps_ahead = 2;

struct Shape {
  Access access;
  size_t column_bytes;
};

template <class T>
__global__ void __launch_bounds__(threads) forward_kernel(SwiGluForwardArguments args, Shape shape) {
  GPU_DYNAMIC_SHARED(uint32_t, columns);
  OutputWriter out(args.out, args.width, shape.column_bytes ? columns : nullptr);
  const T* const gate_up = static_cast<const T*>(args.gate_up);
  const int64_t width = args.width;
  for (int64_t row = first_row(); row < args.tokens; row += rows_apart()) {
    const T *const gate = gate_up + row * 2 * width, *const up = gate + width;
    for (int64_t begin = vector_values * lane_in_warp(); begin < width; begin += steps_ahead * warp_values) {
      float g[steps_ahead][8], u[steps_ahead][8];
#pragma unroll
      for (int step = 0; step < steps_ahead; ++step) {
        const int64_t c = begin + step * warp_values;
        if (c >= width) continue;
        load_up_to8_streaming(shape.access, gate + c, width - c, g[step]);
        load_up_to8_streaming(shape.access, up + c, width - c, u[step]);
      }
#pragma unroll
      for (int step = 0; step < steps_ahead; ++step) {
        const int64_t c = begin + step * warp_values;
        if (c >= width) continue;
        float h[8];
#pragma unroll
        for (int i = 0; i < 8; ++i) h[i] = g[step][i] * vector_sigmoid(g[step][i]) * u[step][i];
        out.write({row, c, width - c, shape.access}, h);
      }
    }
    out.end_row(row);
  }
  out.finish();
}

template <class T>
__global__ void __launch_bounds__(threads) backward_kernel(SwiGluBackwardArguments args, Shape shape) {
  GPU_DYNAMIC_SHARED(uint32_t, columns);
  OutputWriter out(args.out, 2 * args.width, shape.column_bytes ? columns : nullptr);
  const T* const gate_up = static_cast<const T*>(args.gate_up);
  const T* const h_gradient = static_cast<const T*>(args.h_gradient);
  const int64_t width = args.width;
  for (int64_t row = first_row(); row < args.tokens; row += rows_apart()) {
    const T *const gate = gate_up + row * 2 * width, *const up = gate + width;
    for (int64_t c = vector_values * lane_in_warp(); c < width; c += warp_values) {
      float g[8], u[8], d[8];
      load_up_to8_streaming(shape.access, gate + c, width - c, g);
      load_up_to8_streaming(shape.access, up + c, width - c, u);
      load_up_to8_streaming(shape.access, h_gradient + row * width + c, width - c, d);
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const float s = vector_sigmoid(g[i]);
        u[i] = d[i] * u[i] * (s * (1.0f + g[i] * (1.0f - s)));
        d[i] = d[i] * (g[i] * s);
      }
      out.write({row, c, width - c, shape.access}, u);
      out.write({row, width + c, width - c, shape.access}, d);
    }
    out.end_row(row);
  }
  out.finish();
}

}  // namespace

void swiglu_forward(const SwiGluForwardArguments& args) {
  if (args.tokens <= 0 || args.width <= 0) return;
  const RowGrid rows = row_grid(args.out, args.tokens, args.width, warps);
  const Shape shape{
      in_vectors(args.width, args.gate_up, args.out.high, args.out.row) ? Access::Vectors : Access::Single,
      rows.column_bytes};
  with_storage(args.storage, [&](auto storage) {
    launch_rows(
        forward_kernel<decltype(storage)>, rows,
        {.grid = rows.needed, .block = threads, .shared_bytes = rows.shared_bytes(), .stream = args.stream},
        args, shape);
  });
}

void swiglu_backward(const SwiGluBackwardArguments& args) {
  if (args.tokens <= 0 || args.width <= 0) return;
  const RowGrid rows = row_grid(args.out, args.tokens, 2 * args.width, warps);
  const Shape shape{in_vectors(args.width, args.gate_up, args.h_gradient, args.out.high, args.out.row)
                        ? Access::Vectors
                        : Access::Single,
                    rows.column_bytes};
  with_storage(args.storage, [&](auto storage) {
    launch_rows(
        backward_kernel<decltype(storage)>, rows,
        {.grid = rows.needed, .block = threads, .shared_bytes = rows.shared_bytes(), .stream = args.stream},
        args, shape);
  });
}

OCTET_KERNELS_END
