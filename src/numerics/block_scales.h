// Scales of blocks of 128 values: how many there are, and how they lie.
//
//   vectors  one a 1 x 128 values of a row      [blocks of a row, rows]
//   squares  one a 128 x 128 values             [blocks of rows, blocks of a row, rounded up to 4]
//
// These are the layouts that cuBLASLt reads (VEC128_32F, BLK128x128_32F), so that nothing is copied. Blocks
// at the edges are smaller. What the rounding up adds is not written, and not read. [cuBLAS documentation,
// "128-element 1D and 128x128 2D block scaling for FP8 data types"]
#pragma once
#include <cstdint>

#include "base/platform.h"
#include "numerics/observation.h"

namespace octet {

inline constexpr int64_t scale_block = 128;

OCTET_HD int64_t scale_blocks(int64_t values) { return (values + scale_block - 1) / scale_block; }
OCTET_HD int64_t square_pitch(int64_t columns) { return (scale_blocks(columns) + 3) / 4 * 4; }

// Where the scales of a matrix [rows, columns] are, and those of a matrix whose transpose they belong to.
OCTET_HD InverseScales vector_scales(const float* values, int64_t rows) {
  return {values, 1, scale_block, 1, rows};
}
OCTET_HD InverseScales square_scales(const float* values, int64_t columns) {
  return {values, scale_block, scale_block, square_pitch(columns), 1};
}
OCTET_HD InverseScales transposed(const InverseScales& s) {
  return {s.values, s.column_block, s.row_block, s.column_stride, s.row_stride};
}

}  // namespace octet
