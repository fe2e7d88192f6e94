// octet train as one of several ranks, and as their starter.
#include <fstream>
#include <nlohmann/json.hpp>

#include "catch.h"
#include "cli/command_run.h"

namespace {

struct SmallRun {
  TemporaryFolder folder;
  SmallRun() {
    std::string text;
    for (int i = 0; i < 2000; ++i) text += "all work and no play " + std::to_string(i * i % 97) + "\n";
    std::ofstream(folder.path() / "text.txt") << text;
    REQUIRE(run_octet("tokenize text.txt --output data", folder.path()).code == 0);
    std::ofstream(folder.path() / "run.json") << R"({
      "run": {"name": "small", "output": "run", "seed": 3, "steps": 12, "deterministic": true, "threads": 1},
      "model": {"layers": 1, "width": 32, "heads": 2, "kv_heads": 1, "ffn_width": 48, "context": 32},
      "precision": {"recipe": "fp8"},
      "data": {"train": ["data/train_*.bin"]},
      "batch": {"tokens": 128, "micro": 2},
      "schedule": {"learning_rate": 1e-2, "warmup_steps": 2},
      "checkpoint": {"every": 5, "keep": 2, "asynchronous": false}
    })";
  }
  // `before` stands before the program's name: variables of the shell.
  CommandRun octet(const std::string& arguments, const std::string& before = "") const {
    const std::string command = "bash -c '" + before + " exec \"$@\"' octet '" OCTET_BINARY "' " + arguments;
    return run_command(command, folder.path());
  }
};

size_t count_of(const std::string& text, const std::string& part) {
  size_t count = 0;
  for (size_t at = 0; (at = text.find(part, at)) != std::string::npos; at += part.size()) ++count;
  return count;
}

}  // namespace

TEST_CASE("octet doctor prints which rank this process is, or why it cannot be told") {
  const SmallRun place;
  CHECK(place.octet("doctor").says("Launch    single process\n"));
  const std::string second = "export OCTET_RANK=1 OCTET_RANKS=2 OCTET_RENDEZVOUS=127.0.0.1:4000;";
  CHECK(place.octet("doctor", second)
            .says("Launch    rank 1 of 2 (OCTET_RANK; local rank 1 of 2), rendezvous at 127.0.0.1:4000\n"));
  const CommandRun wrong = place.octet("doctor", "export OCTET_RANK=1;");
  CHECK(wrong.code == 0);
  CHECK(wrong.says("Launch    OCTET_RANK is set, OCTET_RANKS is not"));
  const auto json = nlohmann::json::parse(place.octet("doctor --json", second).output);
  CHECK(json["launch"]["line"].get<std::string>().substr(0, 11) == "rank 1 of 2");
}

TEST_CASE("octet train --ranks N starts this command N times, flags that contradict it are refused") {
  const SmallRun place;
  for (const char* flag : {"--ranks 2", "--gpus=2"}) {
    const CommandRun run = place.octet(
        std::string("train run.json --quiet --overwrite --set run.output=other --set run.steps=3 ") + flag);
    INFO(run.output);
    CHECK(run.code == 0);
    CHECK(run.says("launch: rank 0 of 2 (OCTET_RANK; local rank 0 of 2), rendezvous at 127.0.0.1:"));
    CHECK(count_of(run.output, "finished: step 3") == 1);
  }
  CHECK(place.octet("train run.json --ranks 2 --rank 0 --world-size 2").says("error: --ranks with --rank"));
  CHECK(place.octet("train run.json --max-restarts 2 --launcher mpi")
            .says("error: --max-restarts without --ranks"));
  CHECK(place.octet("train run.json --ranks 0").code == 2);
  CHECK(place.octet("train run.json --rank 1").says("error: --rank without --world-size"));
  CHECK(place.octet("train run.json --launcher sturm").says("did you mean --launcher slurm?"));
  // What is wrong with the configuration is said once, before anything is started.
  const CommandRun typo = place.octet("train run.json --ranks 2 --set run.stepps=3");
  CHECK(typo.code == 2);
  CHECK(count_of(typo.output, "error:") == 1);
  const CommandRun nested =
      place.octet("train run.json --ranks 2", "export OMPI_COMM_WORLD_RANK=1 OMPI_COMM_WORLD_SIZE=2;");
  CHECK(nested.says("--ranks starts processes by itself, but Open MPI says rank 1 of 2"));
  CHECK_FALSE(std::filesystem::exists(place.folder.path() / "run"));
}

