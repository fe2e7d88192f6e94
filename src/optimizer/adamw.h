// AdamW with decoupled decay over masters and moments in several formats.  [docs/numerics.md,
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
  // The learning rate of a tensor is divided by the root mean square of its update where that exceeds 1.
  // [StableAdamW 2304.13013]
  bool update_clipping = false;
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
    uint64_t seed = 0;  // of stochastic rounding of masters
  };
  AdamW(Device* device, const AdamWOptions& options, const States& states,
        std::span<const Parameter> parameters, MemoryPlan& plan);

  struct State {
    MomentTensor first, second;
  };
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
  // F32 [parameters] in device memory, as last measured; 0 where the step was not applied. A loss spike
  // follows within some steps of values far above 1.  [2304.13013, 3.4]
  const Tensor& update_rms() const { return update_rms_; }
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
    MasterCode code;
    State moments;
  };
  enum class Part : uint8_t { All, SecondMoment };
  enum class After : uint8_t { Keep, PutBack };
  double decay_of(const Parameter& parameter) const;
  void plan_slots(std::span<const Parameter> parameters, const States& states, MemoryPlan& plan);
  PieceState at_home(const Parameter& parameter, const Piece& piece) const;
  PieceState in_slot(size_t slot, const PieceState& home) const;
  void transfer(Device::Lane lane, const PieceState& to, const PieceState& from, Part part);
  // What is offloaded, piece by piece, on the device.
  template <class Body>
  void visit(std::span<const Parameter> parameters, Part part, After after, const Body& body);
  // body(place in the list, partial sums) for each parameter whose sums this rank makes; all others are zero.
  template <class Body>
  void for_partials(std::span<const Parameter> parameters, Whole whole, const Body& body);
  void update(const Parameter& parameter, const Piece& piece, const PieceState& state,
              const AdamWUpdate& common);

  Device* device_;
  AdamWOptions options_;
  std::vector<State> states_;
  Tensor control_;              // U8 [sizeof(UpdateControl)]
  std::vector<Tensor> amaxes_;  // in the parameters' order, F32 [1]; empty: nobody wants it
  Tensor all_amaxes_;           // F32
  Tensor partials_;             // F64 [norm pieces of all gradients]
  Tensor update_rms_;           // F32 [parameters]
  bool measures_rms_ = false;
  std::vector<Tensor> offloaded_partials_;  // of what this rank measures, in the parameters' order
  uint64_t seed_;
  std::vector<Piece> offloaded_;  // in the order of their visits
  std::array<Tensor, 2> slots_;   // U8
};

}  // namespace octet
