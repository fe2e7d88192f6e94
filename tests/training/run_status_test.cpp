// A run's status, as its file says it and as the folder's lock shows it.
#include "training/run_status.h"

#include <sys/wait.h>
#include <unistd.h>

#include "base/files.h"
#include "standard_error.h"
#include "training/tiny_run.h"

using namespace octet;
using namespace octet::testing;

namespace {

// Trains in a child that ends as the injected faults say.
void train_in_child(TinyRun& run, const std::vector<std::string>& inject) {
  const pid_t child = fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    try {
      run.go(inject);
    } catch (...) {
    }
    _exit(0);
  }
  REQUIRE(waitpid(child, nullptr, 0) == child);
}

}  // namespace

TEST_CASE("a run that was killed is not called running, and one that runs is") {
  const TinyData data;
  TinyRun run(data);
  CHECK_FALSE(read_status(run.path()).has_value());
  // A kill without warning, and a second Ctrl-C (two signals at one step).
  const std::vector<std::string> ends[] = {
      {"kill:step=4"}, {"signal:name=INT,phase=step,step=6", "signal:name=TERM,phase=step,step=6"}};
  for (const std::vector<std::string>& inject : ends) {
    INFO(inject[0]);
    train_in_child(run, inject);
    CHECK(run.status()["state"] == "running");                    // the file cannot know
    CHECK(run.status()["step"] == (inject.size() == 1 ? 2 : 4));  // its newest save
    CHECK(read_status(run.path())->state == "killed");
    {
      const FolderLock lock(run.path(), ExitCode::Usage);  // somebody is at work there
      CHECK(read_status(run.path())->state == "running");
    }
    CHECK(read_status(run.path())->state == "killed");
  }
  const std::string said = warnings_of([&] { CHECK(run.go().code == ExitCode::Success); });
  CHECK(count_of(said, "the process before ended without a word") == 1);
  CHECK(run.events("resume").back().find("without a word") != std::string::npos);
  CHECK(read_status(run.path())->state == "finished");
  CHECK(warnings_of([&] { run.go(); }).empty());
}

TEST_CASE("an edited status names its file and key, and stops no training") {
  const TinyData data;
  TinyRun run(data);
  CHECK(run.go().code == ExitCode::Success);
  const auto path = run.path() / status_file;
  const std::pair<const char*, const char*> edits[] = {
      {"[1]", "status.json: not a JSON object"},
      {"{\"state\": ", "status.json: not a JSON object"},
      {"{\"exit_code\": 0}", "status.json: /state: missing, expected a text"},
      {"{\"state\": 7}", "status.json: /state: found 7, expected a text"},
      {"{\"state\": \"failed\", \"exit_code\": \"x\"}",
       "status.json: /exit_code: found \"x\", expected a whole number"},
      {"{\"state\": \"failed\", \"step\": 1e99}", "status.json: /step: found 1e+99, expected a whole number"},
      {"{\"state\": \"failed\", \"reason\": [\"\\u001b[2J\"]}", "status.json: /reason: found ["}};
  for (const auto& [text, complaint] : edits) {
    put_bytes(path, text);
    const std::string error = error_of([&] { read_status(run.path()); });
    INFO(error);
    CHECK(error.find(complaint) != std::string::npos);
    CHECK(error.find('\x1b') == std::string::npos);
    CHECK(run.go().code == ExitCode::Success);
    CHECK(read_status(run.path())->state == "finished");
  }
}
