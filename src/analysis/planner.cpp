#include "analysis/planner.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <map>
#include <memory>
#include <set>

#include "base/text.h"
#include "device/products.h"
#include "numerics/small_float.h"
#include "optimizer/muon.h"
#include "optimizer/schedule.h"
#include "training/open_device.h"
#include "training/precision_proof.h"
#include "training/run_memory.h"
#include "training/segment.h"

namespace octet {
namespace {

// "blocks.11.ffn.down.weight" -> "blocks.*.ffn.down.weight".
std::string fold_numbers(const std::string& name) {
  std::string out;
  for (size_t i = 0; i < name.size();) {
    const bool starts = i == 0 || name[i - 1] == '.';
    size_t end = i;
    while (end < name.size() && std::isdigit(static_cast<unsigned char>(name[end]))) ++end;
    if (starts && end > i && (end == name.size() || name[end] == '.')) {
      out += '*';
      i = end;
    } else {
      out += name[i++];
    }
  }
  return out;
}

void add_memory(const RunConfig& config, const PlannedFor& target, RunPlan& plan) {
  // The workspace of a device depends on the run's options, so those it gets.
  const PlannedGpu gpu = target.gpu ? plan_gpu(*target.gpu, device_options(config)) : PlannedGpu{};
  const std::unique_ptr<Device> cpu = make_cpu_device(device_options(config));
  Device* const planned_for = target.open ? target.open : gpu.device ? gpu.device.get() : cpu.get();
  MemoryPlan device, host, offload;
  RunMemory memory(planned_for, config, {device, host, offload});
  if (config.optimizer.name == OptimizerName::Muon)
    for (const Matmul& m : muon_products(memory.model.parameters(), dtype_of(config.precision.storage)))
      plan.update_flops +=
          static_cast<double>(config.optimizer.muon_steps) * static_cast<double>(matmul_flops(m));
  plan.device_bytes = device.peak_bytes();
  plan.offload_bytes = offload.peak_bytes();
  plan.host_bytes = host.peak_bytes();
  plan.checkpoint_bytes = checkpoint_bytes(memory.snapshot.payloads());

  std::map<Category, uint64_t> categories;
  std::map<std::tuple<std::string, Category, DType>, PlannedItem> items;
  std::map<std::pair<Category, DType>, uint64_t> states;
  for (const MemoryPlan::Item& item : device.items()) {
    categories[item.category] += item.bytes;
    states[{item.category, item.dtype}] += static_cast<uint64_t>(item.shape.elements()) * size_of(item.dtype);
    PlannedItem& row = items[{fold_numbers(item.name), item.category, item.dtype}];
    row.name = fold_numbers(item.name);
    row.category = item.category;
    row.type = name_of(item.dtype);
    row.count += 1;
    row.elements += item.shape.elements();
    row.bytes += item.bytes;
  }
  for (const MemoryPlan::Item& item : offload.items())
    states[{item.category, item.dtype}] += static_cast<uint64_t>(item.shape.elements()) * size_of(item.dtype);
  plan.by_category.assign(categories.begin(), categories.end());
  int64_t listed = 0;
  for (const auto& [category, bytes] : categories) listed += static_cast<int64_t>(bytes);
  plan.unlisted_bytes = static_cast<int64_t>(plan.device_bytes) - listed;
  for (const auto& [key, row] : items) plan.items.push_back(row);
  std::stable_sort(plan.items.begin(), plan.items.end(),
                   [](const PlannedItem& a, const PlannedItem& b) { return a.bytes > b.bytes; });

  double sum = 0;
  for (const Category category :
       {Category::Masters, Category::Gradients, Category::WorkingWeights, Category::FirstMoments,
        Category::SecondMoments, Category::OuterStates, Category::ScaleTable}) {
    for (const auto& [key, bytes] : states) {
      if (key.first != category) continue;
      const double each = static_cast<double>(bytes) / static_cast<double>(plan.parameters);
      plan.bytes_per_parameter.push_back(
          {fmt::format("{} {}", name_of(category), name_of(key.second)), each});
      sum += each;
    }
  }
  plan.bytes_per_parameter.push_back({"sum", sum});
  if (target.gpu) plan.gpu = gpu_fit(config, *target.gpu, *gpu.workspace, plan.device_bytes);
}

// FP8 GEMMs on H100-class GPUs against BF16 by size, casts included: no gain up to 2048, about 1.2 at
// 4096, 1.4 to 1.5 at 8192 (roofline of pytorch/ao pull request 940).
std::string expected_gain(int64_t smallest) {
  if (smallest <= 2048) return "none";
  if (smallest < 8192) return "about 1.2x";
  return "1.4x to 1.5x";
}

void add_gemms(const RunConfig& config, RunPlan& plan) {
  const TransformerSpec& s = config.model;
  const int64_t tokens = config.batch.micro * s.context;
  plan.gemms = {{"attention.qkv", tokens, s.qkv_width(), s.width, {}},
                {"attention.out", tokens, s.width, s.attention_width(), {}},
                {is_gated(s.activation) ? "ffn.gate_up" : "ffn.up", tokens, s.up_width(), s.width, {}},
                {"ffn.down", tokens, s.width, s.ffn_width, {}}};
  for (PlannedGemm& gemm : plan.gemms) gemm.expected_gain = expected_gain(std::min({gemm.m, gemm.n, gemm.k}));
  plan.gemms.push_back({"head", tokens, s.vocabulary, s.width,
                        config.precision.head == HeadFormat::FP8
                            ? expected_gain(std::min({tokens, s.vocabulary, s.width}))
                            : "in storage precision"});
}

double float8_share(const RunConfig& config) {
  const double head = static_cast<double>(config.model.vocabulary * config.model.width);
  const double all = static_cast<double>(config.model.matmul_parameters());
  double share = 0;
  for (const GemmClass gemm : {GemmClass::Fprop, GemmClass::Dgrad, GemmClass::Wgrad})
    share += promised_fp8_share(config.model, config.precision, gemm) * (all - head) / (3 * all);
  for (const GemmClass gemm : {GemmClass::HeadFprop, GemmClass::HeadDgrad, GemmClass::HeadWgrad})
    share += promised_fp8_share(config.model, config.precision, gemm) * head / (3 * all);
  return share;
}

void add_learning_rates(const RunConfig& config, RunPlan& plan) {
  const int64_t steps = config.run.steps, warmup = config.schedule.warmup_steps;
  std::set<int64_t> at = {0,         warmup / 2,    warmup,         steps / 4,
                          steps / 2, steps * 3 / 4, steps * 9 / 10, steps - 1};
  for (const int64_t step : at) {
    if (step >= 0 && step < steps)
      plan.learning_rates.push_back({step, learning_rate(config.schedule, step, steps)});
  }
}

void warn_of_the_machine(const RunPlan& plan, std::vector<std::string>& warnings) {
  const long pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGE_SIZE);
  const uint64_t memory =
      pages > 0 && page > 0 ? static_cast<uint64_t>(pages) * static_cast<uint64_t>(page) : 0;
  const uint64_t wanted = plan.device_bytes + plan.host_bytes + plan.offload_bytes;
  if (memory > 0 && wanted > memory) {
    warnings.push_back(fmt::format("{} on the CPU device is more than this machine's {} of memory",
                                   human_bytes(wanted), human_bytes(memory)));
  }
}

void add_warnings(const RunConfig& config, RunPlan& plan) {
  const auto warn = [&](std::string text) { plan.warnings.push_back(std::move(text)); };
  const Recipe& recipe = config.precision;
  if (recipe.float8() && config.model.width <= 2048) {
    warn(fmt::format(
        "width {}: FP8 GEMMs with a dimension of 2048 or less are no faster than BF16 on H100-class GPUs "
        "(pytorch/ao pull request 940); FP8 moments still save memory",
        config.model.width));
  }
  if (recipe.simulate.reduces()) {
    warn(
        fmt::format("precision.simulate: operands of the blocks' products are BF16 values reduced to {}; "
                    "memory and speed are those of BF16",
                    name_of(recipe.simulate)));
  }
  if (recipe.float8() && is_one_scale(recipe.input.scaling) && recipe.smooth_swiglu == SmoothSwiGLU::None &&
      recipe.smooth_quant == 0 && is_gated(config.model.activation) &&
      recipe.input.scaling != Scaling::Quantile) {
    warn(
        "smooth_swiglu \"none\": outliers of the SwiGLU product share one scale; FP8 runs of hundreds of "
        "billions of "
        "tokens have diverged this way (Fishman et al. 2409.12517)");
  }
  if (plan.tokens_per_parameter < 20) {
    warn(fmt::format(
        "{:.1f} tokens a parameter: compute-optimal training takes about 20 (Hoffmann et al. 2203.15556)",
        plan.tokens_per_parameter));
  }
  if (config.schedule.warmup_steps == 0) warn("no warmup: Adam's first steps use the full learning rate");
  if (config.data.train.empty())
    warn("/data/train is empty: this configuration can be planned but not trained");
  if (config.evaluation.every > 0 && config.data.validation.empty())
    warn("/data/validation is empty: no validation loss will be measured");
}

RunPlan plan_stage(const RunConfig& config, const PlannedFor& target) {
  RunPlan plan;
  plan.parameters = config.model.parameters();
  plan.matmul_parameters = config.model.matmul_parameters();
  plan.steps = config.run.steps;
  plan.tokens_per_step = config.batch.tokens;
  plan.micro_batches_per_step = accumulation(config);
  plan.tokens_total = plan.steps * plan.tokens_per_step;
  plan.tokens_per_parameter = static_cast<double>(plan.tokens_total) / static_cast<double>(plan.parameters);
  plan.flops_per_token = config.model.flops_per_token();
  plan.flops_per_step = plan.flops_per_token * static_cast<double>(plan.tokens_per_step);
  plan.flops_total = plan.flops_per_token * static_cast<double>(plan.tokens_total);
  plan.float8_flop_share = float8_share(config);
  add_memory(config, target, plan);
  add_gemms(config, plan);
  add_learning_rates(config, plan);

  const CheckpointOptions& c = config.checkpoint;
  const int64_t saves = c.every > 0 ? (plan.steps + c.every - 1) / c.every : 1;
  const int64_t kept = std::min(c.keep, saves) + 1;  // one more while it is being written
  const int64_t permanent = c.keep_every > 0 ? plan.steps / c.keep_every : 0;
  plan.disk_bytes = plan.checkpoint_bytes * static_cast<uint64_t>(kept + permanent);
  add_warnings(config, plan);
  if (!target.gpu && !target.open) warn_of_the_machine(plan, plan.warnings);
  return plan;
}

}  // namespace

