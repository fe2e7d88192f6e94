// Scales of blocks of 128 values and the codes made with them [cast.h, numerics/block_scales.h].
//
//   scale = fine_scale(amax of a row's, a column's or all values of a tile);  code = encode(BF16(value) *
//   scale)
//
// Bytes, BF16: 2 a value read, 1 written for each copy, 4 for every scale: floor 4.06 rows columns /
// bandwidth. Bound by memory.
//
// A block has a tile of 128 rows and 128 columns, which is what its scales depend on. Threads keep their
// patches of it in registers while the amaxes meet in shared memory; codes go out as in encode.cu.
#include "kernels/encode.cuh"
#include "numerics/block_scales.h"
#include "numerics/scaling.h"

OCTET_KERNELS_BEGIN
namespace {

constexpr int side = static_cast<int>(scale_block);
constexpr int threads = side / patch_rows * (side / patch_columns);
static_assert(side == byte_tile_rows && threads == 512,
              "two warps beside each other, eight below each other");

__device__ __forceinline__ uint32_t shared_with(uint32_t largest, int lanes) {
  return larger_of(largest, __shfl_xor_sync(all_lanes, largest, lanes));
}

// Amaxes of the tile's rows and columns, in shared memory that is zero. All threads.
struct TileAmaxes {
  uint32_t *rows, *columns;

