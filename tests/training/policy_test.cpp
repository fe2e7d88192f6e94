// Who may use a folder, how a run goes on, and what a signal does in every phase.
#include "base/files.h"
#include "training/tiny_run.h"

using namespace octet;
using namespace octet::testing;
namespace fs = std::filesystem;

TEST_CASE("SIGTERM saves and stops in every phase, and the resumed run ends with the same bytes") {
  const TinyData data;
  TinyRun whole(data);
  whole.go();
  for (const char* phase : {"startup", "step,step=3", "evaluation,step=4", "save,step=6"}) {
    INFO(phase);
    TinyRun run(data);
    const TrainResult result = run.go({fmt::format("signal:name=TERM,phase={}", phase)});
    CHECK(result.code == ExitCode::Stopped);
    CHECK(result.step < 8);
    CHECK(result.reason == "SIGTERM");
    CHECK_NOTHROW(verify_checkpoint(run.checkpoint(result.step)));
    CHECK(run.go().code == ExitCode::Success);
    CHECK(files_in(run.checkpoint(8)) == files_in(whole.checkpoint(8)));
    CHECK(run.records("validation").size() == 2);  // an evaluation cut short is made up for
  }
}

TEST_CASE("SIGUSR1 saves and goes on; SIGUSR2 saves and stops") {
  const TinyData data;
  TinyRun run(data, {"checkpoint.every=0"});
  CHECK(run.go({"signal:name=USR1,phase=step,step=3"}).code == ExitCode::Success);
  CHECK(list_checkpoints(run.path() / "checkpoints").size() == 2);
  CHECK_NOTHROW(verify_checkpoint(run.checkpoint(3)));
  TinyRun stopped(data, {"checkpoint.every=0"});
  CHECK(stopped.go({"signal:name=USR2,phase=step,step=3"}).code == ExitCode::Stopped);
  TinyRun untouched(data, {"checkpoint.every=0"});
  untouched.go();
  CHECK(list_checkpoints(untouched.path() / "checkpoints").size() == 1);
}

TEST_CASE("a folder in use is refused, and its holder named") {
  const TinyData data;
  TinyRun run(data);
  fs::create_directories(run.path());
  {
    const FolderLock lock(run.path(), ExitCode::Usage);
    CHECK_FALSE(error_of([&] { run.go(); }).empty());
    CHECK_FALSE(fs::exists(run.path() / metrics_file));
  }
  CHECK(run.go().code == ExitCode::Success);
}

TEST_CASE("resume policies: never, require, auto, a path, and overwrite") {
  const TinyData data;
  TinyRun run(data);
  run.request.resume.kind = ResumePolicy::Kind::Require;
  CHECK(error_of([&] { run.go(); }).find("no checkpoint") != std::string::npos);
  run.request.resume.kind = ResumePolicy::Kind::Never;
  CHECK(run.go({"signal:name=TERM,phase=step,step=6"}).step == 5);
  CHECK(error_of([&] { run.go(); }).find("already holds a run") != std::string::npos);
  run.request.resume.kind = ResumePolicy::Kind::Require;
  CHECK(run.go().step == 8);
  const auto expected = files_in(run.checkpoint(8));

  // From an earlier checkpoint: the later ones are kept aside, and training gives them again.
  run.request.resume = {ResumePolicy::Kind::Path, run.checkpoint(4).string()};
  CHECK(run.go().step == 8);
  CHECK(files_in(run.checkpoint(8)) == expected);
  CHECK(files_in(run.path() / "checkpoints" / "superseded-step-00000008") == expected);
  CHECK(run.records("step").size() == 8);

  run.request.resume = {ResumePolicy::Kind::Never, {}};
  run.request.overwrite = true;
  put_bytes(run.path() / "notes.txt", "mine");
  CHECK(run.go({"signal:name=TERM,phase=step,step=2"}).step == 1);
  CHECK(run.records("step").size() == 1);
  CHECK(list_checkpoints(run.path() / "checkpoints").size() == 1);
  CHECK(bytes_of(run.path() / "notes.txt") == "mine");
}

