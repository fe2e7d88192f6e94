// What kernels that make codes of a matrix share: a thread's patch of 4 rows and 8 columns, the codes of
// eight neighbours and what became of them, and the way of codes into the transpose.
#pragma once
#include <type_traits>

#include "base/random.h"
#include "kernels/block.h"
#include "kernels/byte_tile.cuh"
#include "kernels/cast.h"
#include "kernels/gpu.h"
#include "kernels/output.cuh"
#include "numerics/float8.h"

OCTET_KERNELS_BEGIN

inline constexpr uint32_t infinity_bits = 0x7f800000u;

// A scale was made of finite values, or a NaN tells that it was not.
__device__ __forceinline__ float inverse_or_nan(float scale, uint32_t amax) {
  return amax < infinity_bits ? __fdiv_rn(1.0f, scale) : __uint_as_float(0x7fc00000u);
}

inline constexpr int patch_rows = 4, patch_columns = 8;
static_assert(patch_columns == vector_values, "a patch is eight values wide, as loads are");

__device__ __forceinline__ int word_of(int column, int w) { return byte_tile_word<patch_columns>(column, w); }

// The words of eight neighbouring elements (numerics: random_bits): a window of three blocks of four.
__device__ __forceinline__ void random_words(uint64_t key, uint64_t element, uint32_t (&words)[8]) {
  const uint64_t block = element / 4;
  const Random4 first = philox(key, block), second = philox(key, block + 1);
  const Random4 third = element % 4 ? philox(key, block + 2) : Random4{};
  const uint32_t all[12] = {first.x,  first.y,  first.z, first.w, second.x, second.y,
                            second.z, second.w, third.x, third.y, third.z,  third.w};
  uint32_t even[9];  // from an even element on
#pragma unroll
  for (int i = 0; i < 9; ++i) even[i] = element & 2 ? all[i + 2] : all[i];
#pragma unroll
  for (int i = 0; i < 8; ++i) words[i] = element & 1 ? even[i + 1] : even[i];
}

// Eight neighbours of a row, rounded to BF16 and packed.
struct Piece {
  uint4 bits;
  int64_t row;
};

// Makes codes of eight scaled values, and counts. Values beyond the matrix are zero (or NaN, where their
// scale is) and count as neither.
struct Encoder {
  octet::Format format;
  bool counts;
  unsigned saturated = 0, flushed = 0;

  // `words`: for stochastic rounding.
  template <octet::Rounding rounding>
  __device__ __forceinline__ uint2 encode(const float (&v)[8], const uint32_t (&words)[8]) {
    uint2 codes;
    if constexpr (rounding == octet::Rounding::Stochastic) {
      uint8_t bytes[8];
#pragma unroll
      for (int i = 0; i < 8; ++i) bytes[i] = encode_stochastic(format, v[i], words[i]);
      codes = make_uint2(plain::join(bytes[0], bytes[1], bytes[2], bytes[3]),
                         plain::join(bytes[4], bytes[5], bytes[6], bytes[7]));
    } else {
      codes = make_uint2(encode_x4(format, make_float4(v[0], v[1], v[2], v[3])),
                         encode_x4(format, make_float4(v[4], v[5], v[6], v[7])));
    }
    if (!counts) return codes;
    const float max = max_of(format);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const uint32_t code = plain::code_of(i < 4 ? codes.x : codes.y, i % 4);
      saturated += fabsf(v[i]) > max ? 1 : 0;
      flushed += v[i] != 0.0f && (code & 0x7fu) == 0 ? 1 : 0;
    }
    return codes;
  }
};

// One atomic a block and counter. All threads.
__device__ __forceinline__ void add_counts(uint64_t* counters, unsigned elements, const Encoder& made) {
  if (!counters) return;
  GPU_SHARED(unsigned, of_block, 2);
  __syncthreads();  // readers of an earlier call are done
  if (threadIdx.x < 2) of_block[threadIdx.x] = 0;
  __syncthreads();
  const unsigned saturated = __reduce_add_sync(all_lanes, made.saturated);
  const unsigned flushed = __reduce_add_sync(all_lanes, made.flushed);
  if (threadIdx.x % 32 == 0) {
    atomicAdd(of_block, saturated);
    atomicAdd(of_block + 1, flushed);
  }
  __syncthreads();
  if (threadIdx.x != 0) return;
  static_assert(sizeof(unsigned long long) == sizeof(uint64_t));
  auto* const to = reinterpret_cast<unsigned long long*>(counters);
  atomicAdd(to, elements);
  if (of_block[0]) atomicAdd(to + 1, of_block[0]);
  if (of_block[1]) atomicAdd(to + 2, of_block[1]);
}

