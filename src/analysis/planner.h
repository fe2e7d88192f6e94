// What a run will need and do, computed without running it: the trainer's own memory plan, FLOPs, tokens,
// learning rates, disk.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "analysis/gpu_fit.h"
#include "config/run_config.h"
#include "tensor/memory_plan.h"

namespace octet {

struct PlannedItem {
  std::string name;  // block numbers folded: "blocks.*.ffn.down.weight"
  Category category;
  std::string type;  // "F32", "F8_E4M3", ...
  int64_t count = 0, elements = 0;
  uint64_t bytes = 0;
};

struct BytesPerParameter {
  std::string item;
  double bytes = 0;
};

// One of a transformer's matrix products, and what FP8 is expected to bring on a GPU.
struct PlannedGemm {
  std::string name;
  int64_t m = 0, n = 0, k = 0;  // tokens, outputs, inputs of fprop
  std::string expected_gain;
};

// A stage of a run whose precision changes.
struct PlannedStage {
  std::string description;  // "stage 2 of 3, from step 200 on: bf16"
  int64_t steps = 0;
  double float8_flop_share = 0;
  uint64_t device_bytes = 0, host_bytes = 0;
};

// Of several stages: memory and products of the one with the largest arena.
struct RunPlan {
  int64_t parameters = 0, matmul_parameters = 0;
  double flops_per_token = 0, flops_per_step = 0, flops_total = 0;
  double update_flops = 0;       // of Muon's products in a step, on every rank; not in the three above
  double float8_flop_share = 0;  // of all GEMM FLOPs (block linears and head), as the recipes promise
  int64_t tokens_per_step = 0, micro_batches_per_step = 0, steps = 0, tokens_total = 0;
  double tokens_per_parameter = 0;

  uint64_t device_bytes = 0;   // the arena: peak of the device plan
  uint64_t offload_bytes = 0;  // masters and moments in page-locked host memory (memory.offload)
  uint64_t host_bytes = 0;     // the checkpoint's snapshot and the validation windows
  std::vector<std::pair<Category, uint64_t>> by_category;  // of the device plan
  int64_t unlisted_bytes = 0;      // device_bytes - sum of by_category: alignment, less what shares memory
  std::vector<PlannedItem> items;  // device plan, largest first
  std::vector<BytesPerParameter> bytes_per_parameter;  // states; the last row is the sum
  std::optional<GpuFit> gpu;                           // when the plan is for a GPU

  std::vector<PlannedGemm> gemms;
  std::vector<std::pair<int64_t, double>> learning_rates;  // (step from 0, rate)
  uint64_t checkpoint_bytes = 0;                           // one
  uint64_t disk_bytes = 0;  // the kept ones, one being written, and the permanent ones
  std::vector<std::string> warnings;
  std::vector<PlannedStage> stages;  // empty: the precision does not change
};

// Without a target: on the CPU device, which is there on every machine. Error for a run that the GPU cannot
// do.
RunPlan plan_run(const RunConfig& config, const PlannedFor& target = {});

// Training-state layouts of other systems, item by item, so that a number such as "6 bytes a parameter" can
// be compared with ours: publications count different items.
struct StateScheme {
  std::string name, source;
  std::vector<BytesPerParameter> items;
  // With these the weights of linear layers take as many bytes here; empty: no setting has this layout.
  // `note`: what differs in it.
  std::vector<std::string> settings = {};
  std::string note = {};
  double bytes() const;
};
std::vector<StateScheme> reference_schemes();

}  // namespace octet
