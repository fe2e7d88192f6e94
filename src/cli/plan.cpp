// octet plan: what a run will need and do, without touching a device, the data or the disk.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <memory>

#include "analysis/planner.h"
#include "base/error.h"
#include "base/text.h"
#include "cli/command.h"
#include "cli/plan_scaling.h"
#include "config/document.h"
#include "training/open_device.h"

namespace octet {
namespace {

struct Options {
  std::string path, device = "cpu", gpu;
  std::vector<std::string> overrides;
  bool json = false, items = false;
  std::shared_ptr<ScalingArguments> scaling = std::make_shared<ScalingArguments>();
};

// What is planned for, and what there is to say about that choice.
struct Target {
  PlannedFor plan;
  std::unique_ptr<Device> open;
  std::string title = "the CPU device", note;
};

constexpr const char* gpu_without_one = "h200";

Target target_of(const Options& options, const RunConfig& config) {
  Target target;
  const bool many = options.scaling->ranks > 0;
  if (options.gpu.empty() && options.device == "cpu" && !many) return target;
  if (options.gpu.empty() && options.device == "cpu")
    target.note = fmt::format("--ranks without --gpu: planned for the {}", gpu_model(gpu_without_one).name);
  else if (options.gpu.empty()) {
    try {
      target.open = open_device("cuda", device_options(config));
      target.plan.open = target.open.get();
      target.title = target.open->info().name;
      target.plan.gpu = find_gpu_model(target.title);
      return target;
    } catch (const Error& error) {
      target.note = fmt::format("no GPU can be asked here ({}): planned for the {}; --gpu names another",
                                error.what(), gpu_model(gpu_without_one).name);
    }
  }
  target.plan.gpu = &gpu_model(options.gpu.empty() ? gpu_without_one : options.gpu);
  target.title = fmt::format("the GPU {}, planned without it", target.plan.gpu->name);
  return target;
}

Json to_json(const GpuFit& fit) {
  const GpuWorkspace& w = fit.workspace;
  Json root = {{"name", fit.gpu->name},
               {"compute_capability", fit.gpu->capability},
               {"memory_bytes", fit.gpu->memory_bytes()},
               {"planned_bytes", fit.planned_bytes},
               {"outside_the_plan_bytes_assumed", fit.outside_bytes},
               {"fits", fit.fits()}};
  if (w.bytes() > 0) {
    root["workspace"] = {{"kernels_bytes", w.kernels},
                         {"products_bytes_bound", w.products},
                         {"attention_bytes_estimate", w.attention.bytes()},
                         {"attention_score_matrix_bytes", w.attention.score_matrix},
                         {"attention_bytes_estimate_if_deterministic", w.deterministic.bytes()}};
  }
  root["changes"] = Json::array();
  for (const FitChange& change : fit.changes)
    root["changes"].push_back({{"key", change.key},
                               {"value", change.value},
                               {"planned_bytes", change.device_bytes},
                               {"fits", change.fits}});
  return root;
}

Json to_json(const RunPlan& plan, const RunConfig& config) {
  Json root = Json::object();
  root["name"] = config.run.name;
  root["config_hash"] = config_hash(config);
  root["parameters"] = plan.parameters;
  root["matmul_parameters"] = plan.matmul_parameters;
  root["flops"] = {{"per_token", plan.flops_per_token},
                   {"per_step", plan.flops_per_step},
                   {"total", plan.flops_total},
                   {"update_per_step", plan.update_flops},
                   {"float8_share", plan.float8_flop_share}};
  root["tokens"] = {{"per_step", plan.tokens_per_step},
                    {"total", plan.tokens_total},
                    {"per_parameter", plan.tokens_per_parameter}};
  root["steps"] = plan.steps;
  root["micro_batches_per_step"] = plan.micro_batches_per_step;
  Json memory = Json::object();
  memory["device_bytes"] = plan.device_bytes;
  memory["host_bytes"] = plan.host_bytes;
  memory["offload_bytes"] = plan.offload_bytes;
  for (const auto& [category, bytes] : plan.by_category) memory["by_category"][name_of(category)] = bytes;
  memory["unlisted_bytes"] = plan.unlisted_bytes;
  memory["items"] = Json::array();
  for (const PlannedItem& item : plan.items) {
    memory["items"].push_back({{"name", item.name},
                               {"category", name_of(item.category)},
                               {"type", item.type},
                               {"count", item.count},
                               {"elements", item.elements},
                               {"bytes", item.bytes}});
  }
  root["memory"] = memory;
  if (plan.gpu) root["gpu"] = to_json(*plan.gpu);
  for (const BytesPerParameter& row : plan.bytes_per_parameter)
    root["bytes_per_parameter"][row.item] = row.bytes;
  root["reference_bytes_per_parameter"] = Json::array();
  for (const StateScheme& scheme : reference_schemes()) {
    Json items = Json::object();
    for (const BytesPerParameter& item : scheme.items) items[item.item] = item.bytes;
    root["reference_bytes_per_parameter"].push_back(
        {{"name", scheme.name}, {"source", scheme.source}, {"items", items}, {"sum", scheme.bytes()}});
  }
  root["gemms"] = Json::array();
  for (const PlannedGemm& gemm : plan.gemms) {
    root["gemms"].push_back({{"name", gemm.name},
                             {"m", gemm.m},
                             {"n", gemm.n},
                             {"k", gemm.k},
                             {"expected_gain", gemm.expected_gain}});
  }
  root["learning_rate"] = Json::array();
  for (const auto& [step, rate] : plan.learning_rates)
    root["learning_rate"].push_back({{"step", step}, {"rate", rate}});
  root["checkpoint"] = {{"bytes", plan.checkpoint_bytes}, {"disk_bytes", plan.disk_bytes}};
  root["warnings"] = plan.warnings;
  for (const PlannedStage& stage : plan.stages)
    root["stages"].push_back({{"description", stage.description},
                              {"steps", stage.steps},
                              {"float8_share", stage.float8_flop_share},
                              {"device_bytes", stage.device_bytes},
                              {"host_bytes", stage.host_bytes}});
  return root;
}

void print_fit(const GpuFit& fit) {
  const GpuWorkspace& w = fit.workspace;
  if (w.bytes() > 0) {
    fmt::print("\nWorkspace (device.workspace): the largest of\n");
    fmt::print("  {:<22} {:>12}  exact\n", "kernels", human_bytes(w.kernels));
    fmt::print("  {:<22} {:>12}  upper bound: {} for cuBLASLt, and what outer scales take\n", "products",
               human_bytes(w.products), human_bytes(product_workspace_limit(fit.gpu->capability)));
    fmt::print("  {:<22} {:>12}  estimate: the plans of cuDNN 9.19\n", "attention",
               human_bytes(w.attention.bytes()));
    const bool deterministic = w.attention.score_matrix > 0;
    const std::string scores = human_bytes(w.deterministic.score_matrix);
    if (w.deterministic.score_matrix > 0)
      fmt::print("  {:<22} {:>12}  {}\n", deterministic ? "  deterministic" : "  if deterministic",
                 human_bytes(w.deterministic.bytes()),
                 fmt::format("backward keeps scores: 2 x batch x heads x context^2 = {}", scores));
  }
  fmt::print("\n{}: {} of memory (data sheet), compute capability {}.{}\n", fit.gpu->name,
             human_bytes(fit.gpu->memory_bytes()), fit.gpu->capability / 10, fit.gpu->capability % 10);
  fmt::print("  {:<22} {:>12}\n", "planned peak", human_bytes(fit.planned_bytes));
  fmt::print("  {:<22} {:>12}  assumed: CUDA's context, the code of libraries and kernels\n",
             "outside the plan", human_bytes(fit.outside_bytes));
  const uint64_t memory = fit.gpu->memory_bytes(), needed = fit.needed_bytes();
  if (fit.fits()) {
    fmt::print("  {:<22} {:>12}  {} are left\n", "fits", human_bytes(needed), human_bytes(memory - needed));
    return;
  }
  fmt::print("  {:<22} {:>12}  {} too much\n", "DOES NOT FIT", human_bytes(needed),
             human_bytes(needed - memory));
  if (!fit.changes.empty()) fmt::print("  what to change, each on top of the one before:\n");
  for (const FitChange& change : fit.changes)
    fmt::print("    --set {:<38} {:>12}{}\n", change.key + "=" + change.value,
               human_bytes(change.device_bytes), change.fits ? "  fits" : "");
  if (fit.changes.empty() || !fit.changes.back().fits)
    fmt::print("    {}: a shorter model.context, a smaller model, or a larger GPU\n",
               fit.changes.empty() ? "nothing of batch or precision helps" : "that is not enough");
}

void print_memory(const RunPlan& plan, const Target& target, const Options& options) {
  fmt::print("\nMemory on {}{}\n", target.title, plan.stages.empty() ? "" : ", of the largest stage");
  for (const auto& [category, bytes] : plan.by_category)
    fmt::print("  {:<22} {:>12}  {:5.1f} %\n", name_of(category), human_bytes(bytes),
               100.0 * static_cast<double>(bytes) / static_cast<double>(plan.device_bytes));
  if (plan.unlisted_bytes > 0)
    fmt::print("  {:<22} {:>12}\n", "alignment", human_bytes(static_cast<uint64_t>(plan.unlisted_bytes)));
  else if (plan.unlisted_bytes < 0)
    fmt::print("  {:<22} {:>12}\n", "shared in time",
               "-" + human_bytes(static_cast<uint64_t>(-plan.unlisted_bytes)));
  fmt::print("  {:<22} {:>12}  allocated at once, before the first step\n", "planned peak",
             human_bytes(plan.device_bytes));
  fmt::print("  {:<22} {:>12}  checkpoint snapshot, validation windows\n", "and on the host",
             human_bytes(plan.host_bytes));
  if (plan.offload_bytes > 0)
    fmt::print("  {:<22} {:>12}  page-locked on the host: masters and moments (memory.offload)\n",
               "offloaded", human_bytes(plan.offload_bytes));
  if (plan.gpu) print_fit(*plan.gpu);

  const size_t shown = options.items ? plan.items.size() : std::min<size_t>(plan.items.size(), 12);
  fmt::print("\nLargest items{}\n", shown < plan.items.size() ? " (all: --items)" : "");
  for (size_t i = 0; i < shown; ++i) {
    const PlannedItem& item = plan.items[i];
    fmt::print("  {:<44} {:<8} {:>5} x {:>10}\n", item.name, item.type, item.count,
               human_bytes(item.bytes / static_cast<uint64_t>(item.count)));
  }

  fmt::print("\nTraining state, bytes per parameter\n");
  for (const BytesPerParameter& row : plan.bytes_per_parameter)
    fmt::print("  {:<28} {:6.2f}\n", row.item, row.bytes);
  fmt::print("  elsewhere, with the items each publication counts:\n");
  for (const StateScheme& scheme : reference_schemes()) {
    std::string items;
    for (const BytesPerParameter& item : scheme.items)
      items += fmt::format("{}{} {:g}", items.empty() ? "" : ", ", item.item, item.bytes);
    fmt::print("  {:<28} {:6.2f}  {}: {}\n", scheme.name, scheme.bytes(), scheme.source, items);
    if (!scheme.settings.empty())
      fmt::print("  {:<28} {:>6}  here: --set {}\n", "", "", fmt::join(scheme.settings, " --set "));
    if (!scheme.note.empty()) fmt::print("  {:<28} {:>6}  {}\n", "", "", scheme.note);
  }
}

void print(const RunPlan& plan, const RunConfig& config, const Target& target, const Options& options) {
  const TransformerSpec& s = config.model;
  fmt::print("{}: {}, recipe {}{}\n\n", config.run.name, s.preset, config.precision.name,
             config.precision.attention == AttentionFormat::FP8 ? ", attention in FP8" : "");
  fmt::print(
      "Model     {} parameters ({}): {} layers, width {}, {} heads ({} kv), ffn {}, vocabulary {}, context "
      "{}\n",
      plan.parameters, human_count(static_cast<double>(plan.parameters)), s.layers, s.width, s.heads,
      s.kv_heads, s.ffn_width, s.vocabulary, s.context);
  fmt::print("Step      {} tokens in {} of {} x {}\n", plan.tokens_per_step,
             plural(plan.micro_batches_per_step, "micro-batch"), config.batch.micro, s.context);
  fmt::print("Run       {}, {} tokens, {:.1f} tokens a parameter\n", plural(plan.steps, "step"),
             human_count(static_cast<double>(plan.tokens_total)), plan.tokens_per_parameter);
  fmt::print("FLOPs     {:.3e} a token, {:.3e} a step, {:.3e} in all; {:.1f} % of GEMM FLOPs in FP8\n",
             plan.flops_per_token, plan.flops_per_step, plan.flops_total, 100 * plan.float8_flop_share);
  if (plan.update_flops > 0)
    fmt::print("Muon      {:.3e} FLOPs a step more: {:.1f} % beside those of a rank that has all tokens\n",
               plan.update_flops, 100 * plan.update_flops / plan.flops_per_step);
  for (const PlannedStage& stage : plan.stages)
    fmt::print("Precision {}; {}, {:.1f} % of GEMM FLOPs in FP8, {} on the device\n", stage.description,
               plural(stage.steps, "step"), 100 * stage.float8_flop_share, human_bytes(stage.device_bytes));
  fmt::print("Disk      {} a checkpoint, {} for all that are kept\n", human_bytes(plan.checkpoint_bytes),
             human_bytes(plan.disk_bytes));
  print_memory(plan, target, options);

  fmt::print("\nGEMMs of a micro-batch (tokens x outputs x inputs){}\n",
             config.precision.float8() ? " and the gain of FP8 to expect on a GPU" : "");
  for (const PlannedGemm& gemm : plan.gemms)
    fmt::print("  {:<16} {:>7} x {:>7} x {:>7}  {}\n", gemm.name, gemm.m, gemm.n, gemm.k,
               config.precision.float8() ? gemm.expected_gain : "");
  fmt::print("\nLearning rate\n");
  for (const auto& [step, rate] : plan.learning_rates) fmt::print("  step {:>10}  {:.4e}\n", step, rate);
  if (!plan.warnings.empty() || !target.note.empty()) fmt::print("\n");
  if (!target.note.empty()) fmt::print("note: {}\n", target.note);
  for (const std::string& warning : plan.warnings) fmt::print("note: {}\n", warning);
}

int run(const Options& options) {
  const RunConfig config = load_config(options.path, options.overrides);
  const Target target = target_of(options, config);
  const RunPlan plan = plan_run(config, target.plan);
  std::optional<AskedScaling> scaling;
  if (options.scaling->ranks > 0) {
    if (target.plan.gpu == nullptr)
      throw Error(ExitCode::Usage, fmt::format("--ranks: nothing is known about {}", target.title),
                  "name a GPU of the table with --gpu");
    scaling = asked_scaling(*options.scaling, config, plan, *target.plan.gpu);
  }
  if (options.json) {
    Json root = to_json(plan, config);
    if (scaling) root["scaling"] = to_json(*scaling, config);
    fmt::print("{}\n", root.dump(2));
    return 0;
  }
  print(plan, config, target, options);
  if (scaling) print(*scaling, config, *target.plan.gpu);
  return 0;
}

}  // namespace

void add_plan(CLI::App& app, Action& action) {
  auto options = std::make_shared<Options>();
  CLI::App* command =
      app.add_subcommand("plan", "Show memory, FLOPs, tokens and schedule of a run; nothing is touched");
  command->add_option("CONFIG", options->path, "configuration file")->required();
  command->add_option("--set", options->overrides, "override a key: section.key=value (repeatable)")
      ->allow_extra_args(false);
  command->add_option("--device", options->device, "cpu, or cuda: the GPU here, or one that --gpu names")
      ->check(CLI::IsMember({"cpu", "cuda"}));
  command->add_option("--gpu", options->gpu,
                      "plan for this GPU, which need not be here: h200, a100, rtx4090, ...");
  command->add_flag("--json", options->json, "print JSON");
  command->add_flag("--items", options->items, "list every item of the memory plan");
  add_scaling_options(*command, options->scaling);
  command->footer(
      "Example:\n  octet plan configs/8b-fp8.json --set batch.micro=2\n  octet plan configs/3b-fp8.json "
      "--gpu rtx4090\n  octet plan configs/8b-fp8.json --ranks 64 --link 400G");
  command->callback([options, &action] { action = [options] { return run(*options); }; });
}

}  // namespace octet
