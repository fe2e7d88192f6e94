// What ranks exchange to train together: gradients of micro-batches in, the gradient of a step out; and, of
// ranks that work alone for some steps, masters in, everybody's masters out. Each way of doing so is a class
// of its own behind this interface, and nobody else asks which it is.
#pragma once
#include <cstdint>
#include <memory>
#include <vector>

#include "comm/gradient_reduction.h"
#include "config/run_config.h"
#include "device/device.h"
#include "model/transformer.h"
#include "optimizer/optimizer.h"
#include "tensor/memory_plan.h"
#include "tensor/safetensors.h"

namespace octet {

struct MicroBatchPlace {
  int64_t over_ranks;  // its number in the step, counted over all ranks
  bool last;           // of this rank
};

class StepExchange {
 public:
  // `communicator` may be null while measuring, and with one rank. All outlive it.
  struct Parts {
    Device* device;
    Communicator* communicator;
    int ranks;
    const RunConfig& config;
    Transformer& model;
    MemoryPlan& plan;
  };
  virtual ~StepExchange() = default;

  // ---- gradients. Steps from 1.
  virtual void begin_step() = 0;  // all are zero
  // For a micro-batch of this step; null where there is nothing to start.
  virtual Transformer::GradientsReady micro_batch(int64_t step, const MicroBatchPlace& place) = 0;
  // What micro_batch() gives enqueues the same for every micro-batch: it may be replayed.
  virtual Transformer::ReadyWork ready_work() const = 0;
  // The parameters' step_gradient() and the model's loss_sum() are the step's.
  virtual void finish_gradients() = 0;
  // Whose micro-batches make one gradient: those of so many ranks, which is all of them or each its own.
  virtual int ranks_of_step() const = 0;

  // ---- masters
  // After this step all ranks have the same masters, scales and working weights.
  virtual bool agrees_after(int64_t step) const { return (void)step, true; }
  // Each updated piece on its way to the working weights: handed on at once, or in finish_update() as it is
  // then.
  virtual void take(const MasterPiece& piece, int64_t step, const Optimizer::Updated& hand_on) {
    (void)step;
    hand_on(piece);
  }
  virtual void finish_update(int64_t step, const Optimizer::Updated& hand_on) { (void)step, (void)hand_on; }
  // The masters are those of the seed or of a checkpoint, the same on all ranks.
  virtual void masters_set() {}

  // ---- checkpoints
  virtual std::vector<NamedTensor> states() const { return {}; }  // besides masters and moments; on all ranks
  virtual GradientReduction* reduction() { return nullptr; }      // null: nothing is rounded on a wire
};

// Of parallel.*, for so many ranks; plans what it needs.
std::unique_ptr<StepExchange> make_step_exchange(const StepExchange::Parts& parts);

}  // namespace octet
