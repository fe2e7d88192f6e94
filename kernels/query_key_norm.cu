// RoPE after a regulariser of query and key heads, one pass, and its backward. Equations:
// numerics/query_key_norm.h; specification: device/cpu/rope.cpp and query_key_norm.cpp.
//
// Bytes, BF16: forward 6 T (H + K) Dh, because the heads before the regulariser are kept; backward 2 T (2 H +
// 3 K) Dh read and 2 T (H + 2 K) Dh written (+ 1 a value of codes); trained gains read 4 T (H + K) Dh once
// more, because their sums run down the tokens. All bound by memory.
//
// A warp has a row, a power of two of its threads a head: each eight neighbours of the first half and their
// partners in the second, so that the thread rotates what it normalises. A head is reduced by shuffles in the
// order of numerics/sums.h.
#include "kernels/gpu.h"
#include "kernels/grid.h"
#include "kernels/rope.cuh"
#include "numerics/sums.h"

OCTET_KERNELS_BEGIN
namespace {

using octet::QkNorm;

constexpr unsigned warps = 8, threads = 32 * warps;

struct Layout {
  int64_t width, kept_width;     // of a row, of a row of kept heads
  unsigned half, half_pieces;    // of a head
  unsigned group;                // threads a head: a power of two, at most 32
  unsigned heads, rotated, all;  // query heads; with key heads; with value heads
  Access access;
};

// What a thread has of a head; pair.count 0: nothing. A row of kept heads begins like a row of all.
struct Share {
  Pair pair;
  bool normalised;
};
__device__ __forceinline__ Share share_of(unsigned head, int64_t row, const Layout& layout,
                                          const RopeShape& shape) {
  const unsigned i = threadIdx.x % layout.group * vector_values;
  const bool there = head < layout.all && i < layout.half;
  const int64_t first = static_cast<int64_t>(head) * 2 * layout.half + i, left = there ? layout.half - i : 0;
  return {{head, first, first + layout.half, left < vector_values ? left : vector_values,
           row % shape.context * layout.half + i},
          head < layout.rotated};
}
template <class T>
__device__ __forceinline__ void load_share(Access access, const T* row, const Share& share, int64_t count,
                                           float (&first)[8], float (&second)[8]) {
  if (count == 0) return;
  load_up_to8(access, row + share.pair.first, count, first);
  load_up_to8(access, row + share.pair.second, count, second);
}

// The sum of a * b over a head, for all threads of its group. All lanes of the warp take part.
__device__ __forceinline__ float sum_of_head(const Layout& layout, const float (&a1)[8], const float (&a2)[8],
                                             const float (&b1)[8], const float (&b2)[8]) {
  float pairs[8];
#pragma unroll
  for (int i = 0; i < 8; ++i) pairs[i] = a1[i] * b1[i] + a2[i] * b2[i];
  float sum = sum_of_pairs(pairs);
  for (unsigned distance = layout.group / 2; distance > 0; distance /= 2)
    sum += __shfl_xor_sync(all_lanes, sum, static_cast<int>(distance));
  return sum;
}
__device__ __forceinline__ float mean_of(float sum, const Layout& layout) {
  return __fdiv_rn(sum, static_cast<float>(2 * layout.half));
}
__device__ __forceinline__ float rstd_of(float squares, const Layout& layout, float epsilon) {
  return __fdiv_rn(1.0f, __fsqrt_rn(mean_of(squares, layout) + epsilon));
}
__device__ __forceinline__ const float* gain_of(const RopeNorm& norm, const Layout& layout, unsigned head) {
  return head < layout.heads ? norm.query_gain : norm.key_gain;
}
// gain[i] of this thread's columns of a head, times x; count > 0.
__device__ __forceinline__ void multiply_by_gain(const Layout& layout, const float* gain, const Share& share,
                                                 float (&first)[8], float (&second)[8]) {
  const int64_t at = share.pair.first % (2 * layout.half);
  float g[8];
  load_up_to8(layout.access, gain + at, share.pair.count, g);
#pragma unroll
  for (int i = 0; i < 8; ++i) first[i] *= g[i];
  load_up_to8(layout.access, gain + at + layout.half, share.pair.count, g);
#pragma unroll
  for (int i = 0; i < 8; ++i) second[i] *= g[i];
}

template <class T, QkNorm kind>
__global__ void __launch_bounds__(threads) forward_kernel(RopeForwardArguments args, Layout layout) {
  const unsigned touched = args.bias ? layout.all : layout.rotated, heads_at_once = 32 / layout.group;
  for (int64_t row = first_row(); row < args.shape.tokens; row += rows_apart()) {
    T* const x_row = static_cast<T*>(args.qkv) + row * layout.width;
    T* const kept_row = static_cast<T*>(args.norm.kept) + row * layout.kept_width;
    for (unsigned begin = 0; begin < touched; begin += heads_at_once) {
      const Share share = share_of(begin + lane_in_warp() / layout.group, row, layout, args.shape);
      const int64_t count = share.pair.head < touched ? share.pair.count : 0;
      float first[8] = {}, second[8] = {};
      load_share(layout.access, x_row, share, count, first, second);
      if (args.bias && count > 0) {
        add_bias(layout.access, args.bias + share.pair.first, count, first);
        add_bias(layout.access, args.bias + share.pair.second, count, second);
      }
      if (count > 0 && share.normalised) {
#pragma unroll
        for (int i = 0; i < 8; ++i) first[i] = round_to<T>(first[i]), second[i] = round_to<T>(second[i]);
        store_up_to8(layout.access, kept_row + share.pair.first, count, first);
        store_up_to8(layout.access, kept_row + share.pair.second, count, second);
      }
      [[maybe_unused]] float rstd = 1.0f;  // of the two RMS
      if constexpr (kind != QkNorm::Tanh)
        rstd = rstd_of(sum_of_head(layout, first, second, first, second), layout, args.norm.epsilon);
      if (count == 0) continue;
      if (share.normalised) {
        if constexpr (kind == QkNorm::Tanh) {
          const float alpha = *gain_of(args.norm, layout, share.pair.head);
#pragma unroll
          for (int i = 0; i < 8; ++i) {
            first[i] = octet::vector_tanh(alpha * first[i]).value;
            second[i] = octet::vector_tanh(alpha * second[i]).value;
          }
        } else {
#pragma unroll
          for (int i = 0; i < 8; ++i) first[i] *= rstd, second[i] *= rstd;
          if constexpr (kind == QkNorm::RMS)
            multiply_by_gain(layout, gain_of(args.norm, layout, share.pair.head), share, first, second);
        }
        rotate<Turn::Forward>(share.pair, args.shape, layout.access, first, second);
      }
      store_up_to8(layout.access, x_row + share.pair.first, count, first);
      store_up_to8(layout.access, x_row + share.pair.second, count, second);
    }
  }
}

template <class T, QkNorm kind>
__global__ void __launch_bounds__(threads)
    backward_kernel(RopeBackwardArguments args, Layout layout, size_t column_bytes) {
  GPU_DYNAMIC_SHARED(uint32_t, columns);
  OutputWriter out(args.out, layout.width, column_bytes ? columns : nullptr);
  const unsigned heads_at_once = 32 / layout.group;
  for (int64_t row = first_row(); row < args.shape.tokens; row += rows_apart()) {
    const T* const y_row = static_cast<const T*>(args.qkv_gradient) + row * layout.width;
    const T* const kept_row = static_cast<const T*>(args.norm.kept) + row * layout.kept_width;
    for (unsigned begin = 0; begin < layout.all; begin += heads_at_once) {
      const Share share = share_of(begin + lane_in_warp() / layout.group, row, layout, args.shape);
      const int64_t count = share.pair.count;
      float first[8] = {}, second[8] = {}, x1[8] = {}, x2[8] = {};
      load_share(layout.access, y_row, share, count, first, second);
      if (share.normalised) {
        load_share(layout.access, kept_row, share, count, x1, x2);
        if (count > 0) {
          rotate<Turn::Backward>(share.pair, args.shape, layout.access, first, second);
          if constexpr (kind == QkNorm::RMS)
            multiply_by_gain(layout, gain_of(args.norm, layout, share.pair.head), share, first, second);
        }
      }
      if constexpr (kind == QkNorm::Tanh) {
        if (count > 0 && share.normalised) {
          const float alpha = *gain_of(args.norm, layout, share.pair.head);
#pragma unroll
          for (int i = 0; i < 8; ++i) {
            first[i] = first[i] * octet::vector_tanh(alpha * x1[i]).slope * alpha;
            second[i] = second[i] * octet::vector_tanh(alpha * x2[i]).slope * alpha;
          }
        }
      } else {
        const float rstd = rstd_of(sum_of_head(layout, x1, x2, x1, x2), layout, args.norm.epsilon);
        const float mean = mean_of(sum_of_head(layout, first, second, x1, x2), layout);
        const float shrink = rstd * rstd * mean;
        if (share.normalised) {
#pragma unroll
          for (int i = 0; i < 8; ++i) {
            first[i] = rstd * (first[i] - x1[i] * shrink);
            second[i] = rstd * (second[i] - x2[i] * shrink);
          }
        }
      }
      if (count == 0) continue;
      out.write({row, share.pair.first, count, layout.access}, first);
      out.write({row, share.pair.second, count, layout.access}, second);
    }
    out.end_row(row);
  }
  out.finish();
}

// ---- the gains' gradients

int64_t chunks_of(const RopeShape& shape) { return (shape.tokens + column_chunk - 1) / column_chunk; }

// partial[chunk, head, c] = sum over the chunk's tokens, in order, of what they add. A group of threads has a
// head of a chunk.
template <class T, QkNorm kind>
__global__ void __launch_bounds__(threads) gain_heads_kernel(RopeBackwardArguments args, Layout layout) {
  const int64_t group = (static_cast<int64_t>(blockIdx.x) * threads + threadIdx.x) / layout.group;
  const auto head = static_cast<unsigned>(group % layout.rotated);
  const int64_t chunk = group / layout.rotated;
  [[maybe_unused]] const float alpha = kind == QkNorm::Tanh ? *gain_of(args.norm, layout, head) : 0.0f;
  float sums1[8] = {}, sums2[8] = {};
  for (int64_t i = 0; i < column_chunk; ++i) {  // as often for all lanes of a warp
    const int64_t t = chunk * column_chunk + i;
    const bool there = t < args.shape.tokens;
    const Share share = share_of(head, there ? t : 0, layout, args.shape);
    const int64_t count = there ? share.pair.count : 0;
    float g1[8] = {}, g2[8] = {}, x1[8] = {}, x2[8] = {};
    load_share(layout.access, static_cast<const T*>(args.qkv_gradient) + (there ? t : 0) * layout.width,
               share, count, g1, g2);
    load_share(layout.access, static_cast<const T*>(args.norm.kept) + (there ? t : 0) * layout.kept_width,
               share, count, x1, x2);
    if (count > 0) rotate<Turn::Backward>(share.pair, args.shape, layout.access, g1, g2);
    if constexpr (kind == QkNorm::Tanh) {
#pragma unroll
      for (int k = 0; k < 8; ++k) {
        sums1[k] += g1[k] * octet::vector_tanh(alpha * x1[k]).slope * x1[k];
        sums2[k] += g2[k] * octet::vector_tanh(alpha * x2[k]).slope * x2[k];
      }
    } else {
      const float rstd = rstd_of(sum_of_head(layout, x1, x2, x1, x2), layout, args.norm.epsilon);
#pragma unroll
      for (int k = 0; k < 8; ++k) {
        sums1[k] += g1[k] * (x1[k] * rstd);
        sums2[k] += g2[k] * (x2[k] * rstd);
      }
    }
  }
  if (chunk * column_chunk >= args.shape.tokens) return;
  const Share share = share_of(head, 0, layout, args.shape);
  if (share.pair.count == 0) return;
  float* const to = args.partial + chunk * layout.kept_width;
  store_up_to8(layout.access, to + share.pair.first, share.pair.count, sums1);
  store_up_to8(layout.access, to + share.pair.second, share.pair.count, sums2);
}

// sums[chunk, which, c] = the chunk's query (key) heads, added in order.
__global__ void __launch_bounds__(threads)
    gain_chunks_kernel(const float* __restrict__ partial, float* __restrict__ sums, Layout layout,
                       int64_t chunks) {
  const int64_t head_width = 2 * layout.half, item = static_cast<int64_t>(blockIdx.x) * threads + threadIdx.x;
  const int64_t c = item % head_width, which = item / head_width % 2, chunk = item / head_width / 2;
  if (chunk >= chunks) return;
  const unsigned first = which == 0 ? 0 : layout.heads, end = which == 0 ? layout.heads : layout.rotated;
  float sum = 0.0f;
#pragma unroll 8
  for (unsigned head = first; head < end; ++head)
    sum += partial[chunk * layout.kept_width + head * head_width + c];
  sums[item] = sum;
}

// gradient[c] += the chunks' sums, added in order; Tanh: all of them go to one alpha, as a row of 256 lanes.
// Block 0 has the queries' gain, block 1 the keys', 32 threads each; a thread eight neighbours of each 256
// columns.
__global__ void __launch_bounds__(32)
    gain_kernel(RopeBackwardArguments args, const float* __restrict__ sums, Layout layout, int64_t chunks) {
  const int64_t head_width = 2 * layout.half, which = blockIdx.x;
  float* const gradient = which == 0 ? args.query_gain_gradient : args.key_gain_gradient;
  float lanes[8] = {};
  for (int64_t begin = 0; begin < head_width; begin += sum_lanes) {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int64_t c = begin + vector_values * static_cast<int64_t>(threadIdx.x) + i;
      if (c >= head_width) continue;
      float total = 0.0f;
#pragma unroll 8
      for (int64_t chunk = 0; chunk < chunks; ++chunk) total += sums[(2 * chunk + which) * head_width + c];
      if (args.norm.kind == QkNorm::RMS) gradient[c] += total;
      lanes[i] += total;
    }
  }
  if (args.norm.kind != QkNorm::Tanh) return;
  const float all = sum_of_lanes(lanes);
  if (threadIdx.x == 0) *gradient += all;
}

