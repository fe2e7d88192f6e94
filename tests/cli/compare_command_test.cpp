#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "base/files.h"
#include "catch.h"
#include "cli/command_run.h"

using namespace octet;

namespace {
void write_inputs(const std::filesystem::path& folder) {
  std::filesystem::create_directories(folder / "text");
  std::ofstream text(folder / "text" / "a.txt");
  for (int i = 0; i < 4000; ++i) text << "line " << i % 97 << " of a text that repeats\n";
  std::ofstream(folder / "run.json") << R"({
    "run": {"name": "twins", "output": "out", "seed": 3, "steps": 12, "threads": 1},
    "model": {"layers": 1, "width": 32, "heads": 2, "kv_heads": 1, "ffn_width": 48, "context": 32},
    "precision": {"recipe": "fp8"},
    "data": {"train": ["data/train_*.bin"]},
    "batch": {"tokens": 128, "micro": 2},
    "schedule": {"learning_rate": 1e-2, "warmup_steps": 2},
    "checkpoint": {"every": 5, "keep": 2},
    "health": {"every": 4}
  })";
}
nlohmann::json json_of(const std::filesystem::path& path) {
  return nlohmann::json::parse(read_text(path, ExitCode::Data));
}
}  // namespace

TEST_CASE("compare trains twins from the same weights on the same batches and writes both reports") {
  const TemporaryFolder folder;
  write_inputs(folder.path());
  REQUIRE(run_octet("tokenize text --output data", folder.path()).code == 0);
  const CommandRun run = run_octet("compare run.json --variants bf16,fp8", folder.path());
  INFO(run.output);
  CHECK(run.code == 10);  // 12 steps decide nothing
  CHECK(run.says("verdict: INCONCLUSIVE"));
  const auto report = json_of(folder.path() / "out" / "report.json");
  CHECK(report["verdict"] == "INCONCLUSIVE");
  CHECK(report["comparisons"][0]["more_steps_needed"] == 38);
  CHECK(std::filesystem::exists(folder.path() / "out" / "report.html"));

  // Finished runs are not trained again: their logs stay as they are.
  const auto before = std::filesystem::last_write_time(folder.path() / "out" / "bf16" / "config.json");
  const std::string steps = read_text(folder.path() / "out" / "fp8" / "metrics.jsonl", ExitCode::Data);
  const CommandRun again = run_octet("compare run.json --variants bf16,fp8", folder.path());
  CHECK(again.code == 10);
  const auto count = [](const std::string& text) {
    size_t n = 0;
    for (size_t at = 0; (at = text.find("\"kind\":\"step\"", at)) != std::string::npos; ++at) ++n;
    return n;
  };
  CHECK(count(read_text(folder.path() / "out" / "fp8" / "metrics.jsonl", ExitCode::Data)) == count(steps));
  CHECK(std::filesystem::last_write_time(folder.path() / "out" / "bf16" / "config.json") >= before);

  const CommandRun from = run_octet("compare --from out/bf16 out/fp8 --output elsewhere", folder.path());
  INFO(from.output);
  CHECK(from.code == 10);
  CHECK(std::filesystem::exists(folder.path() / "elsewhere" / "report.html"));

  // Without --output: beside the variant, in the verdict's order; never the current folder.
  const CommandRun beside = run_octet("compare --from out/bf16/ out/fp8/", folder.path());
  INFO(beside.output);
  CHECK(beside.says("fp8 against bf16"));
  CHECK(json_of(folder.path() / "out" / "fp8-against-bf16" / "report.json")["title"] == "fp8 against bf16");
  CHECK(report["title"] == "twins: fp8 against bf16");
  CHECK_FALSE(std::filesystem::exists(folder.path() / "report.html"));
  CHECK_FALSE(beside.says("speed"));  // of a CPU
}

TEST_CASE("compare goes on with the very runs it planned, never with a changed one") {
  const TemporaryFolder folder;
  write_inputs(folder.path());
  REQUIRE(run_octet("tokenize text --output data", folder.path()).code == 0);
  // A variant that stopped on the way, as a killed comparison leaves it.
  const std::string unfinished =
      "train run.json --set run.output=out/fp8 --set run.name=twins-fp8 --inject kill:step=8 "
      "--set checkpoint.asynchronous=false";
  REQUIRE(run_octet(unfinished, folder.path()).code == 137);
  for (const std::string change :
       {"schedule.learning_rate=2e-2", "precision.scaling=delayed", "run.seed=4"}) {
    const CommandRun changed = run_octet("compare run.json --set " + change, folder.path());
    INFO(changed.output);
    CHECK(changed.code == 2);
    CHECK(changed.says("out/fp8 holds another run (/"));
    CHECK(changed.says("or remove out/fp8"));
    CHECK_FALSE(changed.says("--overwrite"));
    CHECK_FALSE(std::filesystem::exists(folder.path() / "out" / "bf16"));  // refused before training
  }
  const CommandRun same = run_octet("compare run.json --set checkpoint.every=4", folder.path());
  INFO(same.output);
  CHECK(same.code == 10);
  CHECK(same.says("resuming from step-0000000"));
  // Other shards under the same name are train's refusal, in words that compare understands.
  std::ofstream(folder.path() / "text" / "b.txt") << "more text of another kind\n";
  REQUIRE(run_octet("tokenize text --output data --overwrite", folder.path()).code == 0);
  const CommandRun data = run_octet("compare run.json", folder.path());
  INFO(data.output);
  CHECK(data.code == 3);
  CHECK(data.says("remove out/bf16"));
  CHECK_FALSE(data.says("--accept"));
}

TEST_CASE("a reader of the output that goes away does not stop a comparison") {
  const TemporaryFolder folder;
  write_inputs(folder.path());
  REQUIRE(run_octet("tokenize text --output data", folder.path()).code == 0);
  run_octet("compare run.json --variants bf16,fp8 2>&1 | true", folder.path());
  const std::filesystem::path report = folder.path() / "out" / "report.json";
  CHECK(json_of(report)["verdict"] == "INCONCLUSIVE");
}

TEST_CASE("compare refuses what is not a comparison before it trains anything") {
  const TemporaryFolder folder;
  write_inputs(folder.path());
  CHECK(run_octet("compare run.json --variants bf16", folder.path()).code == 2);
  CHECK(run_octet("compare run.json --variants bf16,fp9", folder.path()).code == 2);
  CHECK(run_octet("compare run.json --variants fp8,fp8", folder.path()).code == 2);
  CHECK(run_octet("compare", folder.path()).code == 2);
  CHECK(run_octet("compare --from nowhere elsewhere", folder.path()).code == 3);
  CHECK_FALSE(std::filesystem::exists(folder.path() / "out"));
}
