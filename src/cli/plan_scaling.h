// The part of octet plan that --ranks asks for.
#pragma once
#include <CLI/CLI.hpp>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "analysis/scaling_plan.h"
#include "config/document.h"

namespace octet {

struct ScalingArguments {
  int64_t ranks = 0;  // 0: not asked for
  int64_t ranks_per_node = 0;
  std::optional<int> zero;
  std::string link, intra_link, gradients, weights, save_bandwidth, constants_file;
  double mtbf_hours = 0, tokens_per_second = 0;
  std::vector<std::string> constants;
};

void add_scaling_options(CLI::App& command, const std::shared_ptr<ScalingArguments>& arguments);

// The constants and the plan that the arguments ask for.
struct AskedScaling {
  ScalingConstants constants;
  ScalingPlan plan;
};
AskedScaling asked_scaling(const ScalingArguments& arguments, const RunConfig& config, const RunPlan& plan,
                           const GpuModel& gpu);
Json to_json(const AskedScaling& scaling, const RunConfig& config);
void print(const AskedScaling& scaling, const RunConfig& config, const GpuModel& gpu);

}  // namespace octet