// ---- host side

template <class... Pointers>
Layout layout_of(const RopeShape& shape, Pointers... pointers) {
  if (shape.head_width > octet::widest_regularised_head)
    throw gpu::LaunchError("query_key_norm: a head is wider than a warp can reduce");
  Layout layout{};
  layout.half = static_cast<unsigned>(shape.head_width / 2);
  layout.half_pieces = (layout.half + vector_values - 1) / vector_values;
  for (layout.group = 1; layout.group < layout.half_pieces;) layout.group *= 2;
  layout.heads = static_cast<unsigned>(shape.heads);
  layout.rotated = static_cast<unsigned>(shape.heads + shape.kv_heads);
  layout.all = layout.rotated + static_cast<unsigned>(shape.kv_heads);
  layout.width = static_cast<int64_t>(layout.all) * shape.head_width;
  layout.kept_width = static_cast<int64_t>(layout.rotated) * shape.head_width;
  layout.access =
      in_vectors(layout.half, shape.cosine, shape.sine, pointers...) ? Access::Vectors : Access::Single;
  return layout;
}

// body(storage, kind): the latter a type with a constant in it.
template <QkNorm k>
struct Of {
  static constexpr QkNorm kind = k;
};
template <class Body>
void with_types(octet::Format storage, QkNorm kind, const Body& body) {
  with_storage(storage, [&](auto value) {
    switch (kind) {
      case QkNorm::RMS:
        return body(value, Of<QkNorm::RMS>());
      case QkNorm::Tanh:
        return body(value, Of<QkNorm::Tanh>());
      default:
        return body(value, Of<QkNorm::RMSFrozen>());
    }
  });
}

