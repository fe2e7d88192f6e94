// A step over several ranks: each computes some micro-batches of the global batch; gradients are added up
// while backward still runs, of the last micro-batch or, where they are sharded (gradient_sums.h), of each;
// each rank updates the masters of its shards (ZeRO-1, 1910.02054) and gathers the working weights. Alone it
// is the plain step.
//
// Every rank ends a step with the same loss, norm, scales and working weights, and takes the same decisions.
// What the reductions round: gradient_reduction.h, docs/numerics.md.
#pragma once
#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "comm/gradient_reduction.h"
#include "config/run_config.h"
#include "device/device.h"
#include "model/transformer.h"
#include "optimizer/adamw.h"
#include "tensor/memory_plan.h"
#include "training/gradient_sums.h"

namespace octet {

struct MicroBatchPlace {
  int64_t over_ranks;  // its number in the step, counted over all ranks
  bool last;           // of this rank
};

class DataParallel {
 public:
  // Plans what it needs. `communicator` may be null while measuring, and with one rank.
  DataParallel(Device* device, Communicator* communicator, int ranks, const RunConfig& config,
               Transformer& model, AdamW& optimizer, MemoryPlan& plan);

  // Gradients and loss sum are zero.
  void begin_step();
  // For a micro-batch of this step (from 1); null where there is nothing to start.
  Transformer::GradientsReady reduce_as_ready(int64_t step, const MicroBatchPlace& place);
  // What reduce_as_ready() gives enqueues the same for every micro-batch: it may be replayed.
  Transformer::ReadyWork ready_work() const {
    return ranks_ == 1 ? Transformer::ReadyWork::Repeats : Transformer::ReadyWork::Varies;
  }
  // The step's gradients and loss sum are those of all ranks.
  void finish_gradients();
  // AdamW::decide with the norm over all ranks.
  void decide(double loss_divisor);
  // amax = the largest of all ranks, before the scale table is updated.
  void merge_amaxes();
  // counters = the sums over all ranks, each rank having counted what it alone did: one process's.
  void merge_counters();
  // Sums and extremes of the model's observations likewise.
  void merge_observations();
  // Update and working weights. `step` from 1.
  void update(double learning_rate, int64_t step);
  void refresh_working_weights(int64_t step);  // of the masters as they are
  void add_up(const Tensor& sums);             // F64, over the ranks

  // What the gather of the weights takes: "weights are gathered as fp8 codes (8 tensors), bf16 (2)"; empty
  // where no weight is sharded.
  std::string describe_gather() const;
  // Of the gradients' reduction, for a checkpoint; with one rank it stays what it was restored to.
  GradientReduction::State reduction_state();
  void restore(const GradientReduction::State& state);

 private:
  // A sharded parameter's weights on their way: rounded to storage, gathered, then refreshed.
  struct Gather {
    Tensor buffer;  // U8, the largest one
    Tensor whole;   // storage [ranks * shard], its view for the parameter under way
    size_t parameter = 0;
    Communicator::Ticket ticket = 0;
    bool open = false;       // some of its pieces are here
    bool under_way = false;  // gathered
  };
  void take(const MasterPiece& piece, int64_t step);
  void finish(Gather& gather, int64_t step);
  void finish_gathers(int64_t step);
  void gather_codes(int64_t step);
  void refresh(const MasterPiece& piece, int64_t step);

  Device* device_;
  Communicator* communicator_;
  int ranks_;
  DType storage_;
  Transformer& model_;
  AdamW& optimizer_;
  bool sharded_ = false;
  std::optional<GradientReduction> reduction_;
  std::optional<GradientSums> sums_;  // parallel.zero 2
  GradientReduction::Ticket newest_reduction_ = 0;
  Communicator::Ticket newest_ = 0;
  GradientReduction::State alone_;
  // Weights that are gathered as codes: their amaxes are reduced at once, before any is encoded.
  struct CodeGather {
    size_t parameter;
    Communicator::Ticket ticket = 0;
  };
  std::vector<CodeGather> code_gathers_;
  Tensor amaxes_;  // F32 [code_gathers_]
  // The others, in storage precision.
  std::array<Gather, 2> gathers_;
  size_t next_gather_ = 0;
};

}  // namespace octet
