#include "device/cast_checks.h"

#include <fmt/format.h>

#include "base/error.h"
#include "device/scales.h"

namespace octet {
namespace {

[[noreturn]] void refuse(const std::string& what) { throw Error(ExitCode::Internal, what); }

void check_amax(const char* operation, const Tensor& amax) {
  if (amax.dtype != DType::F32 || amax.elements() != 1)
    refuse(fmt::format("{}: the amax is {} of {}, expected 1 of F32", operation, amax.elements(),
                       name_of(amax.dtype)));
}

}  // namespace

void check_part(const CastOperation& op) {
  if (op.amax.empty()) {
    if (op.first != 0) refuse("cast: a part of a tensor without the amax of the whole");
    return;
  }
  check_amax("cast", op.amax);
  const CastTarget& out = op.out;
  for (const Tensor* other : {&out.high, &out.row_inverse_scale, &out.column_inverse_scale, &out.row_factor,
                              &out.channel_weight_amax, &op.column_factor})
    if (!other->empty()) refuse("cast: with a known amax there are codes of one scale and nothing else");
  if (op.first != 0 && !out.column.empty()) refuse("cast: a part of a tensor has row codes and nothing else");
}

void check_channels(const CastTarget& target, int64_t columns) {
  if (!smooths(target)) return;
  const Tensor& weight = target.channel_weight_amax;
  if (weight.dtype != DType::F32 || weight.elements() != columns)
    refuse(fmt::format("cast: {} of {} maxima of the weight's columns for {} columns", weight.elements(),
                       name_of(weight.dtype), columns));
  if (target.column_inverse_scale.dtype != DType::F32 || target.column_inverse_scale.elements() != columns ||
      !target.row_inverse_scale.empty() || !target.row_factor.empty() ||
      target.granularity != ScaleGranularity::Outer)
    refuse("cast: smoothed columns have one scale a column, for both copies, and no other");
  if (!(target.channel_exponent > 0 && target.channel_exponent < 1))
    refuse(fmt::format("cast: columns are smoothed with the exponent {}", target.channel_exponent));
}

void check(const MeasureAmax& op) {
  if (op.source.dtype != DType::F32 && op.source.dtype != DType::BF16)
    refuse(fmt::format("measure_amax: source is {}", name_of(op.source.dtype)));
  check_amax("measure_amax", op.amax);
}

void check(const TransposeCodes& op) {
  const Tensor &from = op.codes, &to = op.transposed;
  if (size_of(from.dtype) != 1 || size_of(to.dtype) != 1 || from.rows() != to.columns() ||
      from.columns() != to.rows())
    refuse(fmt::format("transpose_codes: {} {} to {} {}", name_of(from.dtype), to_string(from.shape),
                       name_of(to.dtype), to_string(to.shape)));
}

}  // namespace octet
