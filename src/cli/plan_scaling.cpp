#include "cli/plan_scaling.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "base/files.h"
#include "base/text.h"

namespace octet {
namespace {

std::string duration(double seconds) {
  if (seconds == 0) return "-";
  if (seconds < 1e-3) return fmt::format("{:.0f} us", 1e6 * seconds);
  if (seconds < 1) return fmt::format("{:.0f} ms", 1e3 * seconds);
  if (seconds < 120) return fmt::format("{:.1f} s", seconds);
  if (seconds < 7200) return fmt::format("{:.0f} min", seconds / 60);
  if (seconds < 172800) return fmt::format("{:.1f} h", seconds / 3600);
  return fmt::format("{:.1f} days", seconds / 86400);
}

Json to_json(const ScalingPoint& point) {
  Json json = {{"ranks", point.ranks}, {"nodes", point.nodes}};
  if (!point.problem.empty()) {
    json["problem"] = point.problem;
    return json;
  }
  json["micro"] = point.micro;
  json["accumulation"] = point.accumulation;
  json["seconds"] = {{"step", point.step_seconds},
                     {"compute", point.compute_seconds},
                     {"update", point.update_seconds},
                     {"reduce", point.reduce_seconds},
                     {"reduce_exposed", point.reduce_exposed},
                     {"gather", point.gather_seconds},
                     {"gather_exposed", point.gather_exposed},
                     {"overlap", point.overlap_seconds},
                     {"control", point.control_seconds}};
  json["tokens_per_second"] = point.tokens_per_second;
  json["efficiency"] = point.efficiency;
  json["sent_bytes_per_rank"] = point.sent_bytes;
  json["memory_bytes_per_rank"] = point.memory_bytes;
  return json;
}

void print_constants(const AskedScaling& scaling) {
  fmt::print("  counted with (--constant NAME=NUMBER changes one):\n");
  for (const std::string& name : scaling.plan.used) {
    const ScalingConstant& constant = scaling.constants.at(name);
    fmt::print("    {:<9} {:<31} {:>9.4g}  {}\n", constant.kind, name, constant.value, constant.unit);
  }
  fmt::print("  their sources: docs/results/scaling_constants.json, or --json\n");
}

void print_curve(const AskedScaling& scaling) {
  fmt::print("\n  {:>6} {:>5} {:>13} {:>9} {:>9} {:>9} {:>9} {:>9} {:>11} {:>10} {:>11}\n", "ranks", "nodes",
             "micro x accum", "step", "compute", "reduce", "gather", "other", "tokens/s", "efficiency",
             "memory/rank");
  for (const ScalingPoint& p : scaling.plan.curve) {
    if (!p.problem.empty()) {
      fmt::print("  {:>6} {:>5} does not work: {}\n", p.ranks, p.nodes, p.problem);
      continue;
    }
    fmt::print("  {:>6} {:>5} {:>13} {:>9} {:>9} {:>9} {:>9} {:>9} {:>11} {:>8.1f} % {:>11}\n", p.ranks,
               p.nodes, fmt::format("{} x {}", p.micro, p.accumulation), duration(p.step_seconds),
               duration(p.compute_seconds), duration(p.reduce_exposed), duration(p.gather_exposed),
               duration(p.update_seconds + p.overlap_seconds + p.control_seconds),
               fmt::format("{:.0f}", p.tokens_per_second), 100 * p.efficiency,
               human_bytes(static_cast<uint64_t>(p.memory_bytes)));
  }
  fmt::print(
      "  reduce, gather: what a step waits for, beyond what hides behind compute; other: update, overlap's\n"
      "  cost, norm and amaxes. Efficiency: tokens a second and rank against one rank.\n");
  if (scaling.plan.bfloat16_saves_seconds > 0)
    fmt::print(
        "  With parallel.reduce bf16 a step of {} ranks is {} shorter: between nodes an all-to-all of FP8 "
        "codes\n"
        "  carries every rank's own gradients, a ring of BF16 the sum of a node's.\n",
        scaling.plan.asked.ranks, duration(scaling.plan.bfloat16_saves_seconds));
}

void print_ranks_that_work(const AskedScaling& scaling) {
  const ScalingPlan& plan = scaling.plan;
  constexpr size_t most = 40;
  std::vector<int64_t> ranks = plan.working_ranks;
  const size_t more = ranks.size() > most ? ranks.size() - most : 0;
  ranks.resize(ranks.size() - more);
  fmt::print("\n  {} windows a step divide among {}{} ranks\n", plan.job.windows, fmt::join(ranks, ", "),
             more > 0 ? fmt::format(" and {} larger numbers of", more) : "");
  if (plan.job.micro > 1)
    fmt::print("  beyond {} ranks micro-batches are smaller than batch.micro\n",
               plan.job.windows / plan.job.micro);
}

void print_failures(const AskedScaling& scaling, const RunConfig& config) {
  const ScalingPlan& plan = scaling.plan;
  const FailureModel& f = plan.failures;
  const CheckpointAdvice& advice = plan.advice;
  fmt::print("\n  Failures of {} nodes: one in {} (a node's {} h by their number)\n", plan.asked.nodes,
             duration(advice.job_mtbf_seconds), scaling.constants["node_mtbf_hours"]);
  fmt::print("  a save stops training for {} and is whole after {}; a restart takes {}\n",
             duration(f.stall_seconds), duration(f.write_seconds), duration(f.restart_seconds));
  fmt::print("  best interval sqrt(2 x stop x time between failures), not below a write: {}",
             duration(advice.interval_seconds));
  if (!plan.asked.problem.empty()) {
    fmt::print("\n");
    return;
  }
  const double step = plan.asked.step_seconds;
  const auto every = std::max<int64_t>(1, std::llround(advice.interval_seconds / step));
  fmt::print(" = checkpoint.every {}; lost with it: {:.2f} %\n", every, 100 * advice.lost_share);
  if (config.checkpoint.every > 0)
    fmt::print("  lost with the configuration's {} steps ({}): {:.2f} %\n", config.checkpoint.every,
               duration(static_cast<double>(config.checkpoint.every) * step),
               100 * lost_share(f, plan.asked.nodes, static_cast<double>(config.checkpoint.every) * step));
}

}  // namespace

void add_scaling_options(CLI::App& command, const std::shared_ptr<ScalingArguments>& a) {
  const std::string group = "Many GPUs (predicted, see docs/operations.md)";
  command.add_option("--ranks", a->ranks, "predict step time, memory and efficiency on so many GPUs")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 20))
      ->group(group);
  command.add_option("--link", a->link, "a GPU's share of its node's network: 400G (bit/s), 50GB (byte/s)")
      ->group(group);
  command
      .add_option("--intra-link", a->intra_link, "a GPU to the others of its node: 450GB; default: the GPU's")
      ->group(group);
  command.add_option("--ranks-per-node", a->ranks_per_node, "GPUs of a node")
      ->check(CLI::Range(1, 4096))
      ->group(group);
  command
      .add_option("--zero", a->zero,
                  "instead of parallel.zero; 0: nothing sharded, 1: masters and moments, 2: gradients too")
      ->check(CLI::IsMember({0, 1, 2}))
      ->group(group);
  command
      .add_option("--reduce", a->gradients,
                  "gradients on the wire instead of parallel.reduce: fp32, bf16 or fp8")
      ->check(CLI::IsMember({"fp32", "bf16", "fp8"}))
      ->group(group);
  command.add_option("--gather", a->weights, "weights on the wire: bf16 or fp8 (codes)")
      ->check(CLI::IsMember({"bf16", "fp8"}))
      ->group(group);
  command.add_option("--mtbf-hours", a->mtbf_hours, "mean time between failures of one node")
      ->check(CLI::PositiveNumber)
      ->group(group);
  command.add_option("--save-bandwidth", a->save_bandwidth, "of one node to storage: 2GB")->group(group);
  command
      .add_option("--tokens-per-second", a->tokens_per_second, "of one GPU, as octet bench step measured it")
      ->check(CLI::PositiveNumber)
      ->group(group);
  command.add_option("--constants", a->constants_file, "a file like docs/results/scaling_constants.json")
      ->group(group);
  command.add_option("--constant", a->constants, "NAME=NUMBER of one constant (repeatable)")
      ->allow_extra_args(false)
      ->group(group);
}