struct Place {
  int64_t column;
  Access access;
};
// The pieces of rows r .. r + 3; zeros beyond the matrix. All loads are issued before the first is used.
template <class T>
__device__ __forceinline__ void read_pieces(const CastSource& source, const Place& at, int64_t r,
                                            Piece (&pieces)[patch_rows]) {
  const int64_t c = at.column, columns = source.columns;
  const T* const from = static_cast<const T*>(source.values) + r * columns + c;
  if constexpr (std::is_same_v<T, BFloat16>) {
    if (at.access == Access::Vectors && !source.column_factor) {  // as they are
#pragma unroll
      for (int i = 0; i < patch_rows; ++i) {
        pieces[i].bits = r + i < source.rows && c < columns
                             ? gpu::load(reinterpret_cast<const uint4*>(from + i * columns))
                             : make_uint4(0, 0, 0, 0);
      }
      return;
    }
  }
  float v[patch_rows][8] = {};
#pragma unroll
  for (int i = 0; i < patch_rows; ++i) {
    if (r + i < source.rows && c < columns) load_up_to8(at.access, from + i * columns, columns - c, v[i]);
  }
  if (source.column_factor && c < columns) {
    float factors[8];
    load_up_to8(at.access, source.column_factor + c, columns - c, factors);
#pragma unroll
    for (auto& values : v) {
#pragma unroll
      for (int i = 0; i < 8; ++i) values[i] *= factors[i];
    }
  }
#pragma unroll
  for (int i = 0; i < patch_rows; ++i) pieces[i].bits = pack8(v[i]);
}

// A thread's patch among those of a tile, and the tile's first value. A warp's patches: 8 beside each other,
// 4 below each other, so that its words of one column go to 32 different banks.
struct Patch {
  int row, column;
  int64_t first_row, first_column;
};
// A tile's codes on their way into the transpose: patches leave words (four rows of a column) in shared
// memory, from where they go out as 128 bytes a column. All threads; `transposed` has tile_columns *
// byte_tile_words words.
template <int tile_columns, int threads, class Arguments>
__device__ __forceinline__ void store_transposed(const Arguments& args, const Patch& patch, Access access,
                                                 const uint2 (&codes)[patch_rows], uint32_t* transposed) {
  uint32_t low[4], high[4];
  transpose4(codes[0].x, codes[1].x, codes[2].x, codes[3].x, low);
  transpose4(codes[0].y, codes[1].y, codes[2].y, codes[3].y, high);
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    transposed[word_of(patch_columns * patch.column + j, patch.row)] = low[j];
    transposed[word_of(patch_columns * patch.column + 4 + j, patch.row)] = high[j];
  }
  __syncthreads();
  const int64_t rows = args.source.rows, columns = args.source.columns;
  constexpr int quads = byte_tile_words / 4;  // threads a column, 16 rows each
#pragma unroll
  for (int j = static_cast<int>(threadIdx.x) / quads; j < tile_columns; j += threads / quads) {
    const int quad = static_cast<int>(threadIdx.x) % quads;
    const int64_t first = patch.first_row + 16 * quad;
    if (patch.first_column + j >= columns || first >= rows) continue;
    const uint4 sixteen = gpu::load(reinterpret_cast<const uint4*>(transposed + word_of(j, 4 * quad)));
    uint8_t* const to = args.column + (patch.first_column + j) * rows + first;
    if (access == Access::Vectors) {
      gpu::store(reinterpret_cast<uint4*>(to), sixteen);
    } else {
      store_codes(Access::Single, to, rows - first, make_uint2(sixteen.x, sixteen.y));
      store_codes(Access::Single, to + 8, rows - first - 8, make_uint2(sixteen.z, sixteen.w));
    }
  }
}

// How a tiling of a matrix is read and written.
struct Tiling {
  int64_t across;        // tiles beside each other
  Access access;         // of the source, the factors and the row copy
  Access column_access;  // of the column copy
};
template <class Arguments>
Access transposed_access(const Arguments& args) {
  return args.source.rows % 16 == 0 && is_aligned16(args.column) ? Access::Vectors : Access::Single;
}

OCTET_KERNELS_END
