#include "analysis/scaling_plan.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>

#include "base/error.h"
#include "base/text.h"
#include "device/gpu/interpreted/planned_gpu.h"
#include "training/open_device.h"
#include "training/run_memory.h"
#include "training/segment.h"

namespace octet {
namespace {

WireFormat wire_of(GradientWire wire) {
  switch (wire) {
    case GradientWire::FP32:
      return WireFormat::FP32;
    case GradientWire::BF16:
      return WireFormat::BF16;
    default:
      return WireFormat::FP8;
  }
}

double bfloat16_saves(ScalingJob job, const Network& network, const ScalingPoint& asked) {
  if (job.gradients != WireFormat::FP8 || !asked.problem.empty()) return 0;
  job.gradients = WireFormat::BF16;
  return std::max(0.0, asked.step_seconds - scaling_point(job, network, asked.ranks).step_seconds);
}

// A weight that all its products read as codes of one scale is gathered as such (Linear::code_shard).
double gathered_codes(const RunConfig& config, int64_t block) {
  int64_t codes = 0;
  for (int i = 0; i < block_linears; ++i) {
    const auto which = static_cast<BlockLinear>(i);
    if (formats_of(config.precision, static_cast<int>(config.model.layers), static_cast<int>(block), which)
            .gathers_codes())
      codes += config.model.linear_elements(which);
  }
  return static_cast<double>(codes);
}
bool gathers_codes(const RunConfig& config) {
  for (int64_t block = 0; block < config.model.layers; ++block)
    if (gathered_codes(config, block) > 0) return true;
  return false;
}

WireFormat weights_of(const RunConfig& config, const ScalingOptions& options) {
  if (options.weights.empty()) return gathers_codes(config) ? WireFormat::FP8 : WireFormat::BF16;
  const WireFormat format = options.weights == "fp8" ? WireFormat::FP8 : WireFormat::BF16;
  if (format == WireFormat::FP8 && !gathers_codes(config))
    throw Error(ExitCode::Usage, "--gather fp8: not all products of this recipe's weights are in FP8",
                "use --gather bf16, or precision.recipe fp8");
  return format;
}

std::vector<ScalingLayer> layers_of(const RunConfig& config) {
  const TransformerSpec& s = config.model;
  const auto number = [](int64_t n) { return static_cast<double>(n); };
  const double table = number(s.vocabulary * s.width), head_flops = 6 * table;
  const double all = number(s.parameters()), head = s.tied_head ? 0 : table;
  const double blocks = number(s.layers);

  ScalingLayer block;
  block.parameters = (all - table - head - number(s.width)) / blocks;
  block.flops_per_token = (s.flops_per_token() - head_flops) / blocks;

  std::vector<ScalingLayer> layers = {{table, 0, 0}};
  for (int64_t i = 0; i < s.layers; ++i) {
    layers.push_back(block);
    layers.back().float8_parameters = gathered_codes(config, i);
  }
  const double head_codes = head_formats(config.precision).gathers_codes() ? head : 0;
  layers.push_back({head + number(s.width), head_codes, head_flops});
  return layers;
}

// Rank 0's memory, in which no rank has more.
struct RankMemory {
  double bytes = 0;  // the device's
  std::map<Category, double> by_category;
  double of(Category category) const {
    const auto found = by_category.find(category);
    return found == by_category.end() ? 0 : found->second;
  }
};
RankMemory plan_stage(Device* device, const RunConfig& config, int64_t ranks) {
  MemoryPlan placed, host, offload;
  const RunMemory planned(device, config, {placed, host, offload}, {0, static_cast<int>(ranks)});
  RankMemory memory;
  memory.bytes = static_cast<double>(placed.peak_bytes());
  for (const MemoryPlan* plan : {&placed, &offload})
    for (const MemoryPlan::Item& item : plan->items())
      memory.by_category[item.category] += static_cast<double>(item.bytes);
  return memory;
}
// Of the stage of a precision schedule that takes the most.
RankMemory plan_rank(Device* device, const RunConfig& config, int64_t ranks) {
  RankMemory most;
  for_each_stage(config, [&](const RunConfig& stage) {
    RankMemory memory = plan_stage(device, stage, ranks);
    if (memory.bytes > most.bytes) most = std::move(memory);
  });
  return most;
}

// The point with its memory, or with the reason why training refuses it.
ScalingPoint with_memory(ScalingPoint point, Device* device, RunConfig config) {
  if (!point.problem.empty()) return point;
  config.batch.micro = point.micro;
  try {
    point.memory_bytes = plan_rank(device, config, point.ranks).bytes;
  } catch (const Error& error) {
    if (error.code() != ExitCode::Usage) throw;
    ScalingPoint refused;
    refused.ranks = point.ranks;
    refused.nodes = point.nodes;
    refused.problem = fmt::format("{} ({})", error.what(), error.hint());
    return refused;
  }
  return point;
}

}  // namespace

FailureModel failure_model(const RunConfig& config, const RunPlan& plan, const ScalingConstants& constants,
                           const Network& network, int64_t ranks) {
  const auto bytes = static_cast<double>(plan.checkpoint_bytes);
  const auto nodes = static_cast<double>(network.nodes(ranks));
  FailureModel model;
  model.node_mtbf_seconds = 3600 * constants["node_mtbf_hours"];
  model.restart_seconds = constants["restart_seconds"];
  // All ranks write their parts at once.
  model.stall_seconds = constants["save_pause_seconds"] +
                        bytes / static_cast<double>(ranks) / constants["host_copy_bytes_per_second"];
  model.write_seconds = bytes / std::min(nodes * constants["save_bytes_per_second_per_node"],
                                         constants["storage_bytes_per_second"]);
  if (!config.checkpoint.asynchronous) {
    model.stall_seconds += model.write_seconds;
    model.write_seconds = 0;
  }
  return model;
}

RunConfig asked_config(const RunConfig& config, const ScalingOptions& options) {
  RunConfig asked = config;
  if (options.zero) asked.parallel.zero = *options.zero;
  std::vector<std::string> overrides;
  if (!options.gradients.empty()) overrides.push_back("parallel.reduce=" + options.gradients);
  return parse_config(to_json(asked), "the configuration as asked for", overrides);
}

ScalingPlan plan_scaling(const RunConfig& configured, const RunPlan& plan, const GpuModel& gpu,
                         const ScalingConstants& constants, const ScalingOptions& options) {
  if (options.ranks < 1 || options.ranks > (int64_t{1} << 20))
    throw Error(ExitCode::Usage, fmt::format("--ranks {}: allowed: 1 to 1048576", options.ranks),
                "give the number of GPUs");
  const RunConfig config = asked_config(configured, options);
  const PlannedGpu planned = plan_gpu(gpu, device_options(config));
  ScalingPlan made;
  ScalingJob& job = made.job;
  job.layers = layers_of(config);
  job.windows = global_batch(config);
  job.micro = config.batch.micro;
  job.context = config.model.context;
  job.zero = static_cast<int>(config.parallel.zero);
  job.sync_every = config.parallel.sync_every;
  job.gradients = wire_of(config.parallel.reduce);
  job.weights = weights_of(config, options);
  job.overlap_cost = constants["overlap_cost"];
  made.used = {"overlap_cost",
               "update_bandwidth_share",
               "ranks_per_node",
               "link_bits_per_second",
               "link_efficiency",
               "intra_link_efficiency",
               "call_latency_microseconds",
               "intra_latency_microseconds",
               "inter_latency_microseconds",
               "tree_efficiency",
               "save_pause_seconds",
               "host_copy_bytes_per_second",
               "save_bytes_per_second_per_node",
               "storage_bytes_per_second",
               "node_mtbf_hours",
               "restart_seconds"};
  if (options.tokens_per_second > 0) {
    job.compute_rate =
        options.tokens_per_second * plan.flops_per_token;  // recomputation is in the measurement
  } else {
    const bool float8 = config.precision.float8();
    const char* utilisation = float8 ? "utilisation_fp8" : "utilisation_bf16";
    made.peak_flops = 1e12 * (float8 ? gpu.float8_tera_flops : gpu.bfloat16_tera_flops);
    job.compute_rate = made.peak_flops * constants[utilisation];
    job.recompute = config.batch.recompute == Recompute::Block ? 1 : 0;
    made.used.insert(made.used.begin(), utilisation);
  }
  // The update reads and writes masters and moments and reads gradients, after the norm read them and before
  // they are cleared; the refresh reads masters and writes working weights.
  const double memory_rate = 1e12 * gpu.memory_tera_bandwidth * constants["update_bandwidth_share"];
  const RankMemory alone = plan_rank(planned.device.get(), config, 1);
  const double masters = alone.of(Category::Masters),
               moments = alone.of(Category::FirstMoments) + alone.of(Category::SecondMoments),
               gradients = alone.of(Category::Gradients);
  job.update_seconds = (2 * masters + 2 * moments + 3 * gradients) / memory_rate;
  if (plan.update_flops > 0) {  // Muon's products, on every rank
    job.update_seconds +=
        plan.update_flops / (1e12 * gpu.bfloat16_tera_flops * constants["utilisation_bf16"]);
    made.used.push_back("utilisation_bf16");
  }
  job.refresh_seconds = (masters + alone.of(Category::WorkingWeights)) / memory_rate;

  Network& network = made.network;
  network.ranks_per_node = static_cast<int64_t>(constants["ranks_per_node"]);
  network.inter_bandwidth = constants["link_bits_per_second"] / 8 * constants["link_efficiency"];
  network.intra_bandwidth =
      (options.intra_bandwidth > 0 ? options.intra_bandwidth : 1e9 * gpu.peer_giga_bandwidth) *
      constants["intra_link_efficiency"];
  network.call_latency = 1e-6 * constants["call_latency_microseconds"];
  network.intra_latency = 1e-6 * constants["intra_latency_microseconds"];
  network.inter_latency = 1e-6 * constants["inter_latency_microseconds"];
  network.tree_efficiency = constants["tree_efficiency"];

  std::vector<int64_t> counts;
  for (int64_t ranks = 1; ranks <= most_ranks; ranks *= 2) counts.push_back(ranks);
  counts.push_back(options.ranks);
  std::sort(counts.begin(), counts.end());
  counts.erase(std::unique(counts.begin(), counts.end()), counts.end());
  for (const ScalingPoint& point : scaling_curve(job, network, counts))
    made.curve.push_back(with_memory(point, planned.device.get(), config));
  made.asked = scaling_point(job, network, options.ranks);
  if (made.asked.problem.empty()) {  // what training refuses is refused here in its words
    RunConfig divided = config;
    divided.batch.micro = made.asked.micro;
    made.asked.memory_bytes = plan_rank(planned.device.get(), divided, options.ranks).bytes;
  }
  made.bfloat16_saves_seconds = bfloat16_saves(job, network, made.asked);
  made.working_ranks = working_ranks(job.windows, most_ranks);
  made.failures = failure_model(config, plan, constants, network, options.ranks);
  made.advice = checkpoint_advice(made.failures, made.asked.nodes);
  return made;
}

}  // namespace octet
