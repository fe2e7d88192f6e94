// Transposing a matrix of bytes [transpose.h].
//
// Bytes: each read once and written once; floor 2 rows columns / bandwidth. Bound by memory.
//
// A block moves a tile of 128 rows and 128 columns. A thread reads a patch of 4 rows and 16 columns, in whole
// 128-byte lines a row, transposes it in registers into one word (four rows) a column and leaves the words in
// shared memory, from where they go out as 128 bytes a column.
#include "kernels/transpose.h"

#include "kernels/byte_tile.cuh"
#include "kernels/gpu.h"
#include "kernels/instructions.h"
#include "kernels/values.cuh"

OCTET_KERNELS_BEGIN
namespace {

constexpr int tile_rows = byte_tile_rows, tile_columns = 128, patch_rows = 4, patch_columns = 16;
constexpr int patches_across = tile_columns / patch_columns;
constexpr int threads = tile_rows / patch_rows * patches_across;
static_assert(patches_across == 8 && threads == 256, "a warp's words of one column go to 32 different banks");

struct Tiling {
  int64_t across;         // tiles beside each other
  Access codes, written;  // 16 bytes at a time, or one by one
};

// Bytes beyond the end are zero.
__device__ __forceinline__ uint4 load_up_to16(Access access, const uint8_t* from, int64_t count) {
  if (access == Access::Vectors) return gpu::load(reinterpret_cast<const uint4*>(from));
  uint32_t words[4] = {};
#pragma unroll
  for (int i = 0; i < 16; ++i) {
    if (i < count) words[i / 4] |= static_cast<uint32_t>(from[i]) << 8 * (i % 4);
  }
  return make_uint4(words[0], words[1], words[2], words[3]);
}
__device__ __forceinline__ void store_up_to16(Access access, uint8_t* to, int64_t count, uint4 bytes) {
  if (access == Access::Vectors) {
    gpu::store(reinterpret_cast<uint4*>(to), bytes);
    return;
  }
  const uint32_t words[4] = {bytes.x, bytes.y, bytes.z, bytes.w};
#pragma unroll
  for (int i = 0; i < 16; ++i) {
    if (i < count) to[i] = static_cast<uint8_t>(words[i / 4] >> 8 * (i % 4));
  }
}

__global__ void __launch_bounds__(threads) transpose_kernel(TransposeArguments args, Tiling tiling) {
  GPU_SHARED(uint32_t, transposed, tile_columns * byte_tile_words);
  const int64_t tile = blockIdx.x, r0 = tile / tiling.across * tile_rows,
                c0 = tile % tiling.across * tile_columns;
  const int thread = static_cast<int>(threadIdx.x);
  const int patch_column = thread % patches_across, patch_row = thread / patches_across;
  const int64_t r = r0 + patch_rows * patch_row, c = c0 + patch_columns * patch_column;

  uint4 rows[patch_rows];
#pragma unroll
  for (int i = 0; i < patch_rows; ++i) {
    rows[i] = r + i < args.rows && c < args.columns
                  ? load_up_to16(tiling.codes, args.codes + (r + i) * args.columns + c, args.columns - c)
                  : make_uint4(0, 0, 0, 0);
  }
  uint32_t words[4][4];
  transpose4(rows[0].x, rows[1].x, rows[2].x, rows[3].x, words[0]);
  transpose4(rows[0].y, rows[1].y, rows[2].y, rows[3].y, words[1]);
  transpose4(rows[0].z, rows[1].z, rows[2].z, rows[3].z, words[2]);
  transpose4(rows[0].w, rows[1].w, rows[2].w, rows[3].w, words[3]);
#pragma unroll
  for (int j = 0; j < patch_columns; ++j)
    transposed[byte_tile_word<patch_columns>(patch_columns * patch_column + j, patch_row)] =
        words[j / 4][j % 4];
  __syncthreads();

  constexpr int quads = byte_tile_words / 4;  // threads a column, 16 rows each
#pragma unroll
  for (int j = thread / quads; j < tile_columns; j += threads / quads) {
    const int quad = thread % quads;
    const int64_t first = r0 + 16 * quad;
    if (c0 + j >= args.columns || first >= args.rows) continue;
    const uint4 sixteen =
        gpu::load(reinterpret_cast<const uint4*>(transposed + byte_tile_word<patch_columns>(j, 4 * quad)));
    store_up_to16(tiling.written, args.out + (c0 + j) * args.rows + first, args.rows - first, sixteen);
  }
}

}  // namespace

void transpose(const TransposeArguments& args) {
  if (args.rows <= 0 || args.columns <= 0) return;
  const auto access = [](const uint8_t* bytes, int64_t width) {
    return width % 16 == 0 && is_aligned16(bytes) ? Access::Vectors : Access::Single;
  };
  const Tiling tiling{.across = (args.columns + tile_columns - 1) / tile_columns,
                      .codes = access(args.codes, args.columns),
                      .written = access(args.out, args.rows)};
  const int64_t down = (args.rows + tile_rows - 1) / tile_rows;
  gpu::launch(transpose_kernel,
              {.grid = static_cast<unsigned>(tiling.across * down),
               .block = static_cast<unsigned>(threads),
               .stream = args.stream},
              args, tiling);
}

OCTET_KERNELS_END