RunPlan plan_run(const RunConfig& config, const PlannedFor& target) {
  std::vector<RunPlan> plans;
  for_each_stage(config, [&](const RunConfig& stage) { plans.push_back(plan_stage(stage, target)); });
  RunPlan plan = *std::max_element(plans.begin(), plans.end(), [](const RunPlan& a, const RunPlan& b) {
    return a.device_bytes < b.device_bytes;
  });
  if (plans.size() == 1) return plan;
  plan.warnings.clear();
  plan.float8_flop_share = 0;
  for (size_t i = 0; i < plans.size(); ++i) {
    const int64_t begin = i == 0 ? 0 : config.precision_schedule[i - 1].from,
                  end = i + 1 == plans.size() ? plan.steps : config.precision_schedule[i].from;
    const RunPlan& one = plans[i];
    plan.stages.push_back(
        {describe_stage(config, i), end - begin, one.float8_flop_share, one.device_bytes, one.host_bytes});
    plan.float8_flop_share +=
        one.float8_flop_share * static_cast<double>(end - begin) / static_cast<double>(plan.steps);
    plan.host_bytes = std::max(plan.host_bytes, one.host_bytes);
    for (const std::string& warning : one.warnings)
      if (std::find(plan.warnings.begin(), plan.warnings.end(), warning) == plan.warnings.end())
        plan.warnings.push_back(warning);
  }
  return plan;
}

