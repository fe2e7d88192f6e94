// Runs with Muon: what they save, resume from and plan.
#include <algorithm>
#include <cmath>

#include "training/open_device.h"
#include "training/run_memory.h"
#include "training/tiny_run.h"

using namespace octet;
using namespace octet::testing;

namespace {

std::vector<std::string> with_muon(std::vector<std::string> settings = {}) {
  settings.insert(settings.end(), {"optimizer.name=muon", "parallel.zero=0"});
  return settings;
}

// Bytes by category, and what the plan takes together.
struct Planned {
  std::map<Category, size_t> bytes;
  size_t peak = 0;
};
Planned plan_of(const RunConfig& config) {
  MemoryPlan device, host, offload;
  const RunMemory memory(nullptr, config, {device, host, offload});
  Planned planned;
  for (const MemoryPlan::Item& item : device.items()) planned.bytes[item.category] += item.bytes;
  planned.peak = device.peak_bytes();
  return planned;
}

}  // namespace

TEST_CASE("a run with Muon that was stopped anywhere and resumed is the run that was not, byte for byte") {
  const TinyData data;
  for (const auto& recipe : std::vector<std::vector<std::string>>{
           {"precision.recipe=fp32"},
           {"precision.recipe=bf16", "precision.master=bf16_stochastic"},
           {"precision.recipe=fp8", "precision.moments.block=0"},
           {"precision.recipe=fp8", "precision.master=fp16_scaled", "optimizer.update_clipping=true"}}) {
    TinyRun whole(data, with_muon(recipe));
    REQUIRE(whole.go().code == ExitCode::Success);
    for (const int stop_before : {1, 4, 7}) {
      INFO(recipe.back() << ", stopped before step " << stop_before);
      TinyRun parts(data, with_muon(recipe));
      CHECK(parts.go({fmt::format("signal:name=TERM,phase=step,step={}", stop_before)}).code ==
            ExitCode::Stopped);
      CHECK(parts.go().code == ExitCode::Success);
      CHECK(parts.curve() == whole.curve());
      for (int step = 2; step <= 8; step += 2)
        CHECK((files_in(parts.checkpoint(step)) == files_in(whole.checkpoint(step))));
    }
    // Negative control: fewer iterations, another momentum.
    for (const char* change : {"optimizer.muon_steps=4", "optimizer.muon_momentum=0.9"}) {
      std::vector<std::string> settings = recipe;
      settings.emplace_back(change);
      TinyRun other(data, with_muon(settings));
      other.go();
      CHECK(masters_of(other, 8) != masters_of(whole, 8));
    }
  }
}

TEST_CASE("a run with Muon has the CPU's bits on the interpreter, and those of a resident one offloaded") {
  const TinyData data;
  TinyRun whole(data, with_muon());
  whole.go();
  for (const char* setting : {"memory.offload=none", "memory.offload=optimizer"}) {
    TinyRun run(data, with_muon({setting}));
    run.request.device = "interpreter";
    CHECK(run.go().code == ExitCode::Success);
    CHECK(run.curve() == whole.curve());
    CHECK(masters_of(run, 8) == masters_of(whole, 8));
    CHECK(bytes_of(run.checkpoint(8) / "moments.safetensors") ==
          bytes_of(whole.checkpoint(8) / "moments.safetensors"));
  }
}

TEST_CASE("a run goes on with the optimizer it began with: the other one is refused by name") {
  const TinyData data;
  for (const bool begins_with_muon : {true, false}) {
    TinyRun run(data, with_muon());
    run.request.config.optimizer.name = begins_with_muon ? OptimizerName::Muon : OptimizerName::AdamW;
    run.go({"signal:name=TERM,phase=step,step=4"});
    run.request.config.optimizer.name = begins_with_muon ? OptimizerName::AdamW : OptimizerName::Muon;
    const std::string complaint = error_of([&] { run.go(); });
    INFO(complaint);
    CHECK(complaint.find("/optimizer/name") != std::string::npos);
    CHECK(complaint.find("muon") != std::string::npos);
    CHECK(complaint.find("adamw") != std::string::npos);
    run.request.config.optimizer.name = begins_with_muon ? OptimizerName::Muon : OptimizerName::AdamW;
    CHECK(run.go().code == ExitCode::Success);  // negative control
  }
}

