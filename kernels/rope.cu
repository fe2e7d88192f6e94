// Rotary position embedding, rotate-half form, on the query and key heads of QKV rows [T, (H + 2 K) Dh], in
// place.
//
//   forward   x = stored + bias;  (x1, x2) -> (x1 cos - x2 sin, x2 cos + x1 sin)    x1, x2: halves of a head
//   backward  (y1, y2) -> (y1 cos + y2 sin, y2 cos - y1 sin);  bias gradient += sum over tokens of the result
//
// Bytes, BF16: forward 4 T (H + K) Dh (with bias: + 2 K), floor that / bandwidth; backward 4 T (H + 2 K) Dh
// (+ 1 a value of codes), the bias gradient 2 T (H + 2 K) Dh more, because it sums what is stored. The tables
// are read once a row, from the caches. All bound by memory.
//
// A warp has a row; a thread eight neighbours of the first half of a head and their partners in the second.
// With a regulariser of queries and keys: query_key_norm.cu.
#include "kernels/rope.h"

#include "kernels/gpu.h"
#include "kernels/grid.h"
#include "kernels/rope.cuh"
#include "numerics/sums.h"

OCTET_KERNELS_BEGIN
namespace {

constexpr unsigned warps = 8, threads = 32 * warps;

// How the rows of a launch are cut.
struct Layout {
  int64_t width;               // of a row
  unsigned half, half_pieces;  // of a head
  unsigned rotated, touched;   // heads
  Access access;
};

__device__ __forceinline__ Pair pair_of(unsigned piece, int64_t row, const Layout& layout,
                                        const RopeShape& shape) {
  const unsigned head = piece / layout.half_pieces, i = piece % layout.half_pieces * vector_values;
  const int64_t first = static_cast<int64_t>(head) * 2 * layout.half + i, left = layout.half - i;
  return {head, first, first + layout.half, left < vector_values ? left : vector_values,
          row % shape.context * layout.half + i};
}

template <class T>
__global__ void __launch_bounds__(threads) forward_kernel(RopeForwardArguments args, Layout layout) {
  for (int64_t row = first_row(); row < args.shape.tokens; row += rows_apart()) {
    T* const x = static_cast<T*>(args.qkv) + row * layout.width;
#pragma unroll 2
    for (unsigned piece = lane_in_warp(); piece < layout.touched * layout.half_pieces; piece += 32) {
      const Pair pair = pair_of(piece, row, layout, args.shape);
      float first[8], second[8];
      load_up_to8(layout.access, x + pair.first, pair.count, first);
      load_up_to8(layout.access, x + pair.second, pair.count, second);
      if (args.bias) {
        add_bias(layout.access, args.bias + pair.first, pair.count, first);
        add_bias(layout.access, args.bias + pair.second, pair.count, second);
      }
      if (pair.head < layout.rotated) rotate<Turn::Forward>(pair, args.shape, layout.access, first, second);
      store_up_to8(layout.access, x + pair.first, pair.count, first);
      store_up_to8(layout.access, x + pair.second, pair.count, second);
    }
  }
}

template <class T>
__global__ void __launch_bounds__(threads)
    backward_kernel(RopeBackwardArguments args, Layout layout, size_t column_bytes) {
  GPU_DYNAMIC_SHARED(uint32_t, columns);
  OutputWriter out(args.out, layout.width, column_bytes ? columns : nullptr);
  for (int64_t row = first_row(); row < args.shape.tokens; row += rows_apart()) {
    const T* const y = static_cast<const T*>(args.qkv_gradient) + row * layout.width;
    for (unsigned piece = lane_in_warp(); piece < layout.touched * layout.half_pieces; piece += 32) {
      const Pair pair = pair_of(piece, row, layout, args.shape);
      float first[8], second[8];
      load_up_to8(layout.access, y + pair.first, pair.count, first);
      load_up_to8(layout.access, y + pair.second, pair.count, second);
      if (pair.head < layout.rotated) rotate<Turn::Backward>(pair, args.shape, layout.access, first, second);
      out.write({row, pair.first, pair.count, layout.access}, first);
      out.write({row, pair.second, pair.count, layout.access}, second);
    }
    out.end_row(row);
  }
  out.finish();
}

// partial[chunk, c] = sum over the chunk's tokens, in order, of what is stored. A thread has eight columns.
template <class T>
__global__ void __launch_bounds__(threads)
    bias_chunks_kernel(const T* __restrict__ stored, float* __restrict__ partial, int64_t tokens,
                       int64_t width, Access access) {
  const int64_t groups = (width + vector_values - 1) / vector_values,
                item = static_cast<int64_t>(blockIdx.x) * threads + threadIdx.x;
  const int64_t chunk = item / groups, c = item % groups * vector_values, first = chunk * column_chunk;
  if (first >= tokens) return;
  const int64_t end = first + column_chunk < tokens ? first + column_chunk : tokens;
  float sums[8] = {};
#pragma unroll 8
  for (int64_t t = first; t < end; ++t) {
    float x[8];
    load_up_to8(access, stored + t * width + c, width - c, x);
#pragma unroll
    for (int i = 0; i < 8; ++i) sums[i] += x[i];
  }
  store_up_to8(access, partial + chunk * width + c, width - c, sums);
}

// bias_gradient[c] += the chunks' sums, added in order.
__global__ void __launch_bounds__(threads)
    bias_kernel(float* __restrict__ gradient, const float* __restrict__ partial, int64_t chunks,
                int64_t width) {
  const int64_t c = static_cast<int64_t>(blockIdx.x) * threads + threadIdx.x;
  if (c >= width) return;
  float total = 0.0f;
#pragma unroll 16
  for (int64_t chunk = 0; chunk < chunks; ++chunk) total += partial[chunk * width + c];
  gradient[c] += total;
}

int64_t row_width(const RopeShape& shape) {
  return (static_cast<int64_t>(shape.heads) + 2 * shape.kv_heads) * shape.head_width;
}
int64_t chunks_of(const RopeShape& shape) { return (shape.tokens + column_chunk - 1) / column_chunk; }
unsigned blocks_for(int64_t items) { return static_cast<unsigned>((items + threads - 1) / threads); }

enum class Heads : uint8_t { Rotated, All };

Layout layout_of(const RopeShape& shape, Heads touched, Access access) {
  const auto half = static_cast<unsigned>(shape.head_width / 2),
             rotated = static_cast<unsigned>(shape.heads + shape.kv_heads),
             all = rotated + static_cast<unsigned>(shape.kv_heads);
  return {.width = row_width(shape),
          .half = half,
          .half_pieces = (half + vector_values - 1) / vector_values,
          .rotated = rotated,
          .touched = touched == Heads::All ? all : rotated,
          .access = access};
}
template <class... Pointers>
Access access_of(const RopeShape& shape, Pointers... pointers) {
  return in_vectors(shape.head_width / 2, shape.cosine, shape.sine, pointers...) ? Access::Vectors
                                                                                 : Access::Single;
}

void add_bias_gradient(const RopeBackwardArguments& args) {
  if (!args.out.high || !args.partial)
    throw gpu::LaunchError(
        "rope_backward: the bias gradient sums out.high in `partial`; one of them is not there");
  const int64_t width = row_width(args.shape), chunks = chunks_of(args.shape);
  const Access access = in_vectors(width, args.out.high, args.partial) ? Access::Vectors : Access::Single;
  with_storage(args.out.storage, [&](auto storage) {
    using T = decltype(storage);
    gpu::launch(bias_chunks_kernel<T>,
                {.grid = blocks_for(chunks * ((width + vector_values - 1) / vector_values)),
                 .block = threads,
                 .stream = args.stream},
                static_cast<const T*>(args.out.high), args.partial, args.shape.tokens, width, access);
  });
  gpu::launch(bias_kernel, {.grid = blocks_for(width), .block = threads, .stream = args.stream},
              args.bias_gradient, static_cast<const float*>(args.partial), chunks, width);
}

void plain_rope_backward(const RopeBackwardArguments& args) {
  const Output& out = args.out;
  // Value heads stay as they are, so in place there is nothing to do for them.
  const bool asks = out.row || out.amax || out.row_amax || out.column_amax;
  const bool in_place = out.high == args.qkv_gradient && out.storage == args.storage;
  const Layout layout = layout_of(args.shape, in_place && !asks ? Heads::Rotated : Heads::All,
                                  access_of(args.shape, args.qkv_gradient, out.high, out.row));
  RowGrid rows = row_grid(out, args.shape.tokens, layout.width, warps);
  // The shared amaxes want eights of columns that start at a multiple of eight.
  if (layout.access == Access::Single) rows.column_bytes = 0;
  with_storage(args.storage, [&](auto storage) {
    launch_rows(
        backward_kernel<decltype(storage)>, rows,
        {.grid = rows.needed, .block = threads, .shared_bytes = rows.shared_bytes(), .stream = args.stream},
        args, layout, rows.column_bytes);
  });
}

}  // namespace

int64_t rope_partial_elements(const RopeShape& shape) { return chunks_of(shape) * row_width(shape); }

void rope_forward(const RopeForwardArguments& args) {
  if (args.shape.tokens <= 0) return;
  if (args.norm.kind != octet::QkNorm::None) return regularised_rope_forward(args);
  const Layout layout = layout_of(args.shape, args.bias ? Heads::All : Heads::Rotated,
                                  access_of(args.shape, args.qkv, args.bias));
  with_storage(args.storage, [&](auto storage) {
    gpu::launch(forward_kernel<decltype(storage)>,
                {.grid = walking_grid(args.shape.tokens, warps), .block = threads, .stream = args.stream},
                args, layout);
  });
}

void rope_backward(const RopeBackwardArguments& args) {
  if (args.shape.tokens <= 0) return;
  if (args.norm.kind == octet::QkNorm::None)
    plain_rope_backward(args);
  else
    regularised_rope_backward(args);
  if (args.bias_gradient) add_bias_gradient(args);
}

OCTET_KERNELS_END
