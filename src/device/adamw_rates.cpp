#include "device/adamw_rates.h"

#include <fmt/format.h>

#include <cmath>

#include "base/error.h"

namespace octet {

void check(const AdamWUpdate& op) {
  if (!op.amax.empty() && (op.amax.dtype != DType::F32 || op.amax.elements() != 1))
    throw Error(ExitCode::Internal, fmt::format("adamw: the amax is {} of {}, expected 1 of F32",
                                                op.amax.elements(), name_of(op.amax.dtype)));
  const int64_t n = op.master.elements();
  for (const MomentTensor* moment : {&op.first, &op.second}) {
    const bool coded = size_of(moment->values.dtype) == 1;
    const int64_t scales = !coded ? 0 : moment->block == 0 ? 1 : (n + moment->block - 1) / moment->block;
    if (moment->values.elements() != n || (coded && moment->inverse.elements() != scales)) {
      throw Error(ExitCode::Internal,
                  fmt::format("adamw: {} weights, moment {} with {} scales (expected {})", n,
                              to_string(moment->values.shape), moment->inverse.elements(), scales));
    }
  }
}

AdamWRates adamw_rates(const AdamWUpdate& op) {
  const double t = static_cast<double>(op.step), lr = static_cast<double>(op.learning_rate);
  const double correction = std::sqrt(1.0 - std::pow(static_cast<double>(op.beta2), t)) /
                            (1.0 - std::pow(static_cast<double>(op.beta1), t));
  return {static_cast<float>(lr * static_cast<double>(op.weight_decay)), static_cast<float>(lr * correction)};
}

}  // namespace octet
