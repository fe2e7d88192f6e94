#include "device/observation.h"

#include <fmt/format.h>

#include "base/error.h"

namespace octet {
namespace {

bool is_storage(const Tensor& t) { return t.dtype == DType::F32 || t.dtype == DType::BF16; }
bool is_codes(const Tensor& t) { return t.dtype == DType::E4M3 || t.dtype == DType::E5M2; }
bool holds(const Tensor& t, DType dtype, int64_t elements) {
  return t.dtype == dtype && t.elements() >= elements;
}
std::string describe(const Tensor& t) { return fmt::format("{} {}", name_of(t.dtype), to_string(t.shape)); }

void require(bool right, const char* operation, const Tensor& x, const Tensor& result) {
  if (!right)
    throw Error(ExitCode::Internal, fmt::format("{}: {} into {}, or its scratch or columns do not fit",
                                                operation, describe(x), describe(result)));
}

}  // namespace

TensorStatistics statistics_of(const Tensor& x) {
  TensorStatistics op;
  op.x = x;
  op.columns = x.columns();
  op.context = x.rows();
  return op;
}

void check(const TensorStatistics& op) {
  require((is_storage(op.x) || is_codes(op.x)) && op.first >= 0 && op.columns > 0 &&
              op.first + op.columns <= op.x.columns() && op.context > 0 && op.x.rows() % op.context == 0 &&
              holds(op.row_sums, DType::F64, 3 * op.x.rows()) && holds(op.sums, DType::F64, 4) &&
              holds(op.extremes, DType::U32, 2),
          "tensor_statistics", op.x, op.sums);
}
void check(const ChannelAmax& op) {
  require(is_storage(op.x) && op.amax.dtype == DType::F32 && op.amax.elements() == op.x.columns(),
          "channel_amax", op.x, op.amax);
}
void check(const RowCosines& op) {
  require((is_storage(op.x) || is_codes(op.x)) && op.cosines.dtype == DType::F32 &&
              2 * op.cosines.elements() == op.x.rows(),
          "row_cosines", op.x, op.cosines);
}
void check(const CastError& op) {
  require(is_storage(op.source) && is_codes(op.codes) && op.codes.rows() == op.source.rows() &&
              op.codes.columns() == op.source.columns() &&
              holds(op.row_sums, DType::F64, 2 * op.source.rows()) && holds(op.sums, DType::F64, 2),
          "cast_error", op.source, op.codes);
}

}  // namespace octet
