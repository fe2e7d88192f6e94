#include "device/scales.h"

#include <fmt/format.h>

#include "base/error.h"

namespace octet {

Shape scale_shape(ScaleGranularity granularity, int64_t outer, int64_t inner) {
  switch (granularity) {
    case ScaleGranularity::Tensor:
      return {1};
    case ScaleGranularity::Outer:
      return {outer};
    case ScaleGranularity::Vectors:
      return {scale_blocks(inner), outer};
    default:
      return {scale_blocks(outer), square_pitch(inner)};
  }
}

namespace {

InverseScales fine_scales(const float* values, ScaleGranularity granularity, int64_t outer, int64_t inner) {
  switch (granularity) {
    case ScaleGranularity::Vectors:
      return vector_scales(values, outer);
    case ScaleGranularity::Squares:
      return square_scales(values, inner);
    default:
      return {.values = values, .row_stride = 1};
  }
}

void check_copy(const char* copy, const Tensor& codes, const Tensor& scales, const Shape& expected) {
  if (codes.empty() ? scales.empty() : scales.dtype == DType::F32 && scales.shape == expected) return;
  throw Error(ExitCode::Internal, fmt::format("cast: the {} copy has scales of blocks {}, expected {}", copy,
                                              scales.empty() ? "of no shape" : to_string(scales.shape),
                                              codes.empty() ? "none" : to_string(expected)));
}

}  // namespace

InverseScales inverse_scales(const Operand& codes) {
  if (codes.granularity == ScaleGranularity::Tensor) return {.values = codes.inverse_scale};
  return fine_scales(codes.inverse_scale, codes.granularity, codes.values.rows(), codes.values.columns());
}

CastScales cast_scales(const CastTarget& target, int64_t rows, int64_t columns) {
  CastScales scales;
  if (!target.row_inverse_scale.empty())
    scales.row = fine_scales(target.row_inverse_scale.as<float>(), target.granularity, rows, columns);
  if (!target.column_inverse_scale.empty())
    scales.column =
        transposed(fine_scales(target.column_inverse_scale.as<float>(), target.granularity, columns, rows));
  if (target.row_inverse_scale.empty()) scales.row = scales.column;
  if (target.column_inverse_scale.empty()) scales.column = scales.row;
  return scales;
}

bool copies_differ(const CastTarget& target) {
  return !target.row_inverse_scale.empty() && !target.column_inverse_scale.empty() &&
         target.granularity != ScaleGranularity::Squares;
}

bool in_blocks(const CastTarget& target) {
  return is_blocks(target.granularity) && (!target.row.empty() || !target.column.empty());
}

void check_blocks(const CastTarget& target, int64_t rows, int64_t columns) {
  if (!target.row_factor.empty()) throw Error(ExitCode::Internal, "cast: row factors with scales of blocks");
  check_copy("row", target.row, target.row_inverse_scale, scale_shape(target.granularity, rows, columns));
  check_copy("column", target.column, target.column_inverse_scale,
             scale_shape(target.granularity, columns, rows));
}

}  // namespace octet