AskedScaling asked_scaling(const ScalingArguments& a, const RunConfig& config, const RunPlan& plan,
                           const GpuModel& gpu) {
  AskedScaling asked;
  asked.constants =
      a.constants_file.empty()
          ? ScalingConstants::committed()
          : ScalingConstants::parse(read_text(a.constants_file, ExitCode::Usage), a.constants_file);
  for (const std::string& assignment : a.constants) asked.constants.give(assignment);
  if (!a.link.empty()) asked.constants.give("link_bits_per_second", 8 * bandwidth_of(a.link, "--link"));
  if (a.ranks_per_node > 0) asked.constants.give("ranks_per_node", static_cast<double>(a.ranks_per_node));
  if (a.mtbf_hours > 0) asked.constants.give("node_mtbf_hours", a.mtbf_hours);
  if (!a.save_bandwidth.empty())
    asked.constants.give("save_bytes_per_second_per_node",
                         bandwidth_of(a.save_bandwidth, "--save-bandwidth"));
  ScalingOptions options;
  options.ranks = a.ranks;
  options.zero = a.zero;
  options.gradients = a.gradients;
  options.weights = a.weights;
  options.intra_bandwidth = a.intra_link.empty() ? 0 : bandwidth_of(a.intra_link, "--intra-link");
  options.tokens_per_second = a.tokens_per_second;
  asked.plan = plan_scaling(config, plan, gpu, asked.constants, options);
  return asked;
}

