#include "device/device.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>

#include "base/error.h"
#include "numerics/small_float.h"
#include "numerics/sums.h"

namespace octet {

void check(const GradientSquares& op) {
  if (op.partials.elements() != norm_pieces(op.gradient.elements()))
    throw Error(ExitCode::Internal, fmt::format("gradient squares: {} partials for {} values",
                                                op.partials.elements(), op.gradient.elements()));
}

void check(const RmsNormForward& op) {
  const Tensor& sum = op.residual_out.empty() ? op.residual : op.residual_out;
  const bool plain = op.gain.empty(), scaled = !op.branch_gain.empty();
  if (plain ? op.branch.empty() || !op.rstd.empty() || op.out.high.data != sum.data : op.rstd.empty())
    throw Error(ExitCode::Internal,
                "rmsnorm: a sum that is not normalised needs a branch, and no other place");
  if (scaled ? op.branch.empty() : !op.branch_rstd.empty())
    throw Error(ExitCode::Internal,
                "rmsnorm: a gain and 1/rms of a branch that is not there, or without the other");
  if ((op.stream_factor != 1 || op.branch_factor != 1) && op.branch_rstd.empty())
    throw Error(ExitCode::Internal, "rmsnorm: weights of a branch that is not normalised");
}

void check(const AddInOrder& op) {
  const DType sum = op.sum.dtype, sources = op.sources.dtype;
  const bool types = sum == DType::F64
                         ? sources == DType::F64
                         : sum == DType::F32 && (sources == DType::F32 || sources == DType::BF16);
  if (!types || op.sources.shape.rank() != 2 || op.sources.columns() != op.sum.elements())
    throw Error(ExitCode::Internal,
                fmt::format("add_in_order: {} of {} onto {} sums of {}", to_string(op.sources.shape),
                            name_of(sources), op.sum.elements(), name_of(sum)));
}

namespace {
void require_equal_floats(const char* name, const Tensor& first, const Tensor& other) {
  if (first.dtype != DType::F32 || other.dtype != DType::F32 || first.elements() != other.elements())
    throw Error(ExitCode::Internal,
                fmt::format("{}: {} of {} beside {} of {}", name, first.elements(), name_of(first.dtype),
                            other.elements(), name_of(other.dtype)));
}
}  // namespace
void check(const OuterDifference& op) { require_equal_floats("outer_difference", op.outer, op.local); }
void check(const OuterUpdate& op) {
  require_equal_floats("outer_update", op.outer, op.velocity);
  require_equal_floats("outer_update", op.outer, op.local);
}

void* Device::allocate_host(size_t bytes) {
  constexpr size_t alignment = 256;
  const size_t rounded = std::max((bytes + alignment - 1) / alignment * alignment, alignment);
  void* const memory = std::aligned_alloc(alignment, rounded);
  if (!memory) throw std::bad_alloc();
  return std::memset(memory, 0, rounded);
}
void Device::free_host(void* pointer) { std::free(pointer); }

void Device::copy_on_lane(Lane lane, void* to, const void* from, size_t bytes) {
  if (lane == Lane::Out)
    copy_to_host(to, from, bytes);
  else
    copy_from_host(to, from, bytes);
}

std::string operand_name(const MatmulKey& key, DType operand) {
  std::string name = name_of(operand);
  if (!key.simulate.reduces()) return name;
  const bool truncated = key.simulate.rounding == SmallRounding::Truncate;
  return name + (truncated ? " truncated to " : " rounded to ") + name_of(key.simulate);
}

const char* name_of(GemmClass c) {
  switch (c) {
    case GemmClass::Fprop:
      return "fprop";
    case GemmClass::Dgrad:
      return "dgrad";
    case GemmClass::Wgrad:
      return "wgrad";
    case GemmClass::HeadFprop:
      return "head fprop";
    case GemmClass::HeadDgrad:
      return "head dgrad";
    case GemmClass::HeadWgrad:
      return "head wgrad";
    case GemmClass::Attention:
      return "attention";
    case GemmClass::Muon:
      return "muon";
  }
  return "unknown";
}

}  // namespace octet
