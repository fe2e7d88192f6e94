// train, checkpoint and bench as a user runs them.
#include <fstream>
#include <nlohmann/json.hpp>

#include "catch.h"
#include "cli/command_run.h"

namespace fs = std::filesystem;

namespace {

// A run small enough for a step a millisecond, on shards made by the program itself.
struct Workplace {
  TemporaryFolder folder;
  explicit Workplace(int steps) {
    std::string text;
    for (int i = 0; i < 3000; ++i) text += "all work and no play " + std::to_string(i * i % 97) + "\n";
    std::ofstream(folder.path() / "text.txt") << text;
    REQUIRE(run_octet("tokenize text.txt --output data --validation 0.1", folder.path()).code == 0);
    std::ofstream(folder.path() / "run.json") << R"({
      "run": {"name": "small", "output": "run", "seed": 3, "steps": )"
                                              << steps << R"(, "deterministic": true, "threads": 1},
      "model": {"layers": 1, "width": 32, "heads": 2, "kv_heads": 1, "ffn_width": 48, "context": 32},
      "precision": {"recipe": "fp8"},
      "data": {"train": ["data/train_*.bin"], "validation": ["data/validation_*.bin"]},
      "batch": {"tokens": 128, "micro": 2},
      "schedule": {"learning_rate": 1e-2, "warmup_steps": 2},
      "checkpoint": {"every": 5, "keep": 2, "asynchronous": false},
      "evaluation": {"every": 10, "batches": 2}
    })";
  }
  CommandRun octet(const std::string& arguments) const { return run_octet(arguments, folder.path()); }
  fs::path run(const std::string& name) const { return folder.path() / "run" / name; }
};

std::string bytes_of(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

}  // namespace

TEST_CASE("octet train prints its steps, proves its precision, and goes on after a kill") {
  const Workplace place(20);
  const CommandRun killed = place.octet("train run.json --inject kill:step=13");
  CHECK(killed.code == 137);
  CHECK(killed.says("step  1/20"));
  CHECK(killed.says("F8_E5M2"));  // the table of GEMMs
  CHECK(killed.says(" resident"));
  const CommandRun list = place.octet("checkpoint list run");
  CHECK(list.says("state: killed"));
  const CommandRun resumed = place.octet("train run.json");
  CHECK(resumed.code == 0);
  CHECK(resumed.says("the process before ended without a word"));
  CHECK(resumed.says("step 20/20"));
  CHECK(place.octet("checkpoint list run").says("state: finished"));
  CHECK_FALSE(place.octet("train run.json").says("without a word"));
  CHECK(resumed.says("resuming from step-000000"));
  CHECK(resumed.says("finished: step 20"));
  CHECK(resumed.says("bits/token"));

  CHECK(place.octet("train run.json --set run.output=other --quiet").code == 0);
  const CommandRun equal =
      place.octet("checkpoint diff run/checkpoints/step-00000020 other/checkpoints/step-00000020");
  CHECK(equal.code == 0);
  CHECK(equal.says("equal"));
  const CommandRun differ =
      place.octet("checkpoint diff run/checkpoints/step-00000020 run/checkpoints/step-00000015");
  CHECK(differ.code == 1);
  CHECK(differ.says("elements differ"));

  CHECK(place.octet("checkpoint list run").says("step-00000020"));
  CHECK(place.octet("checkpoint verify run").code == 0);
  CHECK(place.octet("checkpoint verify run/checkpoints/step-00000020/").says("step-00000020: whole"));
  fs::resize_file(place.run("checkpoints/step-00000020/masters.safetensors"), 1000);
  const CommandRun damaged = place.octet("checkpoint verify run");
  CHECK(damaged.code == 4);
  CHECK(damaged.says("DAMAGED"));
  CHECK(damaged.says("masters.safetensors"));
}

TEST_CASE("a signal from outside saves and ends with 75, the same command goes on") {
  const Workplace place(1000000);
  // The shell is in the run's folder; a run that never logs a step ends the wait, and the test.
  const CommandRun stopped = place.octet(
      "--version >/dev/null; '" OCTET_BINARY
      "' train run.json --quiet & pid=$!; tries=0; "
      "until grep -q '\"kind\":\"step\"' run/metrics.jsonl 2>/dev/null || [ $tries -ge 3000 ]; do "
      "sleep 0.02; tries=$((tries + 1)); done; kill -TERM $pid; wait $pid");
  CHECK(stopped.code == 75);
  CHECK(stopped.says("SIGTERM"));
  const auto status = nlohmann::json::parse(bytes_of(place.run("status.json")));
  CHECK(status["state"] == "stopped");
  const int64_t step = status["step"];
  CHECK(step >= 1);
  const CommandRun again =
      place.octet("train run.json --quiet --resume require --set run.steps=" + std::to_string(step + 3));
  CHECK(again.code == 0);
  CHECK(again.says("finished: step " + std::to_string(step + 3)));
}

