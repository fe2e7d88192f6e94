#include "analysis/report_health.h"

#include <cmath>
#include <filesystem>
#include <fstream>

#include "analysis/synthetic_run.h"
#include "base/error.h"
#include "catch.h"
#include "training/tiny_run.h"

using namespace octet;
using namespace octet::testing;

namespace {

// Eight blocks whose kurtosis grows with the block's number, records every 20 steps.
RunHistory watched_run(int64_t spike) {
  RunHistory run;
  run.name = "fp8 <b>";
  for (int64_t step = 20; step <= 400; step += 20) {
    HealthRecord record{step, {}, {}};
    record.sites.push_back({"blocks.0.ffn.down.input", 0, 3, 64, 0, 1e-3, 30});
    record.sites.push_back({"blocks.1.ffn.down.input", 1, 3, 64, 0, 1e-3, 22});
    record.sites.push_back({"blocks.0.ffn.down.grad", 0, 3, 64, 0, 1e-3, std::nan("")});
    for (const char* field :
         {"kurtosis/qkv", "kurtosis/ffn_hidden", "kurtosis/block_output", "rms/block_output", "log_sum_exp"})
      for (int b = 0; b < 8; ++b) record.blocks[field].push_back(3 + b * static_cast<double>(step));
    run.health.push_back(record);
  }
  run.events.push_back({60, "warning", "block 5: <i>outliers</i> form"});
  run.events.push_back({40, "warning", "an earlier one"});
  if (spike > 0) run.events.push_back({spike, "spike", "loss 9"});
  return run;
}
size_t count(const std::string& text, const std::string& part) {
  size_t n = 0;
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++n;
  return n;
}

}  // namespace

// (K4)
TEST_CASE("the report says how long before the first spike each warning came") {
  const std::vector<LeadTime> early = alarms_of(watched_run(100)).warnings;
  REQUIRE(early.size() == 2);
  CHECK(early[0].step == 40);
  CHECK(early[0].before_spike == 60);
  CHECK(early[1].before_spike == 40);
  CHECK(
      health_section(watched_run(100))
          .find(
              "2 warnings: warned at step 40, 60 steps before the first spike (step 100): an earlier one.") !=
      std::string::npos);

  CHECK(alarms_of(watched_run(50)).warnings[1].before_spike == -10);
  const std::string late = health_section(watched_run(30));
  CHECK(late.find("2 warnings: spike at step 30, warned at step 40, too late: an earlier one.") !=
        std::string::npos);
  CHECK(late.find("10 after") != std::string::npos);

  CHECK_FALSE(alarms_of(watched_run(0)).warnings[0].before_spike);
  CHECK(health_section(watched_run(0)).find("2 warnings: warned at step 40, no spike: an earlier one.") !=
        std::string::npos);

  RunHistory run = watched_run(100);
  run.events.push_back({70, "skipped", "not finite"});
  CHECK(alarms_of(run).spike == 70);
  run.events.clear();
  CHECK_FALSE(alarms_of(run).spike);
  CHECK(health_section(run).find("0 warnings: no spike.") != std::string::npos);
}

TEST_CASE("a spike that only the sweep's rule finds counts, and nothing from before an injection does") {
  RunHistory run = watched_run(0);
  for (int64_t step = 1; step <= 400; ++step) {
    run.steps.emplace_back();
    run.steps.back().step = step;
    run.steps.back().loss = (step % 2 ? 2.0 : 2.02) + (step == 90 ? 1 : 0);
  }
  CHECK(alarms_of(run).spike == 90);
  CHECK(alarms_of(run).warnings[0].before_spike == 50);
  run.events.push_back({85, "spike", "an earlier one of the trainer's"});
  CHECK(alarms_of(run).spike == 85);
  CHECK(describe(alarms_of(run)) ==
        "warned at step 40, 45 steps before the first spike (step 85): an earlier one");

  run.events.push_back({50, "inject", "align"});
  run.events.push_back({45, "spike", "before it"});
  REQUIRE(alarms_of(run).warnings.size() == 1);
  CHECK(describe(alarms_of(run)) ==
        "warned at step 60, 25 steps before the first spike (step 85): block 5: <i>outliers</i> form");
  run.events.push_back({70, "inject", "align once more"});
  CHECK(alarms_of(run).warnings[0].step == 60);  // from the first on
  run.events.push_back({55, "skipped", "not finite"});
  CHECK(describe(alarms_of(run)) ==
        "spike at step 55, warned at step 60, too late: block 5: <i>outliers</i> form");
  std::erase_if(run.events, [](const EventRecord& e) { return e.event == "warning"; });
  CHECK(describe(alarms_of(run)) == "spike at step 55 without a warning");
  CHECK(describe(alarms_of(watched_run(0))) == "warned at step 40, no spike: an earlier one");
  CHECK(describe(alarms_of(RunHistory{})) == "no spike");
  CHECK(describe({.watched = true, .spike = {}, .warnings = {{7, "block 1: grows (5 now); a remedy", {}}}}) ==
        "warned at step 7, no spike: block 1: grows");
  run.health.clear();
  CHECK(describe(alarms_of(run)) == "spike at step 55, health not watched");
}

