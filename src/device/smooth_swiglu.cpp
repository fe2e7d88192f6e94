#include "device/smooth_swiglu.h"

#include <fmt/format.h>

#include "base/error.h"
#include "device/scales.h"

namespace octet {

CastTarget smooth_swiglu_target(CastTarget out, SmoothSwiGLU mode) {
  if ((out.row.empty() && out.column.empty()) || is_blocks(out.granularity)) return out;
  if (smooths(out)) {
    if (mode != SmoothSwiGLU::None) throw Error(ExitCode::Internal, "swiglu: smoothed in two ways");
    return out;
  }
  const bool by_row = mode == SmoothSwiGLU::Token || (mode == SmoothSwiGLU::Dual && !out.row.empty());
  const bool by_column = mode == SmoothSwiGLU::Channel || (mode == SmoothSwiGLU::Dual && !out.column.empty());
  if ((by_row && out.row_inverse_scale.empty()) || (by_column && out.column_inverse_scale.empty())) {
    throw Error(ExitCode::Internal,
                fmt::format("swiglu: no {} scales to write", by_row ? "token" : "channel"));
  }
  if (mode == SmoothSwiGLU::BF16) throw Error(ExitCode::Internal, "swiglu: codes wanted in mode bf16");
  if (!by_row) out.row_inverse_scale = {};
  if (!by_column) out.column_inverse_scale = {};
  return out;
}

}  // namespace octet
