// The gradients of a step where each rank keeps the sum of its shards only (parallel.zero 2; 1910.02054,
// 5.2).
//
// A full-size gradient exists while backward works on its block. In every micro-batch it is exchanged as soon
// as the block is done, beside backward of the next, and each owner adds the ranks' pieces, in rank order,
// onto its sum. Micro-batches are dealt out to the ranks in turn (Loader), so that the order of additions is
// one process's:
//   sum = ((0 + g_0) + g_1) + ..., g_j of the step's j-th micro-batch, whatever the number of ranks.
// Vectors and small matrices, which every rank updates whole, are added up in pieces too and gathered once a
// step. The loss is the sum of its micro-batches' in the same order.
//
// Alone nothing is exchanged, and the same additions are made.
#pragma once
#include <cstddef>
#include <cstdint>

#include "model/parameters.h"
#include "training/step_exchange.h"

namespace octet {

class GradientSums final : public StepExchange {
 public:
  explicit GradientSums(const Parts& parts);

  void begin_step() override;
  Transformer::GradientsReady micro_batch(int64_t step, const MicroBatchPlace& place) override;
  Transformer::ReadyWork ready_work() const override {
    return ranks_ == 1 ? Transformer::ReadyWork::Repeats : Transformer::ReadyWork::Varies;
  }
  void finish_gradients() override;
  int ranks_of_step() const override { return ranks_; }
  GradientReduction* reduction() override { return &reduction_; }

 private:
  struct Group {  // of parameters, whose gradients are on their way
    size_t first = 0, count = 0;
  };
  static GradientReduction::Options options(const Parts& parts);
  void start(const Group& group, uint64_t position);
  void finish_group();
  void gather(const Tensor& whole);  // of which each rank has its piece; there after a later wait

  Device* device_;
  Communicator* communicator_;
  int ranks_;
  Transformer& model_;
  GradientReduction reduction_;         // of matrices and tables
  GradientReduction vector_reduction_;  // in FP32, whatever the wire of the others
  GradientReduction::Ticket newest_ = 0, newest_vectors_ = 0;
  Group group_;
  // F64 [micro-batches of a step, over all ranks]: sums of token losses; those of other ranks are zero.
  Tensor losses_;
};

}  // namespace octet
