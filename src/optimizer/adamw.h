// AdamW with decoupled decay over FP32 masters, moments in FP32, BF16 or FP8.  [docs/numerics.md,
// "Optimizer"]
#pragma once
#include <array>
#include <functional>
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
//
// Offloaded, the masters and moments of matrices and embeddings live in the host's page-locked memory and
// visit the device piece by piece, in two slots: while one is updated, the next is fetched and the one before
// put back. A piece is a parameter, or a part of a larger one whose refresh may be split. The bits do not
// change.
class AdamW {
 public:
  struct States {
    Moments moments;
    MemoryPlan* offload = nullptr;  // where those states go instead
    // Whether the parameter of this index may be refreshed in pieces: with offload it visits in pieces. One
    // that may not is cast as a whole, and is handed on with its amax.
    std::function<bool(size_t parameter)> splits = {};
  };
  AdamW(Device* device, const AdamWOptions& options, const States& states,
        std::span<const Parameter> parameters, MemoryPlan& plan);

  struct State {
    MomentTensor first, second;
  };
  std::vector<State>& states() { return states_; }  // in the parameters' order

  // measure(), decide(), then update().
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
  // t from 1. `updated` is called after each piece's update is enqueued: its values are there until it
  // returns.
  using Updated = std::function<void(const MasterPiece&)>;
  void update(std::span<const Parameter> parameters, double learning_rate, int64_t t,
              const Updated& updated = {});
  const UpdateControl* control() const;  // device memory
  UpdateControl read_control() const;    // waits for the device

 private:
  struct Piece {
    size_t parameter;  // place in the list
    int64_t begin, count;
  };
  // Master and moments of a piece, wherever they are.
  struct PieceState {
    Tensor master;
    State moments;
  };
  double decay_of(const Parameter& parameter) const;
  void plan_slots(std::span<const Parameter> parameters, const States& states, MemoryPlan& plan);
  PieceState at_home(const Parameter& parameter, const Piece& piece) const;
  PieceState in_slot(size_t slot, const PieceState& home) const;
  void transfer(Device::Lane lane, const PieceState& to, const PieceState& from);
  void update(const Parameter& parameter, const Piece& piece, const PieceState& state,
              const AdamWUpdate& common);

  Device* device_;
  AdamWOptions options_;
  std::vector<State> states_;
  Tensor control_;                // U8 [sizeof(UpdateControl)]
  std::vector<Tensor> amaxes_;    // in the parameters' order, F32 [1]; empty: nobody wants it
  Tensor all_amaxes_;             // F32
  Tensor partials_;               // F64 [norm pieces of all gradients]
  std::vector<Piece> offloaded_;  // in the order of their visits
  std::array<Tensor, 2> slots_;   // U8
};

}  // namespace octet
