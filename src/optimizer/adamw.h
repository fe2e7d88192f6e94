// AdamW with decoupled decay over FP32 masters, moments in FP32, BF16 or FP8.  [docs/numerics.md,
// "Optimizer"]
#pragma once
#include <span>
#include <vector>

#include "device/device.h"
#include "numerics/recipe.h"
#include "tensor/memory_plan.h"
#include "tensor/parameter.h"

namespace octet {

struct AdamWOptions {
  double beta1 = 0.9, beta2 = 0.95, epsilon = 1e-8, weight_decay = 0.1, clip_norm = 1.0;
  bool decay_embeddings = true;
  bool operator==(const AdamWOptions&) const = default;
};

// Only matrices and embeddings take the recipe's moment formats; vectors keep FP32 moments and never decay.
class AdamW {
 public:
  AdamW(Device* device, const AdamWOptions& options, const Moments& moments,
        std::span<const Parameter> parameters, MemoryPlan& plan);

  struct State {
    MomentTensor first, second;
  };
  std::vector<State>& states() { return states_; }  // in the parameters' order

  // decide(), then update().
  void step(std::span<const Parameter> parameters, double learning_rate, int64_t t, const Tensor& loss_sum,
            double loss_divisor);
  // The norm of the gradients, clipping, and whether the step is applied; loss_sum and divisor as in
  // GradientNorm.
  void decide(std::span<const Parameter> parameters, const Tensor& loss_sum, double loss_divisor);
  void update(std::span<const Parameter> parameters, double learning_rate, int64_t t);  // t from 1
  const UpdateControl* control() const;                                                 // device memory
  UpdateControl read_control() const;  // waits for the device

 private:
  double decay_of(const Parameter& parameter) const;

  Device* device_;
  AdamWOptions options_;
  std::vector<State> states_;
  Tensor control_;                 // U8 [sizeof(UpdateControl)]
  std::vector<Tensor> gradients_;  // views, kept so that a step allocates nothing
};

}  // namespace octet
