#include "training/step_exchange.h"

#include <algorithm>

#include "training/gradient_sums.h"
#include "training/local_sgd.h"

namespace octet {
namespace {

// One rank: the gradients are what backward leaves.
class OneRank final : public StepExchange {
 public:
  explicit OneRank(Transformer& model) : model_(model) {}
  void begin_step() override { model_.zero_gradients(); }
  Transformer::GradientsReady micro_batch(int64_t, const MicroBatchPlace&) override { return {}; }
  Transformer::ReadyWork ready_work() const override { return Transformer::ReadyWork::Repeats; }
  void finish_gradients() override {}
  int ranks_of_step() const override { return 1; }

 private:
  Transformer& model_;
};

// Each rank adds up the gradients of its micro-batches; while backward of the last one still runs, those it
// has finished are added up over the ranks: all of a parameter, or, of one that is sharded, this rank's part.
class WholeGradients final : public StepExchange {
 public:
  explicit WholeGradients(const Parts& parts)
      : communicator_(parts.communicator),
        ranks_(parts.ranks),
        model_(parts.model),
        reduction_(parts.device, parts.communicator, parts.ranks, options(parts), parts.plan) {}

  void begin_step() override { model_.zero_gradients(); }
  Transformer::GradientsReady micro_batch(int64_t step, const MicroBatchPlace& place) override {
    if (!place.last) return {};
    return [this, step](size_t first, size_t count) {
      const TrafficLabel label(*communicator_, TrafficKind::Gradients);
      for (size_t i = first; i < first + count; ++i) {
        const Parameter& p = model_.parameters()[i];
        if (p.kind == ParameterKind::Vector)
          newest_ = communicator_->all_reduce(p.gradient, Reduction::Sum);
        else if (p.shard > 0)
          newest_reduction_ = reduction_.reduce_scatter(p.padded_gradient, static_cast<uint64_t>(step), i);
        else
          newest_reduction_ = reduction_.all_reduce(p.gradient, static_cast<uint64_t>(step), i);
      }
    };
  }
  Transformer::ReadyWork ready_work() const override { return Transformer::ReadyWork::Varies; }
  void finish_gradients() override {
    newest_ = communicator_->all_reduce(model_.loss_sum(), Reduction::Sum);
    reduction_.wait(newest_reduction_);
    communicator_->wait(newest_);
    reduction_.end_step();
  }
  int ranks_of_step() const override { return ranks_; }
  GradientReduction* reduction() override { return &reduction_; }

 private:
  static GradientReduction::Options options(const Parts& parts) {
    int64_t largest = 0;
    for (const Parameter& p : parts.model.parameters())
      if (p.kind != ParameterKind::Vector) largest = std::max(largest, p.padded_gradient.elements());
    return {.wire = parts.config.parallel.reduce,
            .seed = parts.config.run.seed,
            .gradient = dtype_of(parts.config.precision.weight_gradient),
            .largest = largest};
  }

  Communicator* communicator_;
  int ranks_;
  Transformer& model_;
  GradientReduction reduction_;
  GradientReduction::Ticket newest_reduction_ = 0;
  Communicator::Ticket newest_ = 0;
};

}  // namespace

std::unique_ptr<StepExchange> make_step_exchange(const StepExchange::Parts& parts) {
  const ParallelOptions& parallel = parts.config.parallel;
  if (parallel.sync_every > 1) return std::make_unique<LocalSgd>(parts);
  if (parallel.zero > 1) return std::make_unique<GradientSums>(parts);
  if (parts.ranks == 1) return std::make_unique<OneRank>(parts.model);
  return std::make_unique<WholeGradients>(parts);
}

}  // namespace octet
