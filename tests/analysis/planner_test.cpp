// The plan's numbers against hand arithmetic.
#include <fmt/format.h>

#include <cmath>
#include <memory>

#include "analysis/planner.h"
#include "catch.h"
#include "optimizer/schedule.h"
#include "training/open_device.h"
#include "training/run_memory.h"

using namespace octet;

namespace {

const std::string configs = OCTET_SOURCE_DIR "/configs/";

double bytes_of(const RunPlan& plan, const std::string& item) {
  for (const BytesPerParameter& row : plan.bytes_per_parameter) {
    if (row.item.compare(0, item.size(), item) == 0) return row.bytes;
  }
  return -1;
}
double scheme(const std::string& name) {
  for (const StateScheme& s : reference_schemes()) {
    if (s.name == name) return s.bytes();
  }
  return -1;
}
bool warns(const RunPlan& plan, const std::string& text) {
  for (const std::string& warning : plan.warnings) {
    if (warning.find(text) != std::string::npos) return true;
  }
  return false;
}

}  // namespace

TEST_CASE("the published layouts of training state add up to the published sums (M1)") {
  CHECK(scheme("all FP32") == 16);
  CHECK(scheme("BF16, FP32 moments") == 12);
  CHECK(scheme("BF16, FP8 moments") == 6);
  CHECK(scheme("BF16 with FP32 accumulation") == 20);
  CHECK(scheme("BF16 without it") == 16);
  CHECK(scheme("FP8-LM O3") == 9);
  CHECK(scheme("nanotron FP8") == 10);
}

TEST_CASE("with a layout's settings the weights of linear layers take the published bytes (M1)") {
  int expressed = 0;
  for (const StateScheme& s : reference_schemes()) {
    const bool accumulates = s.name == "BF16 with FP32 accumulation";
    if (s.settings.empty() && !accumulates) continue;
    INFO(s.name);
    const std::vector<std::string> settings =
        accumulates ? std::vector<std::string>{"precision.recipe=bf16"} : s.settings;
    const RunPlan plan = plan_run(load_config(configs + "8b-bf16.json", settings));
    const std::string weights[] = {"blocks.*.attention.qkv.weight", "blocks.*.attention.out.weight",
                                   "blocks.*.ffn.gate_up.weight", "blocks.*.ffn.down.weight"};
    double bytes = 0, elements = 0;
    for (const std::string& weight : weights)
      for (const PlannedItem& item : plan.items) {
        if (item.name == weight) elements += static_cast<double>(item.elements);
        if (item.name == weight || item.name.rfind(weight + ".", 0) == 0)
          bytes += static_cast<double>(item.bytes);
      }
    REQUIRE(elements == 32 * (4096. * 6144 + 4096. * 4096 + 3 * 4096. * 14336));
    // Scales: one a tensor, and of FP16 masters 4 bytes for 128 weights. Each item ends at a multiple of 256
    // bytes.
    const double scales = s.name == "FP8-LM O3" ? 4.0 / 128 : 0, gradient = accumulates ? 2 : 0;
    CHECK(bytes / elements == Approx(s.bytes() - gradient + scales).epsilon(1e-6));
    expressed += accumulates ? 0 : 1;
  }
  CHECK(expressed == 6);
}

TEST_CASE("our bytes per parameter are those of the formats") {
  const RunPlan bf16 = plan_run(load_config(configs + "8b-bf16.json"));
  const RunPlan fp8 = plan_run(load_config(configs + "8b-fp8.json"));
  // Every parameter has an FP32 master and an FP32 gradient.
  for (const RunPlan* plan : {&bf16, &fp8}) {
    CHECK(bytes_of(*plan, "master weights") == 4);
    CHECK(bytes_of(*plan, "gradients") == 4);
  }
  CHECK(bytes_of(bf16, "first moments") == 4);
  // Of 8.03e9 parameters, L * 2 D + D = 266240 are gains with FP32 moments; the others take 1 byte and a
  // share of an FP32 scale per 128 (tensors are multiples of 128 here).
  const double gains = 32 * 2 * 4096 + 4096, others = static_cast<double>(fp8.parameters) - gains;
  double first = 0;
  for (const BytesPerParameter& row : fp8.bytes_per_parameter) {
    if (row.item.rfind("first moments", 0) == 0) first += row.bytes;
  }
  CHECK(first * static_cast<double>(fp8.parameters) ==
        Approx(others * (1 + 4.0 / 128) + 4 * gains).epsilon(1e-12));
  CHECK(fp8.bytes_per_parameter.back().item == "sum");
  CHECK(fp8.bytes_per_parameter.back().bytes < bf16.bytes_per_parameter.back().bytes - 5.9);
}

