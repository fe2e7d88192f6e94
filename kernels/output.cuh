// How a producer leaves its result where its Output [output.h] says, eight neighbours of a row at a time: the
// high copy, the row codes of a known scale, the amaxes. A row belongs to one warp.
//
//   OutputWriter out(args.out, width, columns_in_shared);     all threads
//   for (row = first_row(); row < rows; row += rows_apart()) {
//     for (c = 8 * lane; c < width; c += 256) out.write({row, c, count, access}, values);
//     out.end_row(row);                                       all lanes of the warp
//   }
//   out.finish();                                             all threads
//
// Column amaxes are max-ed in shared memory over all rows of a block and reach global memory once a block: a
// global atomic for each element would cost more than the element's own traffic.
#pragma once
#include <cstdint>

#include "kernels/block.h"
#include "kernels/gpu.h"
#include "kernels/instructions.h"
#include "kernels/output.h"
#include "kernels/values.cuh"

OCTET_KERNELS_BEGIN

// Rows are dealt to the warps of the grid.
__device__ __forceinline__ unsigned lane_in_warp() { return thread_in_block() % 32; }
__device__ __forceinline__ int64_t first_row() {
  return static_cast<int64_t>(blockIdx.x) * warps_in_block() + thread_in_block() / 32;
}
__device__ __forceinline__ int64_t rows_apart() { return static_cast<int64_t>(gridDim.x) * warps_in_block(); }

// The first min(8, count) of `from`; those beyond the row are zero. In vectors a row has no ragged end.
template <class T>
__device__ __forceinline__ void load_up_to8(Access access, const T* from, int64_t count, float (&v)[8]) {
  if (access == Access::Vectors) {
    load8(from, v);
  } else {
    load_some(from, count, v);
  }
}
template <class T>
__device__ __forceinline__ void load_up_to8_streaming(Access access, const T* from, int64_t count,
                                                      float (&v)[8]) {
  if (access == Access::Vectors) {
    load8_streaming(from, v);
  } else {
    load_some(from, count, v);
  }
}
template <class T>
__device__ __forceinline__ void store_up_to8(Access access, T* to, int64_t count, const float (&v)[8]) {
  if (access == Access::Vectors) {
    store8(to, v);
  } else {
    store_some(to, count, v);
  }
}

// Bytes 0 .. 3 of `low`, then of `high`.
__device__ __forceinline__ void store_codes(Access access, uint8_t* to, int64_t count, uint2 codes) {
  if (access == Access::Vectors) {
    gpu::store(reinterpret_cast<uint2*>(to), codes);
    return;
  }
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    if (i < count) to[i] = plain::code_of(i < 4 ? codes.x : codes.y, i % 4);
  }
}

// Largest magnitude of packed BF16 pairs, as the bits of a float.
__device__ __forceinline__ uint32_t larger_of(uint32_t a, uint32_t b) { return a > b ? a : b; }
__device__ __forceinline__ uint32_t low_magnitude(uint32_t pair) { return (pair << 16) & 0x7fff0000u; }
__device__ __forceinline__ uint32_t high_magnitude(uint32_t pair) { return pair & 0x7fff0000u; }

// [width] amaxes in shared memory. The columns of one thread lie `groups` words apart, so that the lanes of a
// warp meet different banks.
__host__ __device__ __forceinline__ int64_t column_groups(int64_t width) { return (width + 7) / 8; }

class OutputWriter {
 public:
  struct At {
    int64_t row, column, count;  // count: of the row's values from `column` on
    Access access;
  };

  // columns_in_shared: [8 column_groups(width)] or null, then column amaxes go straight to global memory.
  __device__ __forceinline__ OutputWriter(const Output& out, int64_t width, uint32_t* columns_in_shared)
      : out_(out), width_(width), columns_(columns_in_shared), scale_(out.row ? *out.scale : 0.0f) {
    if (!columns_) return;
    for (int64_t i = thread_in_block(); i < 8 * column_groups(width_); i += 32 * warps_in_block())
      columns_[i] = 0;
    __syncthreads();
  }

