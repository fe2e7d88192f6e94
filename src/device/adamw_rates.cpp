#include "device/adamw_rates.h"

#include <fmt/format.h>

#include <cmath>

#include "base/error.h"
#include "numerics/masters.h"
#include "numerics/moments.h"
#include "numerics/sums.h"

namespace octet {

namespace {

Error wrong(const char* operation, const std::string& what) {
  return Error(ExitCode::Internal, fmt::format("{}: {}", operation, what));
}

void check(const char* operation, const MomentTensor& moment, int64_t n) {
  const DType type = moment.values.dtype;
  const bool float8 = type == DType::E4M3 || type == DType::E5M2, coded = float8 || type == DType::F16;
  const int64_t scales = !coded ? 0 : moment.block == 0 ? 1 : (n + moment.block - 1) / moment.block;
  if (moment.values.elements() != n || (coded && moment.inverse.elements() != scales))
    throw wrong(operation, fmt::format("{} weights, moment {} with {} scales (expected {})", n,
                                       to_string(moment.values.shape), moment.inverse.elements(), scales));
  if (!moment.exponents.empty() && (!float8 || moment.block == 0 || moment.exponents.elements() != scales ||
                                    moment.exponents.dtype != DType::U8))
    throw wrong(operation, fmt::format("{} exponents of {} for a moment of {} in blocks of {}",
                                       moment.exponents.elements(), name_of(moment.exponents.dtype),
                                       name_of(type), moment.block));
}

void check(const char* operation, const Tensor& master, const MasterCode& code) {
  const int64_t n = master.elements();
  const bool remainder = code.format == MasterFormat::BF16Remainder,
             rest = remainder || code.format == MasterFormat::BF16Kahan,
             scaled = code.format == MasterFormat::FP16Scaled;
  const bool fits = master.dtype == values_dtype(code.format) && code.rest.elements() == (rest ? n : 0) &&
                    (!rest || code.rest.dtype == (remainder ? DType::U16 : DType::BF16)) &&
                    code.inverse.elements() == (scaled ? (n + master_block - 1) / master_block : 0);
  if (!fits)
    throw wrong(operation, fmt::format("{} masters of {}, {} beside them, {} scales: not master format {}", n,
                                       name_of(master.dtype), code.rest.elements(), code.inverse.elements(),
                                       static_cast<int>(code.format)));
}

void check_one_float(const char* operation, const char* what, const Tensor& tensor) {
  if (!tensor.empty() && (tensor.dtype != DType::F32 || tensor.elements() != 1))
    throw wrong(operation, fmt::format("the {} is {} of {}, expected 1 of F32", what, tensor.elements(),
                                       name_of(tensor.dtype)));
}

}  // namespace

void check(const AdamWUpdate& op) {
  check_one_float("adamw", "amax", op.amax);
  check_one_float("adamw", "update's mean square", op.update_rms);
  check("adamw", op.master, op.master_code);
  check("adamw", op.first, op.master.elements());
  check("adamw", op.second, op.master.elements());
  if (op.first_element % 4 != 0)
    throw wrong("adamw",
                fmt::format("a piece begins at element {}, not at a multiple of 4", op.first_element));
}

void check(const ReadMasters& op) {
  check("read_masters", op.master, op.code);
  if (op.values.elements() != op.master.elements() ||
      (op.values.dtype != DType::F32 && op.values.dtype != DType::BF16))
    throw wrong("read_masters", fmt::format("{} masters into {} of {}", op.master.elements(),
                                            op.values.elements(), name_of(op.values.dtype)));
}

void check(const WriteMasters& op) {
  check("write_masters", op.master, op.code);
  if (op.values.elements() != op.master.elements() || op.values.dtype != DType::F32)
    throw wrong("write_masters", fmt::format("{} masters from {} of {}", op.master.elements(),
                                             op.values.elements(), name_of(op.values.dtype)));
}

void check(const UpdateSquares& op) {
  check("update_squares", op.second, op.gradient.elements());
  if (op.partials.elements() != norm_pieces(op.gradient.elements()))
    throw wrong("update_squares",
                fmt::format("{} partials for {} values", op.partials.elements(), op.gradient.elements()));
}

namespace {

bool is_storage(const Tensor& tensor) { return tensor.dtype == DType::F32 || tensor.dtype == DType::BF16; }

}  // namespace

void check(const MuonMomentum& op) {
  const int64_t n = op.gradient.elements();
  check("muon_momentum", op.first, n);
  if (op.direction.elements() != n || !is_storage(op.direction) || !is_storage(op.gradient))
    throw wrong("muon_momentum",
                fmt::format("{} gradients of {}, a direction of {} of {}", n, name_of(op.gradient.dtype),
                            op.direction.elements(), name_of(op.direction.dtype)));
}

void check(const Normalize& op) {
  if (!is_storage(op.x) || op.partials.dtype != DType::F64 ||
      op.partials.elements() != norm_pieces(op.x.elements()))
    throw wrong("normalize",
                fmt::format("{} values of {}, {} partials of {}", op.x.elements(), name_of(op.x.dtype),
                            op.partials.elements(), name_of(op.partials.dtype)));
}

void check(const WeightedSum& op) {
  const int64_t n = op.out.elements();
  if (!is_storage(op.out) || op.x.dtype != op.out.dtype || op.y.dtype != op.out.dtype ||
      op.x.elements() != n || op.y.elements() != n)
    throw wrong("weighted_sum",
                fmt::format("{} of {} and {} of {} to {} of {}", op.x.elements(), name_of(op.x.dtype),
                            op.y.elements(), name_of(op.y.dtype), n, name_of(op.out.dtype)));
}

void check(const MuonUpdate& op) {
  check_one_float("muon_update", "amax", op.amax);
  check("muon_update", op.master, op.master_code);
  if (op.direction.elements() != op.master.elements() || !is_storage(op.direction))
    throw wrong("muon_update", fmt::format("{} masters, a direction of {} of {}", op.master.elements(),
                                           op.direction.elements(), name_of(op.direction.dtype)));
  if (op.first_element % 4 != 0)
    throw wrong("muon_update",
                fmt::format("a piece begins at element {}, not at a multiple of 4", op.first_element));
}

UpdateSquareRates update_square_rates(const UpdateSquares& op) {
  const double beta2 = static_cast<double>(op.beta2), epsilon = static_cast<double>(op.epsilon);
  return {static_cast<float>(1.0 / (1.0 - std::pow(beta2, static_cast<double>(op.step)))),
          static_cast<float>(epsilon * epsilon)};
}

AdamWRates adamw_rates(const AdamWUpdate& op) {
  const double t = static_cast<double>(op.step), lr = static_cast<double>(op.learning_rate);
  const double correction = std::sqrt(1.0 - std::pow(static_cast<double>(op.beta2), t)) /
                            (1.0 - std::pow(static_cast<double>(op.beta1), t));
  return {static_cast<float>(lr * static_cast<double>(op.weight_decay)), static_cast<float>(lr * correction)};
}

}  // namespace octet