Json to_json(const AskedScaling& scaling, const RunConfig& config) {
  const ScalingPlan& plan = scaling.plan;
  Json root = {{"ranks", plan.asked.ranks},
               {"zero", plan.job.zero},
               {"sync_every", plan.job.sync_every},
               {"reduce", name_of(plan.job.gradients)},
               {"gather", plan.job.zero > 0 ? Json(name_of(plan.job.weights)) : Json()},
               {"at_ranks", to_json(plan.asked)},
               {"curve", Json::array()},
               {"working_ranks", plan.working_ranks}};
  for (const ScalingPoint& point : plan.curve) root["curve"].push_back(to_json(point));
  if (plan.bfloat16_saves_seconds > 0) root["bf16_gradients_save_seconds"] = plan.bfloat16_saves_seconds;
  root["failures"] = {{"job_mtbf_seconds", plan.advice.job_mtbf_seconds},
                      {"save_stall_seconds", plan.failures.stall_seconds},
                      {"save_write_seconds", plan.failures.write_seconds},
                      {"restart_seconds", plan.failures.restart_seconds},
                      {"best_interval_seconds", plan.advice.interval_seconds},
                      {"lost_share", plan.advice.lost_share}};
  if (plan.asked.problem.empty() && config.checkpoint.every > 0)
    root["failures"]["lost_share_as_configured"] =
        lost_share(plan.failures, plan.asked.nodes,
                   static_cast<double>(config.checkpoint.every) * plan.asked.step_seconds);
  for (const std::string& name : plan.used) {
    const ScalingConstant& c = scaling.constants.at(name);
    root["constants"][name] = {{"value", c.value}, {"unit", c.unit}, {"kind", c.kind}, {"source", c.source}};
  }
  return root;
}

void print(const AskedScaling& scaling, const RunConfig& config, const GpuModel& gpu) {
  const ScalingPlan& plan = scaling.plan;
  const ScalingJob& job = plan.job;
  fmt::print("\nPrediction for {} x {}: ZeRO-{}, gradients {} on the wire{}\n", plan.asked.ranks, gpu.name,
             job.zero, name_of(job.gradients),
             job.sync_every > 1 ? fmt::format(", exchanged once in {} steps", job.sync_every)
             : job.zero > 0     ? fmt::format(", weights gathered in {}",
                                          job.weights == WireFormat::FP8 ? "fp8 codes" : name_of(job.weights))
                                : "");
  if (plan.peak_flops > 0)
    fmt::print("  {:.0f} TFLOP/s a GPU: the {}'s dense {} peak of {:.0f} by the utilisation below\n",
               1e-12 * job.compute_rate, gpu.name, config.precision.float8() ? "FP8" : "BF16",
               1e-12 * plan.peak_flops);
  else
    fmt::print("  {:.0f} TFLOP/s a GPU, from the measured speed\n", 1e-12 * job.compute_rate);
  if (plan.asked.problem.empty()) {
    const auto needed = static_cast<uint64_t>(plan.asked.memory_bytes) + GpuFit{}.outside_bytes;
    fmt::print("  {} of memory a rank, {} outside the plan included: {} the {}'s {}\n", human_bytes(needed),
               human_bytes(GpuFit{}.outside_bytes), needed <= gpu.memory_bytes() ? "fits" : "DOES NOT FIT",
               gpu.name, human_bytes(gpu.memory_bytes()));
  }
  print_constants(scaling);
  print_curve(scaling);
  print_ranks_that_work(scaling);
  print_failures(scaling, config);
}

}  // namespace octet
