// octet sharpness, inject and whatif, as a user calls them.
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>

#include "base/files.h"
#include "catch.h"
#include "cli/command_run.h"

using namespace octet;
namespace fs = std::filesystem;

namespace {

void write_inputs(const fs::path& folder, int width = 32, int ffn_width = 48) {
  fs::create_directories(folder / "text");
  std::ofstream text(folder / "text" / "a.txt");
  for (int i = 0; i < 4000; ++i) text << "line " << i % 97 << " of a text that repeats\n";
  text.close();
  std::ofstream(folder / "run.json") << R"({
    "run": {"name": "base", "steps": 40, "seed": 3, "threads": 1, "deterministic": true},
    "model": {"layers": 2, "heads": 2, "kv_heads": 1, "context": 32, "width": )"
                                     << width << ", \"ffn_width\": " << ffn_width << R"(},
    "precision": {"recipe": "fp8"},
    "data": {"train": ["data/train_*.bin"], "validation": ["data/validation_*.bin"]},
    "batch": {"tokens": 128, "micro": 2},
    "schedule": {"learning_rate": 1e-2, "warmup_steps": 2},
    "checkpoint": {"every": 20, "keep": 5}, "evaluation": {"every": 0}, "health": {"every": 0}
  })";
  REQUIRE(run_octet("tokenize text --output data --validation 0.1", folder).code == 0);
}
nlohmann::json json_of(const fs::path& path) {
  return nlohmann::json::parse(read_text(path, ExitCode::Data));
}

}  // namespace

TEST_CASE("octet sharpness measures every checkpoint of a run on the same sequences") {
  const TemporaryFolder folder;
  write_inputs(folder.path());
  REQUIRE(run_octet("train run.json --quiet", folder.path()).code == 0);
  const CommandRun run = run_octet("sharpness runs/base", folder.path());
  INFO(run.output);
  REQUIRE(run.code == 0);
  CHECK(run.says("64 sequences of data/validation_*.bin"));
  const nlohmann::json found = json_of(folder.path() / "runs/base/sharpness.json");
  REQUIRE(found["points"].size() == 4);  // two checkpoints, two epsilons
  CHECK(found["points"][0]["step"] == 20);
  CHECK(found["points"][3]["step"] == 40);
  for (size_t i : {0u, 2u}) {
    CHECK(found["points"][i]["last"] > 0.0);
    CHECK(found["points"][i + 1]["last"] > found["points"][i]["last"]);  // a larger epsilon
  }
  // One checkpoint alone, and in another precision; the same sequences give the same number.
  const CommandRun alone = run_octet(
      "sharpness runs/base/checkpoints/step-00000040 --epsilon 5e-4 --output one.json", folder.path());
  INFO(alone.output);
  REQUIRE(alone.code == 0);
  CHECK(json_of(folder.path() / "one.json")["points"][0]["last"] == found["points"][2]["last"]);
  const CommandRun other = run_octet(
      "sharpness runs/base/checkpoints/step-00000040 --epsilon 5e-4 --output other.json --set "
      "precision.recipe=fp32",
      folder.path());
  INFO(other.output);
  REQUIRE(other.code == 0);
  const double fp8 = found["points"][2]["last"],
               fp32 = json_of(folder.path() / "other.json")["points"][0]["last"];
  CHECK(fp32 != fp8);
  CHECK(fp32 == Approx(fp8).epsilon(0.2));  // the same weights: a difference of roundings
  CHECK(run_octet("sharpness nowhere", folder.path()).code == 4);
  CHECK(run_octet("sharpness runs/base --epsilon 2", folder.path()).code == 2);
  // The curve is in reports.
  REQUIRE(run_octet("train run.json --quiet --set run.output=runs/two", folder.path()).code == 0);
  REQUIRE(run_octet("compare --from runs/base runs/two --output report", folder.path()).code == 10);
  CHECK(read_text(folder.path() / "report/report.html", ExitCode::Data).find("Sharpness of the last token") !=
        std::string::npos);
}

TEST_CASE("octet inject runs BF16 and four FP8 variants with the same outlier, and says who breaks") {
  const TemporaryFolder folder;
  write_inputs(folder.path());
  const CommandRun dry = run_octet("inject run.json --dry-run", folder.path());
  INFO(dry.output);
  CHECK(dry.code == 0);
  CHECK(dry.says("15 cells in 5 groups"));
  CHECK(dry.says("injected: align:step=13"));
  const CommandRun run = run_octet(
      "inject run.json --seeds 5 --fault align:step=10,hidden=1000 --output out --jobs 2", folder.path());
  INFO(run.output);
  REQUIRE(run.code == 0);
  CHECK(run.says("reference"));
  const nlohmann::json report = json_of(folder.path() / "out/sweep.json");
  REQUIRE(report["groups"].size() == 5);
  CHECK(report["inject"][0] == "align:step=10,hidden=1000");
  CHECK(report["groups"][0]["injection"] == "reference");
  for (const auto& cell : report["cells"]) {
    const std::string metrics =
        read_text(folder.path() / cell["folder"].get<std::string>() / "metrics.jsonl", ExitCode::Data);
    CHECK(metrics.find("\"event\":\"inject\"") != std::string::npos);
  }
  CHECK(read_text(folder.path() / "out/sweep.html", ExitCode::Data).find("align:step=10,hidden=1000") !=
        std::string::npos);
  // The same folder with another fault is another experiment.
  const CommandRun other =
      run_octet("inject run.json --seeds 5 --fault align:step=11 --output out", folder.path());
  CHECK(other.code == 2);
  CHECK(other.says("injected: "));
  CHECK(run_octet("inject run.json --fault nan:step=3", folder.path()).code == 2);
  CHECK(run_octet("compare run.json --inject kill:step=3", folder.path()).code == 2);
  // A sweep has its own.
  std::ofstream(folder.path() / "sweep.json")
      << R"({"base": "run.json", "axes": {"run.seed": [1, 2]}, "inject": ["align:step=5"]})";
  CHECK(run_octet("inject sweep.json --dry-run", folder.path()).code == 0);
  for (const char* option : {"--seeds 5", "--fault row:step=10"}) {
    const CommandRun own = run_octet(std::string("inject sweep.json --dry-run ") + option, folder.path());
    CHECK(own.code == 2);
    CHECK(own.says("a sweep has its own faults and seeds"));
  }
}