// (K4) Of runs, not of records: a neuron that grows is warned of before the loss jumps, one that is there at
// once is not.
TEST_CASE("a run warns of a neuron that grows before its loss spikes") {
  const TinyData data;
  const auto history_of = [&](const std::vector<std::string>& faults) {
    TinyRun run(data, {"run.steps=60", "health.every=1", "checkpoint.every=0", "evaluation.every=0",
                       "schedule.final_steps=20", "schedule.final_fraction=1e-9", "health.spike_window=16"});
    REQUIRE(run.go(faults).code == ExitCode::Success);
    return read_run_history(run.path());
  };
  const RunHistory growing =
      history_of({"align:step=41,hidden=5", "align:step=44,hidden=20", "align:step=47,hidden=100",
                  "align:step=50,hidden=1000", "align:step=53,hidden=10000"});
  INFO(describe(alarms_of(growing)));
  REQUIRE(alarms_of(growing).spike);
  REQUIRE_FALSE(alarms_of(growing).warnings.empty());
  CHECK(*alarms_of(growing).spike >= 41);
  CHECK(*alarms_of(growing).warnings[0].before_spike > 0);
  CHECK(health_section(growing).find("steps before the first spike") != std::string::npos);

  const RunHistory sudden = history_of({"align:step=47,hidden=10000"});
  INFO(describe(alarms_of(sudden)));
  CHECK(alarms_of(sudden).spike == 47);
  REQUIRE_FALSE(alarms_of(sudden).warnings.empty());
  CHECK(*alarms_of(sudden).warnings[0].before_spike <= 0);
  CHECK_FALSE(alarms_of(history_of({})).spike);
}

TEST_CASE("health is shown by block, six at most, and the worst site of each role") {
  const std::string page = health_section(watched_run(100));
  CHECK(page.find("<i>") == std::string::npos);
  CHECK(page.find("<b>") == std::string::npos);
  for (const char* block : {"block 0<", "block 4<", "block 5<", "block 6<", "block 7<"})
    CHECK(count(page, block) == 5);
  CHECK(count(page, "block 1<") == 0);
  CHECK(page.find("signal to noise") != std::string::npos);
  CHECK(page.find(">input<") != std::string::npos);
  CHECK(page.find(">grad<") == std::string::npos);  // never measured
  CHECK(page.size() < 60'000);
  RunHistory casts_only = watched_run(0);
  for (HealthRecord& record : casts_only.health) record.blocks.clear();
  CHECK(count(health_section(casts_only), "block 0<") == 0);
  CHECK(health_section(RunHistory{}).empty());
}

TEST_CASE("health records are read with what they observed, and without") {
  const auto folder = std::filesystem::temp_directory_path() / "octet-observed";
  std::filesystem::remove_all(folder);
  SyntheticRun run;
  run.steps = 40;
  run.health = true;
  write_synthetic_run(run, folder);
  std::ofstream(folder / "metrics.jsonl", std::ios::app)
      << R"({"kind":"health","step":60,"sites":[{"name":"a.input","snr_db":31.5}],)"
      << R"("activations":{"qkv":{"kurtosis":[3,"NaN"],"rms":[1,2]}},"blocks":{"log_sum_exp":[5,60]}})"
      << "\n";
  const RunHistory log = read_run_history(folder);
  REQUIRE(log.health.size() == 3);
  CHECK(log.health[0].blocks.empty());
  CHECK(std::isnan(log.health[0].sites[0].snr));
  CHECK(log.health[2].sites[0].snr == 31.5);
  CHECK(log.health[2].blocks.at("kurtosis/qkv")[0] == 3);
  CHECK(std::isnan(log.health[2].blocks.at("kurtosis/qkv")[1]));
  CHECK(log.health[2].blocks.at("log_sum_exp") == std::vector<double>{5, 60});
  for (const char* broken : {R"({"kind":"health","step":80,"activations":{"qkv":{"kurtosis":["x"]}}})",
                             R"({"kind":"health","step":80,"activations":{"qkv":7}})",
                             R"({"kind":"health","step":80,"activations":[]})"}) {
    std::filesystem::remove_all(folder);
    write_synthetic_run(run, folder);
    std::ofstream(folder / "metrics.jsonl", std::ios::app) << broken << "\n";
    CHECK_THROWS_AS(read_run_history(folder), Error);
  }
  std::filesystem::remove_all(folder);
}