TEST_CASE("a run started with closed standard streams keeps its logs clean") {
  const Workplace place(5);
  CHECK(place.octet("train run.json >&- 2>&- <&-; exit $?; true").code == 0);
  std::ifstream metrics(place.run("metrics.jsonl"));
  int records = 0;
  for (std::string line; std::getline(metrics, line); ++records) {
    INFO(line);
    CHECK(nlohmann::json::accept(line));  // a warning or a progress line is no record
  }
  CHECK(records >= 6);  // the start and 5 steps
}

TEST_CASE("a run whose output goes nowhere trains to its end") {
  const Workplace place(5);
  CHECK(place.octet("train run.json >/dev/full").code == 0);
  CHECK(place.octet("checkpoint list run").says("step-00000005"));
}

TEST_CASE("a path that cannot be is the caller's mistake, not a bug of the program") {
  const Workplace place(5);
  CHECK(place.octet("train run.json --quiet").code == 0);
  const CommandRun file = place.octet("compare --from run run --output text.txt");
  CHECK(file.code == 2);
  CHECK(file.says("text.txt: Not a directory"));
  const CommandRun run = place.octet("checkpoint diff run run");
  CHECK(run.code == 2);
  CHECK(run.says("step-00000005"));
}

TEST_CASE("what a run refuses has its exit code and a hint") {
  const Workplace place(5);
  CHECK(place.octet("train run.json --resume require").code == 4);
  CHECK_FALSE(fs::exists(place.folder.path() / "run"));  // a refused run leaves no folder
  const CommandRun misspelt = place.octet("train run.json --resume atuo");
  CHECK(misspelt.code == 2);
  CHECK(misspelt.says("did you mean --resume auto?"));
  CHECK(place.octet("train run.json --device cuda").code == 30);
  CHECK(place.octet("train run.json --set run.stepz=3").code == 2);
  CHECK(place.octet("train run.json --set 'data.train=[\"none_*.bin\"]'").code == 3);
  const CommandRun diverged =
      place.octet("train run.json --inject nan:step=1,count=9 --set health.stop_after_nonfinite=2");
  CHECK(diverged.code == 20);
  CHECK(diverged.says("hint:"));
  CHECK(place.octet("checkpoint list .").code == 4);
}

TEST_CASE("the hint after a last save that failed names the checkpoint there is, or none") {
  const Workplace place(5);
  const std::string full = " --quiet --inject enospc:write=1,count=100000";
  const CommandRun none = place.octet("train run.json" + full);
  CHECK(none.code == 4);
  CHECK(none.says("there is no checkpoint: the same command starts afresh"));
  CHECK(place.octet("train run.json --quiet").code == 0);
  const CommandRun some = place.octet("train run.json --set run.steps=7" + full);
  CHECK(some.code == 4);
  CHECK(some.says("the same command goes on from step-00000005"));
}

TEST_CASE("a validation loss is printed with the step it is of only") {
  const Workplace place(10);
  CHECK(place.octet("train run.json --quiet").says("finished: step 10, loss "));
  const CommandRun again = place.octet("train run.json --quiet");
  CHECK(again.says("validation loss"));
  const CommandRun longer = place.octet("train run.json --quiet --set run.steps=12 --set evaluation.every=0");
  CHECK(longer.says("finished: step 12, loss "));
  CHECK_FALSE(longer.says("validation loss"));
}

TEST_CASE("bench prints numbers a script can read") {
  const Workplace place(5);
  const CommandRun step = place.octet("bench step run.json --variants bf16,fp8 --steps 2 --json");
  REQUIRE(step.code == 0);
  const auto variants = nlohmann::json::parse(step.output);
  REQUIRE(variants.size() == 2);
  for (const auto& v : variants) {
    CHECK(v["tokens_per_second"].get<double>() > 0);
    CHECK(v["planned_bytes"].get<int64_t>() > 0);
    const auto& product = v["operations"]["matmul head fprop BF16 x BF16"];
    // [128 tokens, 32] x [257, 32]
    CHECK(product["flops"] == 2 * 128 * 32 * 257);
    CHECK(v["copy_bytes_per_second"].get<double>() > 0);
  }
  CHECK(variants[0]["fp8_flop_share"] == 0.0);
  // Of the linears: block 3 * 32 * 48 + 32 * 64 + 32 * 32 = 7680 weights, head 32 * 257 = 8224; attention
  // takes a bit.
  CHECK(variants[1]["fp8_flop_share"].get<double>() > 0.4);
  for (const auto& v : variants) {
    const double waited = v["loader_wait_seconds"], worst = v["loader_wait_seconds_worst_step"],
                 share = v["loader_wait_share"];
    CHECK(waited >= worst);
    CHECK(worst >= 0);
    CHECK(share >= 0);
    CHECK(share <= 1);
    CHECK_FALSE(v.contains("shard_filesystem"));  // the configuration's own shards
  }
  CHECK(place.octet("bench step run.json --synthetic --steps 1").says("tokens/s"));
  const CommandRun synthetic = place.octet("bench step run.json --synthetic --steps 1 --json");
  REQUIRE(synthetic.code == 0);
  const auto read = nlohmann::json::parse(synthetic.output)[0];
  CHECK_FALSE(read["shard_filesystem"].get<std::string>().empty());
  // Pages were given up before the loader read them, so the storage was asked; tmpfs has no storage behind
  // it.
  if (read["shard_filesystem"] == "ext4" || read["shard_filesystem"] == "xfs")
    CHECK(read["storage_read_bytes"].get<int64_t>() > 0);
  const CommandRun matmul = place.octet("bench matmul --m 32 --n 32 --k 32 --repeat 2 --json");
  REQUIRE(matmul.code == 0);
  CHECK(nlohmann::json::parse(matmul.output).size() == 4);
  CHECK(place.octet("bench matmul --m 32 --n 32 --k 32 --repeat 1 --device interpreter").says("F8_E5M2"));
}

