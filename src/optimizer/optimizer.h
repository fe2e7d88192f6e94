// The optimizer of a run: AdamW with decoupled decay for all parameters, or for those that are not Muon's;
// over masters and moments in several formats.  [docs/numerics.md, "Optimizer"]
#pragma once
#include <functional>
#include <span>
#include <vector>

#include "device/device.h"
#include "numerics/recipe.h"
#include "optimizer/muon.h"
#include "optimizer/pager.h"
#include "optimizer/states.h"
#include "tensor/memory_plan.h"
#include "tensor/parameter.h"

namespace octet {

enum class OptimizerName : uint8_t {
  AdamW,
  Muon,  // of the matrices of the blocks; AdamW of everything else
};

struct OptimizerOptions {
  OptimizerName name = OptimizerName::AdamW;
  double beta1 = 0.9, beta2 = 0.95, epsilon = 1e-8, weight_decay = 0.1, clip_norm = 1.0;
  bool decay_embeddings = true;
  // The learning rate of a tensor is divided by the root mean square of its update where that exceeds 1.
  // [StableAdamW 2304.13013] Not of Muon's, whose updates all have the same size.
  bool update_clipping = false;
  double muon_momentum = 0.95;
  int muon_steps = 5;  // of Newton-Schulz
  bool operator==(const OptimizerOptions&) const = default;
};

// Whether Muon updates the parameter.
inline bool is_muons(const OptimizerOptions& options, const Parameter& parameter) {
  return options.name == OptimizerName::Muon && parameter.kind == ParameterKind::Matrix;
}

// Only matrices and embeddings take the recipe's moment formats; vectors keep FP32 moments and never decay.
class Optimizer {
 public:
  struct States {
    Moments moments;
    MemoryPlan* offload = nullptr;  // where those of matrices and embeddings go instead [optimizer/pager.h]
    // Whether the parameter of this index may be refreshed in pieces: with offload it visits in pieces. One
    // that may not is cast as a whole, and is handed on with its amax.
    StatePager::Splits splits = {};
    uint64_t seed = 0;            // of stochastic rounding of masters
    DType storage = DType::BF16;  // of what Muon multiplies
  };
  Optimizer(Device* device, const OptimizerOptions& options, const States& states,
            std::span<const Parameter> parameters, MemoryPlan& plan);

  using State = OptimizerState;
  std::vector<State>& states() { return states_; }  // in the parameters' order

  // measure(), decide(), measure_updates(), then update().
  void step(std::span<const Parameter> parameters, double learning_rate, int64_t t, const Tensor& loss_sum,
            double loss_divisor);
  // The partial sums of the gradient norm of this rank's elements; of whole parameters only where `whole`.
  // Everything else is zero, so that a sum over the ranks has the bits of one rank's.
  enum class Whole : uint8_t { No, Yes };
  void measure(std::span<const Parameter> parameters, Whole whole = Whole::Yes);
  const Tensor& norm_partials() const { return partials_; }  // F64
  // The norm of the gradients, clipping, and whether the step is applied; loss_sum and divisor as in
  // GradientNorm.
  void decide(const Tensor& loss_sum, double loss_divisor);
  // How large each tensor's update would be beside what its second moment expects: with update clipping in
  // every step, otherwise where measure_update_rms() asks for it. Between decide() and update(); `add_up` has
  // the partial sums, which are as those of measure(), added over the ranks.
  void measure_updates(std::span<const Parameter> parameters, int64_t t, Whole whole = Whole::Yes,
                       const std::function<void(const Tensor& partials)>& add_up = {});
  void measure_update_rms(bool on) { measures_rms_ = on; }
  // F32 [parameters] in device memory, as last measured; 0 where the step was not applied, and of Muon's,
  // which have no second moment. A loss spike follows within some steps of values far above 1.
  // [2304.13013, 3.4]
  const Tensor& update_rms() const { return update_rms_; }
  // t from 1. `updated` is called after each piece's update is enqueued: its values are there until it
  // returns.
  using Updated = std::function<void(const MasterPiece&)>;
  void update(std::span<const Parameter> parameters, double learning_rate, int64_t t,
              const Updated& updated = {});
  const UpdateControl* control() const;  // device memory
  UpdateControl read_control() const;    // waits for the device

 private:
  double decay_of(const Parameter& parameter) const;
  void plan_amaxes(std::span<const Parameter> parameters, const StatePager::Splits& splits, MemoryPlan& plan);
  // body(place in the list, partial sums) for each parameter whose sums this rank makes; all others are zero.
  template <class Body>
  void for_partials(std::span<const Parameter> parameters, Whole whole, const Body& body);
  struct Step {
    double learning_rate;
    int64_t t;
  };
  uint64_t rounding_key(const StatePiece& piece, const Step& step) const;  // of masters
  void update(const Parameter& parameter, const StatePiece& piece, const PieceState& state, const Step& step);
  void adamw(const Parameter& parameter, const StatePiece& piece, const PieceState& state, const Step& step);
  void muon(const Parameter& parameter, const StatePiece& piece, const PieceState& state, const Step& step);

  Device* device_;
  OptimizerOptions options_;
  std::vector<State> states_;
  Tensor control_;              // U8 [sizeof(UpdateControl)]
  std::vector<Tensor> amaxes_;  // in the parameters' order, F32 [1]; empty: nobody wants it
  Tensor all_amaxes_;           // F32
  Tensor partials_;             // F64 [norm pieces of all gradients]
  Tensor update_rms_;           // F32 [parameters]
  bool measures_rms_ = false;
  std::vector<Tensor> offloaded_partials_;  // of what this rank measures, in the parameters' order
  uint64_t seed_;
  StatePager pager_;
  Muon muon_;
};

}  // namespace octet
