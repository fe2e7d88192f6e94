#include <chrono>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <thread>

#include "base/files.h"
#include "catch.h"
#include "cli/command_run.h"

using namespace octet;
namespace fs = std::filesystem;

namespace {

void write_inputs(const fs::path& folder, int steps) {
  fs::create_directories(folder / "text");
  std::ofstream text(folder / "text" / "a.txt");
  for (int i = 0; i < 4000; ++i) text << "line " << i % 97 << " of a text that repeats\n";
  text.close();
  std::ofstream(folder / "run.json") << R"({
    "run": {"name": "base", "steps": )"
                                     << steps << R"(, "threads": 1, "deterministic": true},
    "model": {"layers": 1, "width": 32, "heads": 2, "kv_heads": 1, "ffn_width": 48, "context": 32},
    "data": {"train": ["data/train_*.bin"]},
    "batch": {"tokens": 128, "micro": 2},
    "schedule": {"learning_rate": 1e-2, "warmup_steps": 2},
    "checkpoint": {"every": 0}, "evaluation": {"every": 0}, "health": {"every": 0}
  })";
  std::ofstream(folder / "sweep.json") << R"({
    "name": "grid", "output": "out", "base": "run.json",
    "variants": {"bf16": ["precision.recipe=bf16"], "fp8": ["precision.recipe=fp8"]},
    "axes": {"run.seed": [1, 2]}
  })";
  REQUIRE(run_octet("tokenize text --output data", folder).code == 0);
}
nlohmann::json json_of(const fs::path& path) {
  return nlohmann::json::parse(read_text(path, ExitCode::Data));
}

}  // namespace

TEST_CASE("a sweep trains every cell, reports them, and trains nothing a second time") {
  const TemporaryFolder folder;
  write_inputs(folder.path(), 30);
  const CommandRun dry = run_octet("sweep sweep.json --dry-run", folder.path());
  CHECK(dry.code == 0);
  CHECK(dry.says("4 cells in 2 groups"));
  CHECK(dry.says("fp8.seed-2"));
  CHECK_FALSE(fs::exists(folder.path() / "out"));

  const CommandRun first = run_octet("sweep sweep.json --jobs 2", folder.path());
  INFO(first.output);
  REQUIRE(first.code == 0);
  CHECK(first.says("(4 of 4"));
  const nlohmann::json report = json_of(folder.path() / "out" / "sweep.json");
  REQUIRE(report["groups"].size() == 2);
  CHECK(report["groups"][1]["done"] == 2);
  CHECK(report["groups"][0]["gap_to_bf16"]["mean"] == 0.0);
  CHECK(report["groups"][1]["gap_to_bf16"]["mean"] != 0.0);
  CHECK(fs::exists(folder.path() / "out" / "sweep.html"));
  const fs::path metrics = folder.path() / "out" / "cells" / "fp8.seed-2" / "metrics.jsonl";
  const auto written = fs::last_write_time(metrics);

  const CommandRun again = run_octet("sweep sweep.json --jobs 2", folder.path());
  CHECK(again.code == 0);
  CHECK(again.says("4 of 4 cells have their result"));
  CHECK_FALSE(again.says("begins"));
  CHECK(fs::last_write_time(metrics) == written);
  // The same numbers as a run by hand.
  const CommandRun alone =
      run_octet("train run.json --quiet --set precision.recipe=fp8 --set run.seed=2 --set run.output=alone",
                folder.path());
  REQUIRE(alone.code == 0);
  CHECK(read_text(folder.path() / "alone/checkpoints/step-00000030/masters.safetensors", ExitCode::Data) ==
        read_text(folder.path() / "out/cells/fp8.seed-2/checkpoints/step-00000030/masters.safetensors",
                  ExitCode::Data));
  // Another sweep does not go on in these folders.
  const CommandRun other = run_octet("sweep sweep.json --set schedule.learning_rate=2e-2", folder.path());
  CHECK(other.code == 2);
  CHECK(other.says("holds another run"));
}

TEST_CASE("a cell that diverges or cannot be trained does not end the sweep") {
  const TemporaryFolder folder;
  write_inputs(folder.path(), 30);
  std::ofstream(folder.path() / "sweep.json") << R"({
    "name": "grid", "output": "out", "base": "run.json", "set": ["health.stop_after_nonfinite=2"],
    "variants": {"missing": ["data.train=[\"nowhere/*.bin\"]"], "wild": ["schedule.learning_rate=100"], "calm": []}
  })";
  const CommandRun run = run_octet("sweep sweep.json", folder.path());
  INFO(run.output);
  CHECK(run.code == 3);  // of the cell without data, when all others are done
  CHECK(run.says("ERROR   missing"));
  CHECK(run.says("FAILED  wild"));
  CHECK(run.says("ends    calm"));
  const nlohmann::json report = json_of(folder.path() / "out" / "sweep.json");
  CHECK(report["groups"][0]["not_trained"] == 1);
  CHECK(report["groups"][0]["failed"] == 0);
  CHECK(report["groups"][1]["failed"] == 1);
  CHECK(report["groups"][2]["failed"] == 0);
  // Only the one without a result is tried again.
  const CommandRun again = run_octet("sweep sweep.json", folder.path());
  CHECK(again.code == 3);
  CHECK_FALSE(again.says("wild  ("));
}

TEST_CASE("a stopped sweep saves every cell, and goes on to the very same weights") {
  const TemporaryFolder folder;
  write_inputs(folder.path(), 1200);
  const std::string stop = "{ '" OCTET_BINARY
                           "' sweep sweep.json --jobs 2 & sweep=$!; "
                           "while ! grep -q '\"kind\":\"step\"' out/cells/bf16.seed-1/metrics.jsonl "
                           "2>/dev/null; do sleep 0.05; done; "
                           "kill -TERM $sweep; wait $sweep; }";
  const CommandRun stopped = run_command(stop, folder.path());
  INFO(stopped.output);
  REQUIRE(stopped.code == 75);
  CHECK(stopped.says("stopped bf16.seed-1"));
  CHECK_FALSE(fs::exists(folder.path() / "out" / "cells" / "fp8.seed-1"));  // nothing new was begun
  const CommandRun on = run_octet("sweep sweep.json --jobs 2", folder.path());
  INFO(on.output);
  REQUIRE(on.code == 0);
  CHECK(on.says("goes on bf16.seed-1"));
  const CommandRun alone =
      run_octet("train run.json --quiet --set precision.recipe=bf16 --set run.seed=1 --set run.output=alone",
                folder.path());
  REQUIRE(alone.code == 0);
  const char* masters = "checkpoints/step-00001200/masters.safetensors";
  CHECK(read_text(folder.path() / "alone" / masters, ExitCode::Data) ==
        read_text(folder.path() / "out/cells/bf16.seed-1" / masters, ExitCode::Data));
}

TEST_CASE("a sweep that is wrong says so before anything is run") {
  const TemporaryFolder folder;
  write_inputs(folder.path(), 30);
  std::ofstream(folder.path() / "bad.json")
      << R"({"base": "run.json", "axis": {}, "axes": {"precision.recipe": ["fp9"]}})";
  const CommandRun run = run_octet("sweep bad.json", folder.path());
  CHECK(run.code == 2);
  CHECK(run.says("did you mean \"axes\"?"));
  CHECK(run.says("nothing has been run"));
  CHECK_FALSE(fs::exists(folder.path() / "runs"));
  CHECK(run_octet("sweep nowhere.json", folder.path()).code == 2);
}