unsigned blocks_for(int64_t items) { return static_cast<unsigned>((items + threads - 1) / threads); }

void add_gain_gradients(const RopeBackwardArguments& args) {
  const Layout layout = layout_of(args.shape, args.qkv_gradient, args.norm.kept, args.partial);
  const int64_t chunks = chunks_of(args.shape);
  float* const sums = args.partial + chunks * layout.kept_width;
  with_types(args.storage, args.norm.kind, [&](auto storage, auto of) {
    gpu::launch(
        gain_heads_kernel<decltype(storage), decltype(of)::kind>,
        {.grid = blocks_for(chunks * layout.rotated * layout.group), .block = threads, .stream = args.stream},
        args, layout);
  });
  gpu::launch(
      gain_chunks_kernel,
      {.grid = blocks_for(chunks * 2 * args.shape.head_width), .block = threads, .stream = args.stream},
      static_cast<const float*>(args.partial), sums, layout, chunks);
  gpu::launch(gain_kernel, {.grid = 2, .block = 32, .stream = args.stream}, args,
              static_cast<const float*>(sums), layout, chunks);
}

}  // namespace

int64_t gain_partial_elements(const RopeShape& shape) {
  return chunks_of(shape) * (static_cast<int64_t>(shape.heads) + shape.kv_heads + 2) * shape.head_width;
}

