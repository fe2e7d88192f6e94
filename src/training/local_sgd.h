// Local SGD with an outer optimizer (parallel.sync_every = H; DiLoCo, 2311.08105): for H steps each rank
// trains alone, on its own micro-batches, with its own moments and scales. Then
//   d = mean over the ranks of (outer - local), through GradientReduction in FP32, in the wire's format
//   u = mu u + d;  outer = outer - eta (d + mu u)          (Nesterov; Device::outer_update)
//   local = outer
// and the ranks' scale tables become one. With FP8 on the wire d is rounded stochastically, unbiased
// [2407.02610]. Moments stay each rank's own. Alone, d is the rank's own difference: its outer step looks
// ahead of itself.  [docs/numerics.md, "Local SGD"]
#pragma once
#include <vector>

#include "training/step_exchange.h"

namespace octet {

class LocalSgd final : public StepExchange {
 public:
  explicit LocalSgd(const Parts& parts);

  void begin_step() override { model_.zero_gradients(); }
  Transformer::GradientsReady micro_batch(int64_t, const MicroBatchPlace&) override { return {}; }
  Transformer::ReadyWork ready_work() const override { return Transformer::ReadyWork::Repeats; }
  void finish_gradients() override {}
  int ranks_of_step() const override { return 1; }

  bool agrees_after(int64_t step) const override { return step % options_.sync_every == 0; }
  void take(const MasterPiece& piece, int64_t step, const Optimizer::Updated& hand_on) override;
  void finish_update(int64_t step, const Optimizer::Updated& hand_on) override;
  void masters_set() override;

  std::vector<NamedTensor> states() const override { return velocities_; }
  GradientReduction* reduction() override { return &reduction_; }

 private:
  static GradientReduction::Options reduction_options(const Parts& parts);
  void merge_scales(int64_t step);

  Device* device_;
  Communicator* communicator_;
  int ranks_;
  ParallelOptions options_;
  Transformer& model_;
  std::vector<Tensor> outer_;            // in the parameters' order, F32
  std::vector<NamedTensor> velocities_;  // u, the same
  GradientReduction reduction_;
  GradientReduction::Ticket newest_reduction_ = 0;
  Communicator::Ticket newest_ = 0;
};

}  // namespace octet