double StateScheme::bytes() const {
  double sum = 0;
  for (const BytesPerParameter& item : items) sum += item.bytes;
  return sum;
}

std::vector<StateScheme> reference_schemes() {
  const char* kaitchup = "The Kaitchup on nanotron's FP8";
  const char* playbook = "Ultra-Scale Playbook";
  constexpr double four = 4, two = 2, one = 1;
  const std::vector<std::string> bf16 = {"precision.recipe=bf16"}, fp8 = {"precision.recipe=fp8"};
  const auto with = [](std::vector<std::string> settings, std::initializer_list<const char*> more) {
    for (const char* setting : more) settings.push_back(std::string("precision.") + setting);
    return settings;
  };
  return {
      {"all FP32",
       kaitchup,
       {{"weight", four}, {"gradient", four}, {"first moment", four}, {"second moment", four}},
       {"precision.recipe=fp32"}},
      {"BF16, FP32 moments",
       kaitchup,
       {{"weight", two}, {"gradient", two}, {"first moment", four}, {"second moment", four}},
       with(bf16, {"master=bf16_stochastic", "weight_gradient=bf16"})},
      {"BF16, FP8 moments",
       kaitchup,
       {{"weight", two}, {"gradient", two}, {"first moment", one}, {"second moment", one}},
       with(bf16, {"master=bf16_stochastic", "weight_gradient=bf16", "moments.first=e4m3",
                   "moments.second=e5m2", "moments.block=0"})},
      {"BF16 with FP32 accumulation",
       playbook,
       {{"master", four},
        {"gradient accumulator", four},
        {"weight", two},
        {"gradient", two},
        {"first moment", four},
        {"second moment", four}},
       {},
       "18 here (precision.recipe=bf16): products add to the accumulator, there is no second gradient"},
      {"BF16 without it",
       playbook,
       {{"master", four},
        {"weight", two},
        {"gradient", two},
        {"first moment", four},
        {"second moment", four}},
       with(bf16, {"weight_gradient=bf16"})},
      {"FP8-LM O3",
       playbook,
       {{"master", two},
        {"gradient accumulator", two},
        {"weight", one},
        {"gradient", one},
        {"first moment", one},
        {"second moment", two}},
       with(fp8, {"master=fp16_scaled", "weight_gradient=bf16", "moments.first=e4m3", "moments.second=fp16",
                  "moments.block=0"}),
       "the weight's transposed codes in place of a second gradient, and 0.03 for the master's scales"},
      {"nanotron FP8",
       playbook,
       {{"master", two},
        {"gradient accumulator", four},
        {"weight", one},
        {"gradient", one},
        {"first moment", one},
        {"second moment", one}},
       with(fp8, {"master=bf16_stochastic", "moments.first=e4m3", "moments.second=e4m3", "moments.block=0"}),
       "the weight's transposed codes in place of a second gradient"},
  };
}

}  // namespace octet