TEST_CASE("the memory table adds up to the peak") {
  for (const char* name : {"quickstart.json", "quickstart-bf16.json", "8b-fp8.json"}) {
    const RunPlan plan = plan_run(load_config(configs + name));
    int64_t listed = plan.unlisted_bytes, items = plan.unlisted_bytes;
    for (const auto& [category, bytes] : plan.by_category) listed += static_cast<int64_t>(bytes);
    for (const PlannedItem& item : plan.items) items += static_cast<int64_t>(item.bytes);
    INFO(name);
    CHECK(listed == static_cast<int64_t>(plan.device_bytes));
    CHECK(items == static_cast<int64_t>(plan.device_bytes));
    // Masters of the checkpoint are on the host as well.
    CHECK(plan.host_bytes > 4 * static_cast<uint64_t>(plan.parameters));
  }
}

TEST_CASE("the plan is that of a device with the run's own options") {
  const auto planned = [](const RunConfig& config) { return plan_run(config).device_bytes; };
  const auto measured = [](const RunConfig& config) {
    MemoryPlan device_plan, host_plan, offload_plan;
    const std::unique_ptr<Device> device = open_device("cpu", device_options(config));
    const RunMemory memory(device.get(), config, {device_plan, host_plan, offload_plan});
    return device_plan.peak_bytes();
  };
  for (const char* deterministic : {"true", "false"}) {
    std::vector<uint64_t> bytes;
    for (const char* threads : {"1", "2", "7"}) {
      const RunConfig c = load_config(
          configs + "quickstart.json",
          {fmt::format("run.threads={}", threads), fmt::format("run.deterministic={}", deterministic)});
      INFO(threads << " threads, deterministic " << deterministic);
      CHECK(planned(c) == measured(c));
      bytes.push_back(planned(c));
    }
    // Negative control: the options count. Every thread has scratch of its own.
    CHECK(bytes[0] < bytes[1]);
    CHECK(bytes[1] < bytes[2]);
  }
}

TEST_CASE("Muon's plan is without second moments of matrices, and counts its products") {
  const RunConfig muon = load_config(configs + "quickstart-muon.json");
  RunConfig adamw = muon;
  adamw.optimizer.name = OptimizerName::AdamW;
  const RunPlan plan = plan_run(muon), plain = plan_run(adamw);
  const auto weights = static_cast<double>(4 * (256 * 128 + 128 * 128 + 704 * 128 + 128 * 352));
  const double saved = bytes_of(plain, "second moments F8_E5M2") - bytes_of(plan, "second moments F8_E5M2");
  CHECK(std::fabs(saved * static_cast<double>(plan.parameters) - weights) < 1);
  CHECK(plan.checkpoint_bytes < plain.checkpoint_bytes);
  // Five iterations of 2 (2 n n k + n n n): Q, out 128 x 128, K and V 64 x 128, gate, up, down 128 x 352.
  const auto of = [](double n, double k) { return 2 * (2 * n * n * k + n * n * n); };
  CHECK(plan.update_flops == 4 * 5 * (2 * of(128, 128) + 2 * of(64, 128) + 3 * of(128, 352)));
  CHECK(plain.update_flops == 0);
  CHECK(plan.flops_total == plain.flops_total);
}

TEST_CASE("FLOPs and tokens follow from the shape") {
  const RunConfig c = load_config(configs + "7b-fp8.json");
  const RunPlan plan = plan_run(c);
  // L (4 D^2 + 3 D F) + V D weights in GEMMs; attention 6 L S D a token (causal half of forward and
  // backward).
  const double d = 4096, f = 11008, l = 32, v = 32000, s = 4096;
  const double weights = l * (4 * d * d + 3 * d * f) + v * d;
  CHECK(static_cast<double>(plan.matmul_parameters) == weights);
  CHECK(plan.flops_per_token == Approx(6 * weights + 6 * l * s * d).epsilon(1e-12));
  CHECK(plan.tokens_total == 32200LL * 4194304);
  CHECK(plan.flops_total == Approx(plan.flops_per_token * 32200 * 4194304).epsilon(1e-12));
  CHECK(plan.micro_batches_per_step == 1024);
  CHECK(plan.float8_flop_share == Approx((weights - v * d) / weights).epsilon(1e-12));
  CHECK(plan_run(load_config(configs + "7b-bf16.json")).float8_flop_share == 0);
}