TEST_CASE("a run that goes on from another run's checkpoint sets its own former checkpoints aside") {
  const TinyData data;
  TinyRun other(data), run(data);
  other.go({"signal:name=TERM,phase=step,step=4"});
  run.go();
  run.request.resume = {ResumePolicy::Kind::Path, other.checkpoint(3).string()};
  CHECK(run.go({"signal:name=TERM,phase=step,step=5"}).step == 4);
  std::vector<int64_t> steps;
  for (const CheckpointEntry& entry : list_checkpoints(run.path() / "checkpoints"))
    steps.push_back(entry.step);
  CHECK(steps == std::vector<int64_t>{2, 4});
  CHECK(fs::exists(run.path() / "checkpoints" / "superseded-step-00000008"));
  run.request.resume = {ResumePolicy::Kind::Auto, {}};
  CHECK(run.go().step == 8);
  CHECK(run.events("resume").back() == "from step-00000004");  // not from step 8 of the former history
}

TEST_CASE("a changed configuration is refused, recorded or free, by key") {
  const TinyData data;
  TinyRun run(data);
  run.go({"signal:name=TERM,phase=step,step=4"});
  const RunConfig before = run.request.config;
  run.request.config.run.seed = 8;
  CHECK(error_of([&] { run.go(); }).find("/run/seed: 7 -> 8") != std::string::npos);
  run.request.config = before;
  run.request.config.schedule.learning_rate = 2e-2;
  CHECK(run.go().step == 8);
  bool recorded = false;
  for (const std::string& text : run.events("resume"))
    recorded = recorded || text.find("/schedule/learning_rate") != std::string::npos;
  CHECK(recorded);
}

TEST_CASE("another run's folder is not taken over, even before its first checkpoint") {
  const TinyData data;
  TinyRun run(data);
  run.go({"signal:name=TERM,phase=step,step=1"});
  fs::remove_all(run.checkpoint(0));
  run.request.config.model.width = 64;
  CHECK(error_of([&] { run.go(); }).find("holds another run") != std::string::npos);
  run.request.config.model.width = 32;
  CHECK(run.go().step == 8);
}

TEST_CASE("shards that changed since the checkpoint are refused, unless accepted") {
  TinyData data;
  TinyRun run(data);
  run.go({"signal:name=TERM,phase=step,step=4"});
  for (const auto& entry : fs::directory_iterator(data.folder.path))
    if (entry.path().filename().string().rfind("train", 0) == 0) fs::remove(entry.path());
  data.write("train", 2 * 145, 145, 99);
  CHECK(error_of([&] { run.go(); }).find("training data changed") != std::string::npos);
  run.request.accept_changed_data = true;
  CHECK(run.go().step == 8);
}

TEST_CASE("too few tokens for the steps is found before the first, and epochs are logged") {
  const TinyData data;
  TinyRun limited(data, {"data.epochs=1"});
  CHECK(error_of([&] {
          limited.go();
        }).find("has 18 windows, the run reads 32 of them: 2 epochs, data.epochs allows 1") !=
        std::string::npos);
  CHECK_FALSE(fs::exists(limited.path()));
  TinyRun enough(data, {"data.epochs=2"});
  CHECK(enough.go().step == 8);
  CHECK(enough.events("epoch").size() == 1);
}

TEST_CASE("retention keeps the newest and the permanent checkpoints of a run") {
  const TinyData data;
  TinyRun run(data, {"checkpoint.every=1", "checkpoint.keep=2", "checkpoint.keep_every=3"});
  run.go();
  std::vector<int64_t> steps;
  for (const CheckpointEntry& entry : list_checkpoints(run.path() / "checkpoints"))
    steps.push_back(entry.step);
  CHECK(steps == std::vector<int64_t>{3, 6, 7, 8});
}

TEST_CASE("a log that cannot be written does not stop the run") {
  const TinyData data;
  TinyRun run(data);
  fs::create_directories(run.path());
  fs::create_symlink("/dev/full", run.path() / metrics_file);
  CHECK(run.go().code == ExitCode::Success);
  CHECK_NOTHROW(verify_checkpoint(run.checkpoint(8)));
}

TEST_CASE("faults that do not exist and devices that are not built are refused by name") {
  const TinyData data;
  TinyRun run(data);
  for (const char* spec :
       {"explode", "kill", "kill:stp=3", "nan:step=x", "signal:name=HUP,phase=step", "nan:step=1,"})
    CHECK(error_of([&] { run.go({spec}); }).find(spec) != std::string::npos);
  run.request.device = "cuda";
  CHECK(error_of([&] { run.go(); }).find("no CUDA device") != std::string::npos);
  CHECK_FALSE(fs::exists(run.path()));
}
