// From a configuration, its plan and a GPU to the job, the network and the failures of the scaling model.
#pragma once
#include <optional>
#include <string>
#include <vector>

#include "analysis/planner.h"
#include "analysis/scaling_constants.h"
#include "analysis/scaling_model.h"

namespace octet {

struct ScalingOptions {
  int64_t ranks = 1;
  std::optional<int> zero = {};  // nullopt: parallel.zero of the configuration
  std::string gradients = "";    // on the wire: fp32, bf16, fp8; empty: parallel.reduce
  std::string weights = "";      // bf16 or fp8; empty: fp8 where the recipe's codes are lossless to gather
  double intra_bandwidth = 0;    // byte/s at the line; 0: the GPU's own (NVLink or PCIe)
  double tokens_per_second = 0;  // of one GPU, as `octet bench step` measured it; 0: from the utilisation
};

constexpr int64_t most_ranks = 16384;

struct ScalingPlan {
  ScalingJob job;
  Network network;
  FailureModel failures;               // with the ranks asked for
  ScalingPoint asked;                  // at the ranks asked for
  std::vector<ScalingPoint> curve;     // powers of two up to most_ranks, and the ranks asked for
  std::vector<int64_t> working_ranks;  // up to most_ranks
  CheckpointAdvice advice;
  // With gradients in FP8, by how much a step at the ranks asked for would be shorter with BF16: an
  // all-to-all takes every rank's own bytes between nodes, a ring the node's sum. 0 where FP8 is no slower.
  double bfloat16_saves_seconds = 0;
  double peak_flops = 0;          // of the format that counts, dense; 0: the speed was given
  std::vector<std::string> used;  // names of the constants the numbers above rest on
};

// The configuration with the parallel.* that the options ask for. Error(Usage) where training would refuse
// it.
RunConfig asked_config(const RunConfig& config, const ScalingOptions& options);
// Memory is that of rank 0 as a run with the asked configuration plans it, for every number of ranks; `plan`
// is of the configuration on one rank. Error(Usage) for options that contradict each other or the recipe, and
// for what training refuses with the ranks asked for.
ScalingPlan plan_scaling(const RunConfig& config, const RunPlan& plan, const GpuModel& gpu,
                         const ScalingConstants& constants, const ScalingOptions& options);

// How a save is counted with: the snapshot's copy, and the write behind it.
FailureModel failure_model(const RunConfig& config, const RunPlan& plan, const ScalingConstants& constants,
                           const Network& network, int64_t ranks);

}  // namespace octet