TEST_CASE(
    "the step that bench measures is the trainer's, on a device that is waited for and on one that is not") {
  const Workplace place(8);
  REQUIRE(place.octet("train run.json --quiet --device cpu").code == 0);
  std::vector<double> losses;  // by step
  std::ifstream metrics(place.run("metrics.jsonl"));
  for (std::string line; std::getline(metrics, line);)
    if (const auto record = nlohmann::json::parse(line); record["kind"] == "step")
      losses.push_back(static_cast<float>(record["train/loss"].get<double>()));
  REQUIRE(losses.size() == 8);
  CHECK(losses[4] != losses[5]);  // the control: a step early or late would show
  // Gradients that are added up micro-batch by micro-batch are replayed too.
  const auto with_sums = [&](const std::string& device) {
    const CommandRun run = place.octet(
        "bench step run.json --warmup 2 --steps 4 --json --set parallel.zero=2" + (" --device " + device));
    return nlohmann::json::parse(run.output)[0]["last_loss"].get<double>();
  };
  CHECK(with_sums("cpu") == Approx(losses[5]).epsilon(1e-5));
  CHECK(with_sums("interpreter") == with_sums("cpu"));
  std::string products;
  for (const char* device :
       {"cpu", "interpreter", "interpreter --set run.cuda_graphs=false --set memory.offload=optimizer"}) {
    INFO(device);
    const CommandRun run =
        place.octet(std::string("bench step run.json --warmup 2 --steps 4 --json --device ") + device);
    REQUIRE(run.code == 0);
    auto found = nlohmann::json::parse(run.output)[0];
    CHECK(found["last_loss"] == losses[5]);
    // What a replay repeats is counted as often as what runs as it is.
    for (auto& row : found["gemm_table"]) row.erase("implementation");
    if (products.empty()) products = found["gemm_table"].dump();
    CHECK(found["gemm_table"].dump() == products);
    CHECK(found["steps"] == 4);
    CHECK(found["steps_by_operation"] == 4);
    double operations = 0;
    for (const auto& [name, cost] : found["operations"].items()) operations += cost["seconds"].get<double>();
    CHECK(found["operations"]["adamw"]["calls"].get<int>() > 0);
    CHECK(operations > 0);
  }
}

#if !defined(OCTET_SANITIZED)  // a sanitizer's shadow takes more address space than the limit leaves
TEST_CASE("running out of memory is said, with exit code 2 and a hint") {
  // An operand of 2.4 GiB and its copy on the way to the device are more than the limit of 4 GB of addresses.
  const CommandRun run = run_octet("--version >/dev/null; ulimit -v 4000000; '" OCTET_BINARY
                                   "' bench matmul --m 1048576 --n 1 --k 600 --device cpu");
  INFO(run.output);
  CHECK(run.code == 2);
  CHECK(run.says("error: out of memory"));
  CHECK(run.says("hint:"));
}
#endif

TEST_CASE("checkpoint names what is short, what the manifests differ in, and why a run has none") {
  const Workplace place(10);
  REQUIRE(place.octet("train run.json --quiet").code == 0);
  REQUIRE(
      place.octet("train run.json --quiet --set run.output=other --set optimizer.weight_decay=0.2").code ==
      0);
  const std::string a = "run/checkpoints/step-00000010", b = "other/checkpoints/step-00000010";
  const CommandRun differ = place.octet("checkpoint diff " + a + " " + b);
  INFO(differ.output);
  CHECK(differ.code == 1);
  CHECK(differ.says("manifest /config/optimizer/weight_decay: "));
  CHECK(differ.says(" and 0.2\n"));
  CHECK_FALSE(differ.says("learning_rate"));

  CHECK_FALSE(place.octet("checkpoint list run").says("DAMAGED"));
  const fs::path masters = place.run("checkpoints/step-00000010/masters.safetensors");
  const auto whole = fs::file_size(masters);
  fs::resize_file(masters, 100);
  CHECK(place.octet("checkpoint list run")
            .says("DAMAGED: masters.safetensors has 100 bytes, expected " + std::to_string(whole)));

  REQUIRE(place.octet("train run.json --set run.output=early --inject kill:step=2").code == 137);
  for (const char* command : {"checkpoint list early", "checkpoint verify early"}) {
    const CommandRun none = place.octet(command);
    INFO(none.output);
    CHECK(none.code == 4);
    CHECK(none.says("a run without a checkpoint; state: killed"));
    CHECK_FALSE(none.says("give a run's folder"));
  }
}