void regularised_rope_forward(const RopeForwardArguments& args) {
  const Layout layout =
      layout_of(args.shape, args.qkv, args.bias, args.norm.kept, args.norm.query_gain, args.norm.key_gain);
  with_types(args.storage, args.norm.kind, [&](auto storage, auto of) {
    gpu::launch(forward_kernel<decltype(storage), decltype(of)::kind>,
                {.grid = walking_grid(args.shape.tokens, warps), .block = threads, .stream = args.stream},
                args, layout);
  });
}

void regularised_rope_backward(const RopeBackwardArguments& args) {
  if (octet::is_trained(args.norm.kind)) add_gain_gradients(args);  // first: out.high may be qkv_gradient
  const Output& out = args.out;
  const Layout layout = layout_of(args.shape, args.qkv_gradient, args.norm.kept, args.norm.query_gain,
                                  args.norm.key_gain, out.high, out.row);
  RowGrid rows = row_grid(out, args.shape.tokens, layout.width, warps);
  // The shared amaxes want eights of columns that start at a multiple of eight.
  if (layout.access == Access::Single) rows.column_bytes = 0;
  with_types(args.storage, args.norm.kind, [&](auto storage, auto of) {
    launch_rows(
        backward_kernel<decltype(storage), decltype(of)::kind>, rows,
        {.grid = rows.needed, .block = threads, .shared_bytes = rows.shared_bytes(), .stream = args.stream},
        args, layout, rows.column_bytes);
  });
}

OCTET_KERNELS_END
