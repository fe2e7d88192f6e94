#include "device/group_codes.h"

#include <fmt/format.h>

#include "base/error.h"
#include "numerics/group_codes.h"

namespace octet {
namespace {

void check_groups(const char* operation, const Tensor& values, const Tensor& codes, const Tensor& scales) {
  const int64_t n = values.elements();
  const bool right = (values.dtype == DType::F32 || values.dtype == DType::BF16) && n % code_group == 0 &&
                     codes.dtype == DType::E4M3 && codes.elements() == n && scales.dtype == DType::U8 &&
                     scales.elements() == n / code_group &&
                     reinterpret_cast<uintptr_t>(values.data) % 16 == 0 &&
                     reinterpret_cast<uintptr_t>(codes.data) % 16 == 0;
  if (!right)
    throw Error(
        ExitCode::Internal,
        fmt::format("{}: {} values of {}, {} codes of {}, {} scales of {} (16-byte aligned, groups of {})",
                    operation, n, name_of(values.dtype), codes.elements(), name_of(codes.dtype),
                    scales.elements(), name_of(scales.dtype), code_group));
}

}  // namespace

void check(const EncodeGroups& op) { check_groups("encode_groups", op.source, op.codes, op.scales); }
void check(const DecodeGroups& op) { check_groups("decode_groups", op.out, op.codes, op.scales); }

}  // namespace octet
