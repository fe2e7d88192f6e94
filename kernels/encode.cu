// FP8 codes of a matrix, as it lies and transposed, from one read of it [cast.h].
//
//   value[r, c] = BF16(source[r, c] * column_factor[c]);  code[r, c] = encode(value[r, c] * scale)
//
// Bytes, BF16: 2 a value read, 1 written for each copy: floor 4 rows columns / bandwidth. Bound by memory;
// stochastic rounding adds some 70 integer instructions for every four values (Philox).
//
// A block makes the codes of a tile of 128 rows and 64 columns. A thread reads a patch of 4 rows and 8
// columns in whole 128-byte lines a row, writes the row codes, transposes the patch in registers into one
// word (four rows) a column and leaves the words in shared memory, from where they go out as 128 bytes a
// column.
#include <type_traits>

#include "base/random.h"
#include "kernels/block.h"
#include "kernels/byte_tile.cuh"
#include "kernels/cast.h"
#include "kernels/gpu.h"
#include "kernels/output.cuh"
#include "numerics/float8.h"

OCTET_KERNELS_BEGIN
namespace {

constexpr int tile_rows = byte_tile_rows, tile_columns = 64, patch_rows = 4, patch_columns = 8;
constexpr int threads = tile_rows / patch_rows * (tile_columns / patch_columns);
constexpr int column_words = byte_tile_words, lane_patches = tile_columns / patch_columns;
static_assert(patch_columns == vector_values, "a patch is eight values wide, as loads are");
static_assert(lane_patches == 8 && threads == 256, "a warp's words of one column go to 32 different banks");

enum class Copies : uint8_t { Same, Different };  // the column copy's codes are the row copy's, or its own

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

// One copy's rule, with the scales that do not depend on the row.
struct Rule {
  const Coding& coding;
  octet::Format format;
  float scales[8];
  unsigned saturated = 0, flushed = 0;

  __device__ __forceinline__ Rule(const EncodeArguments& args, const Coding& rule, int64_t c, Access access)
      : coding(rule), format(args.format) {
    const float scale = coding.scale ? *coding.scale : 0.0f;
#pragma unroll
    for (float& s : scales) s = scale;
    if (coding.column_inverse_scale && c < args.source.columns) {
      load_up_to8(access, coding.column_inverse_scale + c, args.source.columns - c, scales);
#pragma unroll
      for (float& s : scales) s = __fdiv_rn(1.0f, s);
    }
  }

  // `words`: for stochastic rounding.
  template <octet::Rounding rounding>
  __device__ __forceinline__ uint2 codes_of(const Piece& piece, const uint32_t (&words)[8]) {
    float v[8];
    unpack8(piece.bits, v);
    if (coding.row_factor) {
      const float factor = coding.row_factor[piece.row];
#pragma unroll
      for (float& x : v) x *= factor;
      unpack8(pack8(v), v);
    }
    if (coding.row_inverse_scale) {
      const float scale = __fdiv_rn(1.0f, coding.row_inverse_scale[piece.row]);
#pragma unroll
      for (float& x : v) x *= scale;
    } else {
#pragma unroll
      for (int i = 0; i < 8; ++i) v[i] *= scales[i];
    }
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
    if (coding.counters) count(v, codes);
    return codes;
  }

 private:
  // Values beyond the matrix are zero (or NaN, where their scale is) and count as neither.
  __device__ __forceinline__ void count(const float (&v)[8], uint2 codes) {
    const float max = max_of(format);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const uint32_t code = plain::code_of(i < 4 ? codes.x : codes.y, i % 4);
      saturated += fabsf(v[i]) > max ? 1 : 0;
      flushed += v[i] != 0.0f && (code & 0x7fu) == 0 ? 1 : 0;
    }
  }
};