  __device__ __forceinline__ void write(const At& at, float (&v)[8]) {
    if (at.access == Access::Single) {  // what a caller made of values beyond the row must not reach an amax
#pragma unroll
      for (int i = 0; i < 8; ++i) v[i] = i < at.count ? v[i] : 0.0f;
    }
    const uint4 bits = pack8(v);
    const int64_t offset = at.row * width_ + at.column;
    if (out_.high) {
      if (out_.storage == octet::Format::FP32) {
        store_up_to8(at.access, static_cast<float*>(out_.high) + offset, at.count, v);
      } else if (at.access == Access::Vectors) {
        gpu::store(reinterpret_cast<uint4*>(static_cast<BFloat16*>(out_.high) + offset), bits);
      } else {
        store_some(static_cast<BFloat16*>(out_.high) + offset, at.count, v);
      }
    }
    const uint32_t pairs[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
    for (const uint32_t pair : pairs)
      row_amax_ = larger_of(row_amax_, larger_of(low_magnitude(pair), high_magnitude(pair)));
    if (out_.column_amax) raise_columns(at, pairs);
    if (scale_ != 0.0f) store_codes(at.access, out_.row + offset, at.count, encode(bits));
  }

  // All lanes of a warp, after the last write() to its row.
  __device__ __forceinline__ void end_row(int64_t row) {
    if (out_.row_amax) {
      const uint32_t largest = __reduce_max_sync(all_lanes, row_amax_);
      if (lane_in_warp() == 0) out_.row_amax[row] = largest;
    }
    amax_ = larger_of(amax_, row_amax_);
    row_amax_ = 0;
  }

  // All threads of the block, after their last row.
  __device__ __forceinline__ void finish() {
    if (out_.amax) {
      const float largest = block_max_magnitude(__uint_as_float(amax_));
      if (thread_in_block() == 0) raise_amax(reinterpret_cast<float*>(out_.amax), largest);
    }
    if (!columns_) return;
    __syncthreads();
    for (int64_t c = thread_in_block(); c < width_; c += 32 * warps_in_block()) {
      const uint32_t largest = *in_shared(c);
      if (largest) atomicMax(out_.column_amax + c, largest);
    }
  }

 private:
  __device__ __forceinline__ uint32_t* in_shared(int64_t column) const {
    return columns_ + column % 8 * column_groups(width_) + column / 8;
  }
  __device__ __forceinline__ void raise_columns(const At& at, const uint32_t (&pairs)[4]) {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const uint32_t pair = pairs[i / 2], magnitude = i % 2 ? high_magnitude(pair) : low_magnitude(pair);
      const int64_t column = at.column + i;
      if (i < at.count) atomicMax(columns_ ? in_shared(column) : out_.column_amax + column, magnitude);
    }
  }
  // Codes come from the value rounded to BF16.
  __device__ __forceinline__ uint2 encode(uint4 bits) const {
    float v[8];
    unpack8(bits, v);
#pragma unroll
    for (float& x : v) x *= scale_;
    return make_uint2(encode_x4(out_.format, make_float4(v[0], v[1], v[2], v[3])),
                      encode_x4(out_.format, make_float4(v[4], v[5], v[6], v[7])));
  }

  const Output& out_;
  const int64_t width_;
  uint32_t* const columns_;
  const float scale_;
  uint32_t row_amax_ = 0, amax_ = 0;
};

// ---- host side

// What every GPU from sm_80 on gives a block beside a kilobyte of static arrays (sm_89, sm_120: 99 KiB).
inline constexpr size_t largest_dynamic_shared = 96 * 1024;

// How rows [rows, width] of an Output are dealt out.
struct RowGrid {
  unsigned needed;  // blocks, with a row a warp
  bool walks;  // column amaxes are wanted: few blocks with many rows each, because each sends all of them
  size_t column_bytes;  // of shared memory for column amaxes; 0: none wanted or too many

  size_t shared_bytes() const { return column_bytes ? column_bytes : 16; }  // a kernel that has some has some
};
// With rows.needed blocks or, walking, with no more than run at once: a second wave would leave most of the
// device idle.
template <class... Parameters, class... Arguments>
void launch_rows(void (*kernel)(Parameters...), const RowGrid& rows, gpu::Launch launch,
                 Arguments&&... arguments) {
  if (rows.walks) {
    const unsigned resident = gpu::resident_blocks(kernel, launch.block.x, launch.shared_bytes);
    if (resident < rows.needed) launch.grid = resident;
  }
  gpu::launch(kernel, launch, static_cast<Arguments&&>(arguments)...);
}
inline RowGrid row_grid(const Output& out, int64_t rows, int64_t width, unsigned warps) {
  const size_t bytes = 8 * static_cast<size_t>(column_groups(width)) * sizeof(uint32_t);
  const int64_t needed = (rows + warps - 1) / warps;
  const bool walks = out.column_amax != nullptr;
  return {static_cast<unsigned>(needed), walks, walks && bytes <= largest_dynamic_shared ? bytes : 0};
}

OCTET_KERNELS_END
