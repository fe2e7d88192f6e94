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
#include "kernels/encode.cuh"

OCTET_KERNELS_BEGIN
namespace {

constexpr int tile_rows = byte_tile_rows, tile_columns = 64;
constexpr int threads = tile_rows / patch_rows * (tile_columns / patch_columns);
constexpr int lane_patches = tile_columns / patch_columns;
static_assert(lane_patches == 8 && threads == 256, "a warp's words of one column go to 32 different banks");

enum class Copies : uint8_t { Same, Different };  // the column copy's codes are the row copy's, or its own

// One copy's rule, with the scales that do not depend on the row.
struct Rule {
  const Coding& coding;
  Encoder made;
  float scales[8];

  __device__ __forceinline__ Rule(const EncodeArguments& args, const Coding& rule, int64_t c, Access access)
      : coding(rule), made{args.format, rule.counters != nullptr} {
    const float scale = coding.scale ? *coding.scale : 0.0f;
#pragma unroll
    for (float& s : scales) s = scale;
    if (coding.column_inverse_scale && c < args.source.columns) {
      load_up_to8(access, coding.column_inverse_scale + c, args.source.columns - c, scales);
#pragma unroll
      for (float& s : scales) s = __fdiv_rn(1.0f, s);
    }
  }

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
    return made.encode<rounding>(v, words);
  }
};

template <class T, octet::Rounding rounding, Copies copies>
__global__ void __launch_bounds__(threads) encode_kernel(EncodeArguments args, Tiling tiling) {
  GPU_SHARED(uint32_t, transposed, tile_columns * byte_tile_words);
  const int64_t rows = args.source.rows, columns = args.source.columns;
  const int64_t tile = blockIdx.x, r0 = tile / tiling.across * tile_rows,
                c0 = tile % tiling.across * tile_columns;
  const bool write_row = args.row && !(args.encode_row && *args.encode_row == 0);
  if (!write_row && !args.column) return;

  const Patch patch{static_cast<int>(threadIdx.x) / lane_patches,
                    static_cast<int>(threadIdx.x) % lane_patches, r0, c0};
  const int64_t r = r0 + patch_rows * patch.row, c = c0 + patch_columns * patch.column;

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

  if (args.column)
    store_transposed<tile_columns, threads>(args, patch, tiling.column_access, codes, transposed);

  const int64_t height = rows - r0 < tile_rows ? rows - r0 : tile_rows,
                width = columns - c0 < tile_columns ? columns - c0 : tile_columns;
  const auto elements = static_cast<unsigned>(height * width);
  if (copies == Copies::Same || write_row) add_counts(args.row_coding.counters, elements, row_rule.made);
  if (copies == Copies::Different && args.column)
    add_counts(args.column_coding.counters, elements, column_rule.made);
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
      .column_access = transposed_access(args)};
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
