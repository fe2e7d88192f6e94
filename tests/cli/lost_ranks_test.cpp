// One rank of four dies, leaves or stops, at each phase: what the others say, and what they leave.
#include <signal.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <future>
#include <regex>

#include "catch.h"
#include "cli/shared_run.h"

using octet::testing::SharedRun;

namespace {

using Clock = std::chrono::steady_clock;
constexpr int ranks = 4;

// Every step is saved, every second one evaluated.
const std::string settings =
    "--ranks 4 --set batch.tokens=128 --set checkpoint.every=1 --set checkpoint.keep=2 "
    "--set evaluation.every=2 --set parallel.timeout_seconds=2 ";

// Where the fault comes, and the newest checkpoint it leaves; 0: none. The next start goes on from there.
struct Stage {
  const char* phase;
  int step, saved;
};
constexpr std::array<Stage, 5> stages = {
    {{"startup", 0, 0}, {"step", 2, 1}, {"update", 3, 2}, {"evaluation", 4, 3}, {"save", 5, 4}}};

std::string checkpoint(const std::string& run, int step) {
  return run + "/checkpoints/step-0000000" + std::to_string(step);
}

struct Start {
  CommandRun run;
  double seconds = 0;
  bool whole = true;  // the checkpoint of Stage::saved is there, and nothing newer
};

// One run to its end, with a fault of `rank` at each stage. Catch's macros are not for several threads.
std::vector<Start> suffer(const SharedRun& place, const std::string& fault, int rank) {
  std::vector<Start> starts;
  const std::string name = fault + std::to_string(rank);
  for (const Stage& stage : stages) {
    Start& start = starts.emplace_back();
    const auto began = Clock::now();
    start.run = place.train(name, settings + "--inject " + fault + ":step=" + std::to_string(stage.step) +
                                      ",phase=" + stage.phase + ",rank=" + std::to_string(rank));
    start.seconds = std::chrono::duration<double>(Clock::now() - began).count();
    const std::filesystem::path newest = checkpoint(name, stage.saved);
    if (stage.saved > 0)
      start.whole = run_octet("checkpoint verify " + newest.string(), place.folder.path()).code == 0;
    start.whole &= !std::filesystem::exists(place.folder.path() / checkpoint(name, stage.saved + 1));
  }
  starts.emplace_back().run = place.train(name, settings);
  return starts;
}

// A line of `rank` about the loss of `lost`; `how` is a regular expression.
bool tells(const std::string& output, int rank, int lost, const std::string& how, const Stage& stage) {
  char host[256] = "";
  gethostname(host, sizeof host - 1);
  const std::string prefix = rank == 0 ? "" : "\\[rank " + std::to_string(rank) + "\\] ";
  const std::regex line("(^|\n)" + prefix + "error: rank " + std::to_string(lost) + " \\(host " +
                        std::regex_replace(host, std::regex("[.]"), "\\.") + ", pid [0-9]+\\) was lost: " +
                        how + ", at step " + std::to_string(stage.step) + ", phase " + stage.phase + "\n");
  return std::regex_search(output, line);
}

// Every rank of four suffers `fault` at every stage; four runs at a time, since they mostly wait.
void check_all(const std::string& fault, int code, const std::string& how) {
  const SharedRun place;
  REQUIRE(place.train("undisturbed", settings).code == 0);
  std::vector<std::future<std::vector<Start>>> runs;
  for (int rank = 0; rank < ranks; ++rank)
    runs.push_back(std::async(std::launch::async, suffer, std::cref(place), fault, rank));
  for (int lost = 0; lost < ranks; ++lost) {
    const std::vector<Start> starts = runs[static_cast<size_t>(lost)].get();
    for (size_t s = 0; s < stages.size(); ++s) {
      const Start& start = starts[s];
      INFO(fault << " of rank " << lost << " at " << stages[s].phase << ", " << start.seconds
                 << " s: " << start.run.output);
      CHECK(start.run.code == code);
      for (int rank = 0; rank < ranks; ++rank)
        CHECK(tells(start.run.output, rank, lost, how, stages[s]) == (rank != lost));
      CHECK(start.whole);
      CHECK(start.seconds < 2 + 15);
    }
    INFO(starts.back().run.output);
    CHECK(starts.back().run.code == 0);
    CHECK(starts.back().run.says("resuming from step-00000004"));
    CHECK(place.same_checkpoint(fault + std::to_string(lost), "undisturbed"));
  }
}

// A process that was stopped and has `word` on its command line; 0: none.
pid_t stopped_process(const std::string& word) {
  for (const auto& entry : std::filesystem::directory_iterator("/proc")) {
    const std::string name = entry.path().filename().string();
    if (name.find_first_not_of("0123456789") != std::string::npos) continue;
    const auto text = [&](const char* file) {
      std::ifstream in(entry.path() / file);
      return std::string((std::istreambuf_iterator<char>(in)), {});
    };
    if (text("cmdline").find(word) != std::string::npos && text("stat").find(") T ") != std::string::npos)
      return std::stoi(name);
  }
  return 0;
}

}  // namespace

TEST_CASE(
    "each rank of 4 is killed at each phase: the others say where, and the run goes on to the same end "
    "(slow)") {
  check_all("kill", 137, "its connection closed without a goodbye");
}

TEST_CASE("each rank of 4 leaves with 0 at each phase: the same (slow)") {
  check_all("exit", 31, "its connection closed without a goodbye");
}

TEST_CASE("each rank of 4 is stopped at each phase: the same, once it was silent for the timeout (slow)") {
  check_all("hang", 31, "nothing heard from it for [0-9.]+ s");
}

TEST_CASE("a rank that is stopped for less than the timeout is not lost") {
  const SharedRun place;
  REQUIRE(place.train("undisturbed", settings).code == 0);
  const std::string output = (place.folder.path() / "woken").string();
  auto run = std::async(std::launch::async, [&] {
    return place.train(output, "--ranks 4 --set batch.tokens=128 --inject hang:step=3,rank=2");
  });
  pid_t stopped = 0;
  while (stopped == 0 && run.wait_for(std::chrono::milliseconds(20)) != std::future_status::ready)
    stopped = stopped_process("run.output=" + output);
  if (stopped > 0) {
    usleep(500'000);
    kill(stopped, SIGCONT);
  }
  const CommandRun result = run.get();
  INFO(result.output);
  CHECK(stopped > 0);
  CHECK(result.code == 0);
  CHECK(place.same_checkpoint("woken", "undisturbed"));
}

TEST_CASE(
    "parallel.stall_seconds: a rank that others wait for, and that lives but gets no further, is lost") {
  const SharedRun place;
  const std::string slow = "--ranks 2 --set run.steps=3 --inject slow:milliseconds=800,rank=0 ";
  const CommandRun run = place.train("run", slow + "--set parallel.stall_seconds=0.5");
  INFO(run.output);
  CHECK(run.code == 31);
  CHECK(run.says("error: rank 0 (host "));
  CHECK(run.says(") hangs: no progress for "));
  CHECK(run.says(", while rank 1 waits for it in "));
  CHECK(run.says(", at step 3, phase save"));
  // Negative control: with the default of 300 s it is only slow.
  const CommandRun patient = place.train("patient", slow);
  INFO(patient.output);
  CHECK(patient.code == 0);
}