// One atomic a block and counter. All threads.
__device__ __forceinline__ void add_counts(uint64_t* counters, unsigned elements, const Rule& rule) {
  if (!counters) return;
  GPU_SHARED(unsigned, of_block, 2);
  __syncthreads();  // readers of an earlier call are done
  if (threadIdx.x < 2) of_block[threadIdx.x] = 0;
  __syncthreads();
  const unsigned saturated = __reduce_add_sync(all_lanes, rule.saturated);
  const unsigned flushed = __reduce_add_sync(all_lanes, rule.flushed);
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

struct Tiling {
  int64_t across;        // tiles beside each other
  Access access;         // of the source, the factors and the row copy
  Access column_access;  // of the column copy
};

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

template <class T, octet::Rounding rounding, Copies copies>
__global__ void __launch_bounds__(threads) encode_kernel(EncodeArguments args, Tiling tiling) {
  GPU_SHARED(uint32_t, transposed, tile_columns * column_words);
  const int64_t rows = args.source.rows, columns = args.source.columns;
  const int64_t tile = blockIdx.x, r0 = tile / tiling.across * tile_rows,
                c0 = tile % tiling.across * tile_columns;
  const bool write_row = args.row && !(args.encode_row && *args.encode_row == 0);
  if (!write_row && !args.column) return;

  // A warp's threads: 8 patches beside each other, 4 below each other.
  const int patch_column = static_cast<int>(threadIdx.x) % lane_patches,
            patch_row = static_cast<int>(threadIdx.x) / lane_patches;
  const int64_t r = r0 + patch_rows * patch_row, c = c0 + patch_columns * patch_column;

  Piece pieces[patch_rows];
#pragma unroll
  for (int i = 0; i < patch_rows; ++i)
    pieces[i].row = r + i < rows ? r + i : rows - 1;  // one that may be read
  read_pieces<T>(args.source, {c, tiling.access}, r, pieces);

  Rule row_rule(args, args.row_coding, c, tiling.access);
  Rule column_rule(args, args.column_coding, c, tiling.access);
  uint2 codes[patch_rows];  // of the column copy
#pragma unroll
  for (int i = 0; i < patch_rows; ++i) {
    uint32_t words[8] = {};
    if constexpr (rounding == octet::Rounding::Stochastic)
      random_words(args.rounding_key, static_cast<uint64_t>(args.first + (r + i) * columns + c), words);
    if (copies == Copies::Same || write_row) codes[i] = row_rule.codes_of<rounding>(pieces[i], words);
    if (write_row && r + i < rows && c < columns)
      store_codes(tiling.access, args.row + (r + i) * columns + c, columns - c, codes[i]);
    if (copies == Copies::Different && args.column)
      codes[i] = column_rule.codes_of<rounding>(pieces[i], words);
  }

  if (args.column) {
    uint32_t low[4], high[4];
    transpose4(codes[0].x, codes[1].x, codes[2].x, codes[3].x, low);
    transpose4(codes[0].y, codes[1].y, codes[2].y, codes[3].y, high);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      transposed[word_of(patch_columns * patch_column + j, patch_row)] = low[j];
      transposed[word_of(patch_columns * patch_column + 4 + j, patch_row)] = high[j];
    }
    __syncthreads();
    constexpr int quads = column_words / 4;  // threads a column, 16 rows each
#pragma unroll
    for (int j = static_cast<int>(threadIdx.x) / quads; j < tile_columns; j += threads / quads) {
      const int quad = static_cast<int>(threadIdx.x) % quads;
      const int64_t first = r0 + 16 * quad;
      if (c0 + j >= columns || first >= rows) continue;
      const uint4 sixteen = gpu::load(reinterpret_cast<const uint4*>(transposed + word_of(j, 4 * quad)));
      uint8_t* const to = args.column + (c0 + j) * rows + first;
      if (tiling.column_access == Access::Vectors) {
        gpu::store(reinterpret_cast<uint4*>(to), sixteen);
      } else {
        store_codes(Access::Single, to, rows - first, make_uint2(sixteen.x, sixteen.y));
        store_codes(Access::Single, to + 8, rows - first - 8, make_uint2(sixteen.z, sixteen.w));
      }
    }
  }

  const int64_t height = rows - r0 < tile_rows ? rows - r0 : tile_rows,
                width = columns - c0 < tile_columns ? columns - c0 : tile_columns;
  const auto elements = static_cast<unsigned>(height * width);
  if (copies == Copies::Same || write_row) add_counts(args.row_coding.counters, elements, row_rule);
  if (copies == Copies::Different && args.column)
    add_counts(args.column_coding.counters, elements, column_rule);
}

template <class T, octet::Rounding rounding>
void launch_encode(const EncodeArguments& args, Copies copies) {
  const int64_t rows = args.source.rows, columns = args.source.columns;
  const Tiling tiling{
      .across = (columns + tile_columns - 1) / tile_columns,
      .access = in_vectors(columns, args.source.values, args.source.column_factor, args.row,
                           args.row_coding.column_inverse_scale, args.column_coding.column_inverse_scale)
                    ? Access::Vectors
                    : Access::Single,
      .column_access = rows % 16 == 0 && is_aligned16(args.column) ? Access::Vectors : Access::Single};
  const int64_t down = (rows + tile_rows - 1) / tile_rows;
  gpu::launch(copies == Copies::Same ? encode_kernel<T, rounding, Copies::Same>
                                     : encode_kernel<T, rounding, Copies::Different>,
              {.grid = static_cast<unsigned>(tiling.across * down),
               .block = static_cast<unsigned>(threads),
               .stream = args.stream},
              args, tiling);
}

}  // namespace

void encode(const EncodeArguments& args) {
  if (args.source.rows <= 0 || args.source.columns <= 0 || (!args.row && !args.column)) return;
  const Copies copies = args.column && !args.column_is_row ? Copies::Different : Copies::Same;
  with_storage(args.source.storage, [&](auto storage) {
    using T = decltype(storage);
    if (args.rounding == octet::Rounding::Stochastic) {
      launch_encode<T, octet::Rounding::Stochastic>(args, copies);
    } else {
      launch_encode<T, octet::Rounding::Nearest>(args, copies);
    }
  });
}

OCTET_KERNELS_END