TEST_CASE("the learning-rate table is the schedule itself") {
  const RunConfig c = load_config(configs + "124m-fp8.json");
  const RunPlan plan = plan_run(c);
  REQUIRE(plan.learning_rates.size() >= 6);
  CHECK(plan.learning_rates.front().first == 0);
  CHECK(plan.learning_rates.back().first == c.run.steps - 1);
  for (const auto& [step, rate] : plan.learning_rates)
    CHECK(rate == learning_rate(c.schedule, step, c.run.steps));
}

TEST_CASE("a checkpoint holds masters and moments, the disk holds keep + 1") {
  RunConfig c = load_config(configs + "quickstart.json", {"run.steps=300"});
  c.checkpoint = {50, 2, 0, true, "continue"};  // 300 steps: 6 saves, 2 kept, 1 being written
  RunPlan plan = plan_run(c);
  const double state = static_cast<double>(plan.parameters) * (4 + 2 * (1 + 4.0 / 128));
  CHECK(static_cast<double>(plan.checkpoint_bytes) > state);
  CHECK(static_cast<double>(plan.checkpoint_bytes) < 1.05 * state);
  CHECK(plan.disk_bytes == 3 * plan.checkpoint_bytes);
  c.checkpoint.keep_every = 100;
  CHECK(plan_run(c).disk_bytes == 6 * plan.checkpoint_bytes);
}

TEST_CASE("warnings name what will disappoint, and only then") {
  const RunPlan small = plan_run(load_config(configs + "1b-fp8.json"));
  CHECK(warns(small, "no faster than BF16"));
  const RunPlan large = plan_run(load_config(configs + "8b-fp8.json"));
  CHECK_FALSE(warns(large, "no faster than BF16"));
  CHECK_FALSE(warns(plan_run(load_config(configs + "1b-bf16.json")), "no faster than BF16"));
  CHECK(warns(plan_run(load_config(configs + "1b-fp8.json", {"run.steps=2000"})), "tokens a parameter"));
  CHECK_FALSE(warns(small, "tokens a parameter"));
  CHECK(warns(plan_run(load_config(configs + "8b-fp8.json", {"precision.smooth_swiglu=none"})),
              "smooth_swiglu"));
  CHECK_FALSE(warns(large, "smooth_swiglu"));
}

TEST_CASE("every stage of a schedule is planned, and the plan is the largest's") {
  const std::string quickstart = configs + "quickstart.json";
  const std::string bf16 =
      R"("precision": {"recipe": "bf16", "moments": {"first": "e4m3", "second": "e5m2"}})";
  const RunConfig config = load_config(quickstart, {R"(precision_schedule=[{"from": 300, )" + bf16 + "}]"});
  RunConfig first = config, second = config;
  first.precision_schedule.clear();
  second.precision_schedule.clear();
  second.precision = config.precision_schedule[0].precision;
  const RunPlan plan = plan_run(config), fp8 = plan_run(first), wide = plan_run(second);
  REQUIRE(plan.stages.size() == 2);
  CHECK(fp8.stages.empty());
  CHECK(plan.stages[0].steps == 300);
  CHECK(plan.stages[1].steps == 900);
  CHECK(plan.stages[0].device_bytes == fp8.device_bytes);
  CHECK(plan.stages[1].device_bytes == wide.device_bytes);
  CHECK(fp8.device_bytes != wide.device_bytes);
  CHECK(plan.device_bytes == std::max(fp8.device_bytes, wide.device_bytes));
  CHECK(plan.host_bytes == std::max(fp8.host_bytes, wide.host_bytes));
  CHECK(wide.float8_flop_share == 0);
  CHECK(plan.float8_flop_share == Approx(fp8.float8_flop_share / 4).epsilon(1e-12));
  CHECK(plan.stages[1].description == "stage 2 of 2, from step 301 on: bf16");
}