TEST_CASE("a process in a Slurm allocation without a step does not train by itself") {
  const SmallRun place;
  const std::string batch = "export SLURM_JOB_ID=7 SLURM_NTASKS=4;";
  const CommandRun refused = place.octet("train run.json --quiet", batch);
  CHECK(refused.code == 2);
  CHECK(refused.says("srun octet train"));
  CHECK_FALSE(std::filesystem::exists(place.folder.path() / "run"));
  CHECK(place.octet("train run.json --quiet --launcher single --set run.steps=4", batch).code == 0);
}

TEST_CASE("train --max-restarts goes on from the newest checkpoint after a kill, with the same result") {
  const SmallRun place;
  CHECK(
      place.octet("train run.json --quiet --set run.output=whole --set checkpoint.asynchronous=false").code ==
      0);
  const CommandRun run =
      place.octet("train run.json --max-restarts 2 --set checkpoint.asynchronous=false --inject kill:step=8");
  INFO(run.output);
  CHECK(run.code == 0);
  CHECK(count_of(run.output, "launcher: rank 0 was killed by SIGKILL; starting it again (restart 1 of 2)") ==
        1);
  CHECK(run.says("resuming from step-00000005"));
  CHECK(run.says("finished: step 12"));
  CHECK_FALSE(run.says("restart 2 of 2"));
  const CommandRun equal =
      place.octet("checkpoint diff run/checkpoints/step-00000012 whole/checkpoints/step-00000012");
  CHECK(equal.code == 0);
  // Negative control: without it the kill is the end.
  CHECK(place.octet("train run.json --set run.output=other --quiet --inject kill:step=8").code == 137);
}

TEST_CASE("a restart neither overwrites what was saved, nor loses the wish to begin afresh before that") {
  const SmallRun place;
  REQUIRE(place.octet("train run.json --quiet").code == 0);
  // Killed after its first save: the restart goes on from it.
  const CommandRun later = place.octet(
      "train run.json --overwrite --max-restarts 1 --set checkpoint.asynchronous=false --inject kill:step=8");
  INFO(later.output);
  CHECK(later.code == 0);
  CHECK(count_of(later.output, "the former run is removed") == 1);
  CHECK(later.says("resuming from step-00000005"));
  // Killed before: the restart begins afresh, as asked, and not from the former run's checkpoints.
  const CommandRun early = place.octet("train run.json --overwrite --max-restarts 1 --inject kill:step=2");
  INFO(early.output);
  CHECK(early.code == 0);
  CHECK_FALSE(early.says("resuming from"));
  // A folder that held no run: --resume never may begin again.
  const CommandRun never =
      place.octet("train run.json --set run.output=new --resume never --max-restarts 1 --inject kill:step=2");
  INFO(never.output);
  CHECK(never.code == 0);
  CHECK(never.says("finished: step 12"));
  // One that did: it is still refused, and that is no reason to try again.
  const CommandRun held = place.octet("train run.json --set run.output=new --resume never --max-restarts 1");
  CHECK(held.code == 2);
  CHECK_FALSE(held.says("restart"));
  // From a checkpoint of another run, killed before the first save: from there again.
  const CommandRun path = place.octet(
      "train run.json --set run.output=fork --resume run/checkpoints/step-00000010 --set "
      "checkpoint.every=100 "
      "--set run.steps=14 --max-restarts 1 --inject kill:step=12");
  INFO(path.output);
  CHECK(path.code == 0);
  CHECK(count_of(path.output, "resuming from") == 2);
}
