// A step over several ranks: each computes some micro-batches of the global batch. What they exchange, and
// when, is a StepExchange's; each rank then updates the masters of its shards (ZeRO-1, 1910.02054) or all of
// them, and working weights come out of them (weight_gather.h). Alone it is the plain step.
//
// Ranks that share their gradients end every step with the same loss, norm, scales and working weights, and
// take the same decisions. Ranks that train alone for some steps (parallel.sync_every) do so after the last
// of them, agrees_after(); between, loss sum, norm, clipping, amaxes and counters are each rank's own. What
// the reductions round: gradient_reduction.h, docs/numerics.md.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "training/step_exchange.h"
#include "training/weight_gather.h"

namespace octet {

class DataParallel {
 public:
  // Plans what it needs. `communicator` may be null while measuring, and with one rank.
  DataParallel(Device* device, Communicator* communicator, int ranks, const RunConfig& config,
               Transformer& model, Optimizer& optimizer, MemoryPlan& plan);

  // The working weights of the masters of the seed or of a checkpoint, from which all ranks go on.
  void start(int64_t step);

  // Tokens of the micro-batches that make one gradient, whose mean it is.
  double step_tokens() const { return step_tokens_; }
  // Gradients and loss sum are zero.
  void begin_step();
  // For a micro-batch of this step (from 1); null where there is nothing to start.
  Transformer::GradientsReady reduce_as_ready(int64_t step, const MicroBatchPlace& place) {
    return exchange_->micro_batch(step, place);
  }
  // What reduce_as_ready() gives enqueues the same for every micro-batch: it may be replayed.
  Transformer::ReadyWork ready_work() const { return exchange_->ready_work(); }
  // The step's gradients and loss sum are complete.
  void finish_gradients() { exchange_->finish_gradients(); }
  // Optimizer::decide with the norm of the step's gradients, and its measure_updates. `step` from 1.
  void decide(int64_t step);
  // amax = the largest of all ranks of the step, before the scale table is updated.
  void merge_amaxes();
  // counters = the sums over the ranks of the step, where somebody reads them, each having counted its own.
  void merge_counters();
  // Sums and extremes of the model's observations likewise.
  void merge_observations();
  // Update and working weights. `step` from 1.
  void update(double learning_rate, int64_t step);
  void refresh_working_weights(int64_t step);  // of the masters as they are

  bool agrees_after(int64_t step) const { return exchange_->agrees_after(step); }
  void add_up(const Tensor& sums);  // F64, over all ranks

  // What the gather of the weights takes: "weights are gathered as fp8 codes (8 tensors), bf16 (2)"; empty
  // where no weight is sharded.
  std::string describe_gather() const { return weights_.describe(); }

  // For a checkpoint: of the exchange; and of its reduction, which with one rank stays what it was restored
  // to.
  std::vector<NamedTensor> states() const { return exchange_->states(); }
  GradientReduction::State reduction_state();
  void restore(const GradientReduction::State& state);

 private:
  Communicator* communicator_;
  int ranks_;
  Transformer& model_;
  Optimizer& optimizer_;
  Device* device_;
  std::unique_ptr<StepExchange> exchange_;
  int step_ranks_;  // whose micro-batches make one gradient
  double step_tokens_;
  WeightGather weights_;
  GradientReduction::State alone_;
};

}  // namespace octet