TEST_CASE("Muon's second moments are not planned, its scratch is as large as its largest matrix") {
  const TinyData data;
  for (const char* recipe : {"fp32", "bf16", "fp8"}) {
    INFO(recipe);
    const std::vector<std::string> settings = {fmt::format("precision.recipe={}", recipe), "model.layers=3"};
    RunConfig muon = TinyRun(data, with_muon(settings)).request.config, adamw = muon;
    adamw.optimizer.name = OptimizerName::AdamW;
    const Planned with = plan_of(muon), without = plan_of(adamw);
    CHECK(with.bytes.at(Category::FirstMoments) == without.bytes.at(Category::FirstMoments));
    CHECK(with.bytes.at(Category::Masters) == without.bytes.at(Category::Masters));
    const size_t saved = without.bytes.at(Category::SecondMoments) - with.bytes.at(Category::SecondMoments);
    // Three layers of QKV 64 x 32, out 32 x 32, gate and up 96 x 32, down 32 x 48: one or four bytes each.
    const size_t weights = 3 * (64 * 32 + 32 * 32 + 96 * 32 + 32 * 48),
                 each = recipe == std::string("fp8") ? 1 : 4;
    CHECK(saved >= weights * each);
    // Alignment, and scales of blocks.
    CHECK(saved <= weights * each + weights / 128 * 4 + 3 * 4 * 2 * MemoryPlan::alignment);
    // Direction 96 x 32, product 48 x 32, two squares of 32, partial sums; each rounded up.
    const size_t storage = recipe == std::string("fp32") ? 4 : 2,
                 scratch = storage * (96 * 32 + 48 * 32 + 2 * 32 * 32) + 8;
    CHECK(with.bytes.at(Category::Scratch) >= without.bytes.at(Category::Scratch) + scratch);
    CHECK(with.bytes.at(Category::Scratch) <=
          without.bytes.at(Category::Scratch) + scratch + 6 * MemoryPlan::alignment);
  }
}

TEST_CASE("Muon's products are in the table of products, and not in the share of FP8") {
  const TinyData data;
  TinyRun muon(data, with_muon()), adamw(data);
  muon.go();
  adamw.go();
  const auto flops = [](const TinyRun& run) {
    std::map<std::string, double> by_class;
    for (const Json& start : run.records("start"))
      for (const Json& row : start["gemm_table"])
        by_class[row["class"].get<std::string>()] += row["flops"].get<double>();
    return by_class;
  };
  std::map<std::string, double> with = flops(muon);
  // Five iterations of 2 (n n k + n n n + n n k) for n x k and wider: Q, out 32 x 32, K and V 16 x 32; gate,
  // up and down 32 x 48.
  const auto of = [](double n, double k) { return 2 * (2 * n * n * k + n * n * n); };
  CHECK(with["muon"] == 5 * (2 * of(32, 32) + 2 * of(16, 32) + 3 * of(32, 48)));
  with.erase("muon");
  CHECK(with == flops(adamw));
  CHECK(muon.records("step")[0]["perf/fp8_flop_share"] == adamw.records("step")[0]["perf/fp8_flop_share"]);
}

TEST_CASE("the health record of a run with Muon measures updates of tables only") {
  const TinyData data;
  TinyRun run(data, with_muon());
  run.go();
  const std::vector<Json> records = run.records("health");
  REQUIRE(!records.empty());
  int tables = 0, matrices = 0;
  for (const Json& weight : records.back()["weights"]) {
    const bool matrix = weight["name"].get<std::string>().find("blocks.") == 0;
    (matrix ? matrices : tables) += 1;
    CHECK((weight["update_rms"].get<double>() > 0) == !matrix);
  }
  CHECK(tables > 0);
  CHECK(matrices == 4);
}