TEST_CASE("ranks inject the same outlier into shards of the masters as one process into the whole") {
  const TemporaryFolder folder;
  // gate_up has 2 x 352 x 64 weights: neuron 200's gate is rank 0's, its linear branch rank 1's.
  write_inputs(folder.path(), 64, 352);
  const std::string common =
      "train run.json --quiet --set run.steps=4 --set parallel.zero=2 --set parallel.reduce=fp32 "
      "--inject align:step=3,neuron=200 ";
  REQUIRE(run_octet(common + "--set run.output=one", folder.path()).code == 0);
  const CommandRun two = run_octet(common + "--set run.output=two --ranks 2", folder.path());
  INFO(two.output);
  REQUIRE(two.code == 0);
  CHECK(two.says("aligned and multiplied"));
  const char* masters = "checkpoints/step-00000004/masters.safetensors";
  CHECK(read_text(folder.path() / "one" / masters, ExitCode::Data) ==
        read_text(folder.path() / "two" / masters, ExitCode::Data));
  // Ranks that are started again, from before the injection, make it all the same.
  const CommandRun restarted =
      run_octet(common +
                    "--set run.output=restarted --set checkpoint.every=1 --set checkpoint.asynchronous=false "
                    "--ranks 2 --max-restarts 1 --inject kill:step=3,rank=1",
                folder.path());
  INFO(restarted.output);
  REQUIRE(restarted.code == 0);
  CHECK(read_text(folder.path() / "one" / masters, ExitCode::Data) ==
        read_text(folder.path() / "restarted" / masters, ExitCode::Data));
  // The control: without it they differ from these.
  REQUIRE(run_octet("train run.json --quiet --set run.steps=4 --set run.output=plain", folder.path()).code ==
          0);
  CHECK(read_text(folder.path() / "one" / masters, ExitCode::Data) !=
        read_text(folder.path() / "plain" / masters, ExitCode::Data));
}

TEST_CASE("octet whatif says what other recipes' casts keep of a checkpoint's tensors") {
  const TemporaryFolder folder;
  write_inputs(folder.path());
  REQUIRE(run_octet("train run.json --quiet", folder.path()).code == 0);
  const CommandRun run = run_octet(
      "whatif runs/base --recipes bf16,fp8,fp8:smooth_swiglu=none,fp8:grad.format=e4m3 --output found.json",
      folder.path());
  INFO(run.output);
  REQUIRE(run.code == 0);
  CHECK(run.says("ffn.down.input"));
  const nlohmann::json found = json_of(folder.path() / "found.json")["recipes"];
  REQUIRE(found.size() == 4);
  CHECK(found[0]["sites"].empty());  // BF16 casts nothing
  std::map<std::string, double> snr[4];
  for (size_t r = 1; r < 4; ++r)
    for (const auto& site : found[r]["sites"]) snr[r][site["name"].get<std::string>()] = site["snr_db"];
  // Two blocks of four linears, an input, a weight and an output gradient each; `dual` has a second copy of
  // the down projection's input with scales of its own.
  CHECK(snr[1].size() == 2 * 4 * 3 + 2);
  CHECK(snr[2].size() == 2 * 4 * 3);
  CHECK(snr[1].count("blocks.1.ffn.down.input (column)") == 1);
  for (const auto& [name, value] : snr[1]) {
    INFO(name << ": " << value);
    // A rounding to E4M3 leaves between 2^-4 of each value (24 dB) and none; to E5M2 half as good (18 dB).
    CHECK(value >= (name.find(".grad") != std::string::npos ? 18.0 : 24.0));
    CHECK(value < 50);
  }
  for (const std::string linear : {"attention.qkv", "attention.out", "ffn.gate_up", "ffn.down"}) {
    const std::string grad = "blocks.0." + linear + ".grad";
    INFO(linear);
    CHECK(snr[3][grad] > snr[1][grad] + 3);  // one bit more: 6 dB, less what E4M3's narrower range costs
    CHECK(snr[2]["blocks.0." + linear + ".weight"] == snr[1]["blocks.0." + linear + ".weight"]);
  }
  CHECK(run_octet("whatif runs/base --recipes fp9", folder.path()).code == 2);
  CHECK(run_octet("whatif runs/base --recipes fp8::x", folder.path()).code == 2);
  // Nothing is written beside the run.
  CHECK_FALSE(fs::exists(folder.path() / "runs" / "base" / "whatif.json"));
}