  __device__ __forceinline__ void raise(const Piece (&pieces)[patch_rows], const Patch& patch) const {
    const unsigned lane = threadIdx.x % 32;
    uint32_t of_columns[patch_columns] = {};
#pragma unroll
    for (int i = 0; i < patch_rows; ++i) {
      const uint4 bits = pieces[i].bits;
      const uint32_t pairs[4] = {bits.x, bits.y, bits.z, bits.w};
      uint32_t of_row = 0;
#pragma unroll
      for (int j = 0; j < patch_columns; ++j) {
        const uint32_t magnitude = j % 2 ? high_magnitude(pairs[j / 2]) : low_magnitude(pairs[j / 2]);
        of_row = larger_of(of_row, magnitude);
        of_columns[j] = larger_of(of_columns[j], magnitude);
      }
      of_row = shared_with(shared_with(shared_with(of_row, 1), 2), 4);  // 8 patches beside each other
      if (lane % 8 == 0) atomicMax(rows + patch_rows * patch.row + i, of_row);
    }
#pragma unroll
    for (int j = 0; j < patch_columns; ++j) {
      const uint32_t of_column = shared_with(shared_with(of_columns[j], 8), 16);  // 4 below each other
      if (lane < 8) atomicMax(columns + patch_columns * patch.column + j, of_column);
    }
  }
};

// From the amax of a line of the tile (or of all of it) to its scale; the inverse goes to its place.
struct Line {
  bool is_row;
  int number;
};
__device__ __forceinline__ float decide_line(const BlockwiseArguments& args, const Patch& tile,
                                             const Line& line, uint32_t amax) {
  const int64_t rows = args.source.rows, columns = args.source.columns;
  const int64_t down = tile.first_row / scale_block, across = tile.first_column / scale_block;
  const uint32_t bits = amax < infinity_bits ? amax : infinity_bits;
  const float inverse = inverse_or_nan(fine_scale(args.cast, __uint_as_float(bits)), bits);
  float* const to = line.is_row ? args.row_inverse_scale : args.column_inverse_scale;
  if (to && args.squares) {
    const int64_t at =
        line.is_row ? down * square_pitch(columns) + across : across * square_pitch(rows) + down;
    if (line.number == 0) to[at] = inverse;
  } else if (to) {
    const int64_t at = (line.is_row ? tile.first_row : tile.first_column) + line.number;
    if (at < (line.is_row ? rows : columns))
      to[(line.is_row ? across * rows : down * columns) + at] = inverse;
  }
  return __fdiv_rn(1.0f, inverse);
}

template <class T, octet::Rounding rounding>
__global__ void __launch_bounds__(threads) blockwise_kernel(BlockwiseArguments args, Tiling tiling) {
  GPU_SHARED(uint32_t, transposed, side * byte_tile_words);
  GPU_SHARED(uint32_t, row_amaxes, side);
  GPU_SHARED(uint32_t, column_amaxes, side);
  GPU_SHARED(float, row_scales, side);
  GPU_SHARED(float, column_scales, side);
  const int64_t rows = args.source.rows, columns = args.source.columns, tile = blockIdx.x;
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32;
  const Patch patch{warp / 2 * 4 + thread % 32 / 8, warp % 2 * 8 + thread % 8, tile / tiling.across * side,
                    tile % tiling.across * side};
  const int64_t r = patch.first_row + patch_rows * patch.row,
                c = patch.first_column + patch_columns * patch.column;

  if (thread < side) row_amaxes[thread] = column_amaxes[thread] = 0;
  __syncthreads();
  Piece pieces[patch_rows];
  read_pieces<T>(args.source, {c, tiling.access}, r, pieces);
  TileAmaxes{row_amaxes, column_amaxes}.raise(pieces, patch);
  __syncthreads();
  const float largest = block_max_magnitude(thread < side ? __uint_as_float(row_amaxes[thread]) : 0.0f);
  if (thread == 0 && args.amax) raise_amax(reinterpret_cast<float*>(args.amax), largest);
  if (thread < 2 * side) {
    const Line line{thread < side, thread % side};
    const uint32_t amax = args.squares  ? __float_as_uint(largest)
                          : line.is_row ? row_amaxes[line.number]
                                        : column_amaxes[line.number];
    (line.is_row ? row_scales : column_scales)[line.number] = decide_line(args, patch, line, amax);
  }
  __syncthreads();

  const bool column_is_row = args.squares && args.row;
  Encoder row_made{args.cast.format, args.counters != nullptr},
      column_made{args.cast.format, args.counters != nullptr && !args.row};  // counted once
  uint2 codes[patch_rows];                                                   // of the column copy
#pragma unroll
  for (int i = 0; i < patch_rows; ++i) {
    uint32_t words[8] = {};
    if constexpr (rounding == octet::Rounding::Stochastic)
      random_words(args.rounding_key, static_cast<uint64_t>((r + i) * columns + c), words);
    float v[8], scaled[8];
    unpack8(pieces[i].bits, v);
    if (args.row) {
      const float scale = row_scales[patch_rows * patch.row + i];
#pragma unroll
      for (int j = 0; j < 8; ++j) scaled[j] = v[j] * scale;
      codes[i] = row_made.encode<rounding>(scaled, words);
      if (r + i < rows && c < columns)
        store_codes(tiling.access, args.row + (r + i) * columns + c, columns - c, codes[i]);
    }
    if (args.column && !column_is_row) {
#pragma unroll
      for (int j = 0; j < 8; ++j) scaled[j] = v[j] * column_scales[patch_columns * patch.column + j];
      codes[i] = column_made.encode<rounding>(scaled, words);
    }
  }
  if (args.column) store_transposed<side, threads>(args, patch, tiling.column_access, codes, transposed);

  const int64_t height = rows - patch.first_row < side ? rows - patch.first_row : side,
                width = columns - patch.first_column < side ? columns - patch.first_column : side;
  add_counts(args.counters, static_cast<unsigned>(height * width), args.row ? row_made : column_made);
}

}  // namespace

void cast_blockwise(const BlockwiseArguments& args) {
  const int64_t rows = args.source.rows, columns = args.source.columns;
  if (rows <= 0 || columns <= 0 || (!args.row && !args.column)) return;
  const Tiling tiling{.across = scale_blocks(columns),
                      .access = in_vectors(columns, args.source.values, args.source.column_factor, args.row)
                                    ? Access::Vectors
                                    : Access::Single,
                      .column_access = transposed_access(args)};
  with_storage(args.source.storage, [&](auto storage) {
    using T = decltype(storage);
    gpu::launch(args.cast.rounding == octet::Rounding::Stochastic
                    ? blockwise_kernel<T, octet::Rounding::Stochastic>
                    : blockwise_kernel<T, octet::Rounding::Nearest>,
                {.grid = static_cast<unsigned>(tiling.across * scale_blocks(rows)),
                 .block = static_cast<unsigned>(threads),
                 .stream = args.stream},
                args, tiling);
  });
}

OCTET_KERNELS_END
