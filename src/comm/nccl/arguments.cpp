#include "comm/nccl/arguments.h"

#include <fmt/format.h>

#include "base/error.h"

namespace octet {

ncclDataType_t nccl_reduced_type(DType dtype, Reduction reduction) {
  if (reduction == Reduction::Sum) {
    if (dtype == DType::F32) return ncclFloat32;
    if (dtype == DType::F64) return ncclFloat64;
    if (dtype == DType::BF16) return ncclBfloat16;
    if (dtype == DType::U64) return ncclUint64;
  } else if (dtype == DType::U32) {
    return ncclUint32;
  }
  throw Error(ExitCode::Internal,
              fmt::format("NCCL: no {} of {} over ranks", reduction == Reduction::Sum ? "sum" : "maximum",
                          name_of(dtype)));
}

ncclRedOp_t nccl_operator(Reduction reduction) { return reduction == Reduction::Sum ? ncclSum : ncclMax; }

uint64_t reduce_scatter_traffic(uint64_t bytes, int ranks) {
  const auto count = static_cast<uint64_t>(ranks);
  return bytes / count * (count - 1);
}
uint64_t all_reduce_traffic(uint64_t bytes, int ranks) {
  const auto count = static_cast<uint64_t>(ranks);
  return 2 * bytes * (count - 1) / count;
}

}  // namespace octet
