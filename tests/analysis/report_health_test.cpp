#include "analysis/report_health.h"

#include <cmath>
#include <filesystem>
#include <fstream>

#include "analysis/synthetic_run.h"
#include "base/error.h"
#include "catch.h"

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
  const std::vector<LeadTime> early = lead_times(watched_run(100));
  REQUIRE(early.size() == 2);
  CHECK(early[0].step == 40);
  CHECK(early[0].before_spike == 60);
  CHECK(early[1].before_spike == 40);
  CHECK(health_section(watched_run(100))
            .find("came at step 40, 60 steps before the first loss spike (step 100)") != std::string::npos);

  CHECK(lead_times(watched_run(50))[1].before_spike == -10);
  const std::string late = health_section(watched_run(30));
  CHECK(late.find("No warning came before the first loss spike (step 30)") != std::string::npos);
  CHECK(late.find("10 after") != std::string::npos);

  CHECK_FALSE(lead_times(watched_run(0))[0].before_spike);
  CHECK(health_section(watched_run(0)).find("2 warnings, no loss spike") != std::string::npos);

  RunHistory run = watched_run(100);
  run.events.push_back({70, "skipped", "not finite"});
  CHECK(first_spike(run) == 70);
  run.events.clear();
  CHECK_FALSE(first_spike(run));
  CHECK(health_section(run).find("No warning.") != std::string::npos);
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
