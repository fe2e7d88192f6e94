// Who may use a folder, how a run goes on, and what a signal does in every phase.
#include <thread>

#include "base/files.h"
#include "standard_error.h"
#include "training/run_memory.h"
#include "training/tiny_run.h"

using namespace octet;
using namespace octet::testing;
namespace fs = std::filesystem;

TEST_CASE("SIGTERM saves and stops in every phase, and the resumed run ends with the same bytes") {
  const TinyData data;
  TinyRun whole(data);
  whole.go();
  for (const char* phase :
       {"startup", "step,step=3", "evaluation,step=4", "evaluation,step=8", "save,step=6"}) {
    INFO(phase);
    TinyRun run(data);
    const TrainResult result = run.go({fmt::format("signal:name=TERM,phase={}", phase)});
    CHECK(result.code == ExitCode::Stopped);
    CHECK(result.step <= 8);
    CHECK(result.reason == "SIGTERM");
    CHECK_NOTHROW(verify_checkpoint(run.checkpoint(result.step)));
    CHECK(run.go().code == ExitCode::Success);
    for (int step = 2; step <= 8; step += 2)
      CHECK(files_in(run.checkpoint(step)) == files_in(whole.checkpoint(step)));
    CHECK(run.records("validation").size() == 2);  // an evaluation cut short is made up for
  }
}

TEST_CASE("SIGUSR1 saves and goes on, SIGUSR2 saves and stops") {
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
  CHECK_FALSE(fs::exists(run.path() / "checkpoints" / "superseded-step-00000008"));
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
  // Finished: no step would follow the new value, and config.json must not claim it.
  run.request.config.schedule.learning_rate = 3e-2;
  CHECK(error_of([&] { run.go(); }).find("no step is left") != std::string::npos);
  CHECK(bytes_of(run.path() / config_file).find("0.02") != std::string::npos);
}

TEST_CASE("a superseded checkpoint that a run goes on from is saved under its own name") {
  const TinyData data;
  TinyRun run(data);
  run.go();
  run.request.resume = {ResumePolicy::Kind::Path, run.checkpoint(4).string()};
  CHECK(run.go({"signal:name=TERM,phase=startup"}).step == 4);
  const fs::path aside = run.path() / "checkpoints" / "superseded-step-00000006";
  run.request.resume = {ResumePolicy::Kind::Path, aside.string()};
  CHECK(run.go({"signal:name=TERM,phase=startup"}).step == 6);
  CHECK(files_in(run.checkpoint(6)) == files_in(aside));
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

TEST_CASE("faults that do not exist and devices that are not there are refused by name") {
  const TinyData data;
  TinyRun run(data);
  for (const char* spec : {"explode", "kill", "kill:stp=3", "nan:step=x", "signal:name=HUP,phase=step",
                           "nan:step=1,", "signal:name=TERM,phase=later"})
    CHECK(error_of([&] { run.go({spec}); }).find(spec) != std::string::npos);
  CHECK(error_of([&] {
          run.go({"signal:name=TERM,phase=evalution"});
        }).find("no phase 'evalution': did you mean evaluation?") != std::string::npos);
  run.request.device = "cuda";
  if (!fs::exists("/dev/nvidiactl")) {  // a build without the CUDA device, or a machine without a driver
    const std::string error = error_of([&] { run.go(); });
    INFO(error);
    CHECK((error.find("no CUDA device") != std::string::npos ||
           error.find("no NVIDIA driver") != std::string::npos));
  }
  CHECK_FALSE(fs::exists(run.path()));
}

TEST_CASE("a run that is refused leaves nothing of its own behind") {
  const TinyData data;
  TinyRun source(data), run(data);
  source.go({"signal:name=TERM,phase=step,step=3"});
  const fs::path good = source.checkpoint(2), damaged = source.folder.path / "damaged";
  fs::copy(good, damaged, fs::copy_options::recursive);
  put_bytes(damaged / "masters.safetensors", "");
  const RunConfig config = run.request.config;
  const auto refused = [&](ResumePolicy resume, const std::vector<std::string>& inject = {}) {
    run.request.resume = std::move(resume);
    return error_of([&] { run.go(inject); });
  };
  const auto expect_nothing = [&](const std::string& error, const char* part) {
    INFO(error);
    CHECK(error.find(part) != std::string::npos);
    CHECK_FALSE(fs::exists(run.folder.path / "deep"));
    CHECK_FALSE(fs::exists(run.path()));
  };
  for (const char* output : {"run", "deep/er/run"}) {
    run.request.config = config;
    run.request.config.run.output = (run.folder.path / output).string();
    expect_nothing(refused({ResumePolicy::Kind::Require, {}}), "no checkpoint to resume from");
    expect_nothing(refused({ResumePolicy::Kind::Path, "nowhere"}), "nowhere: no such checkpoint");
    expect_nothing(refused({ResumePolicy::Kind::Path, damaged.string()}), "masters.safetensors: 0 bytes");
    expect_nothing(refused({}, {"memory:available=1000"}), "the run needs");
    run.request.config.model.width = 64;
    expect_nothing(refused({ResumePolicy::Kind::Path, good.string()}), "/model/width: 32 -> 64");
  }
  // In a folder that was there, what was there stays; a run that is refused later stays too.
  run.request.config = config;
  fs::create_directories(run.path());
  put_bytes(run.path() / "slurm.out", "mine");
  CHECK_FALSE(refused({ResumePolicy::Kind::Require, {}}).empty());
  CHECK(std::distance(fs::directory_iterator(run.path()), fs::directory_iterator()) == 1);
  run.request.resume = {};
  CHECK(run.go().code == ExitCode::Success);
  run.request.config.model.width = 64;
  CHECK_FALSE(refused({}).empty());
  CHECK_NOTHROW(verify_checkpoint(run.checkpoint(8)));
  CHECK(run.status()["state"] == "finished");
}

TEST_CASE("a folder that is not empty and holds no run is not made one") {
  const TinyData data;
  TinyRun run(data);
  fs::create_directories(run.path());
  put_bytes(run.path() / "quickstart.json", "{}");
  CHECK(error_of([&] { run.go(); }).find("holds no run: quickstart.json") != std::string::npos);
  CHECK(std::distance(fs::directory_iterator(run.path()), fs::directory_iterator()) == 1);
  fs::remove(run.path() / "quickstart.json");
  CHECK(run.go().code == ExitCode::Success);
  put_bytes(run.path() / "notes.txt", "");  // a run's folder may hold more
  CHECK(run.go().code == ExitCode::Success);
}

TEST_CASE("what would end the first step or its save is found before the folder is made") {
  const TinyData data;  // every window has ids above 15
  TinyRun narrow(data, {"model.vocabulary=16", "evaluation.every=0"});
  CHECK(error_of([&] { narrow.go(); }).find("the vocabulary has 16") != std::string::npos);
  CHECK_FALSE(fs::exists(narrow.path()));
  narrow.request.config.model.vocabulary = 64;  // as the hint says
  CHECK(narrow.go().code == ExitCode::Success);

  TinyRun run(data);
  try {
    run.go({"file-system:free=1000"});
    FAIL("no checkpoint fits, and the run was started");
  } catch (const Error& error) {
    CHECK(error.code() == ExitCode::Usage);
    CHECK(std::string(error.what()).find("1000 B free, a checkpoint takes ") != std::string::npos);
  }
  CHECK_FALSE(fs::exists(run.path()));
  CHECK(run.go({"file-system:free=4000000"}).code == ExitCode::Success);
  CHECK(run.go({"file-system:free=1000"}).code == ExitCode::Success);  // finished: nothing to save
}

TEST_CASE("a shard that is read twice is named in one warning") {
  const TinyData data;
  TinyRun apart(data), shared(data);
  CHECK(count_of(warnings_of([&] { apart.go(); }), "the same tokens") == 0);
  shared.request.config.data.validation = shared.request.config.data.train;
  const std::string said = warnings_of([&] { shared.go(); });
  CHECK(count_of(said, "the same tokens") == 1);
  CHECK(count_of(said, "train_000000.bin is in training source \"default\" and in validation source") == 1);
  CHECK(count_of(said, "and 1 shard more") == 1);
}

TEST_CASE("more threads than cores are used, with a warning") {
  const TinyData data;
  TinyRun one(data), many(data);
  many.request.config.run.threads = static_cast<int>(std::thread::hardware_concurrency()) + 1;
  CHECK(count_of(warnings_of([&] { one.go(); }), "run.threads") == 0);
  CHECK(count_of(warnings_of([&] { many.go(); }), "run.threads") == 1);
}

TEST_CASE("mistakes of the command line are reported before those of the data") {
  const TinyData data;
  TinyRun run(data);
  run.request.config.data.train = {{"train", {"/nowhere/train_*.bin"}, 1}};
  CHECK(error_of([&] { run.go({"explode:step=1"}); }).find("--inject explode") == 0);
  run.request.resume = {ResumePolicy::Kind::Path, "/nowhere/step-00000001"};
  CHECK(error_of([&] { run.go(); }).find("/nowhere/step-00000001: no such checkpoint") == 0);
  run.request.resume = {};
  CHECK(error_of([&] { run.go(); }).find("/nowhere/train_*.bin") != std::string::npos);
}

TEST_CASE("the memory of both arenas is asked for before anything is allocated or made") {
  const TinyData data;
  TinyRun run(data);
  const RunConfig& config = run.request.config;
  const auto device = make_cpu_device({config.run.deterministic, config.run.threads});
  const PlannedMemory planned = measure_memory(device.get(), config);
  REQUIRE(planned.host_bytes > 0);
  const size_t sum = planned.device_bytes + planned.host_bytes;
  try {
    run.go({fmt::format("memory:available={}", sum - 1)});
    FAIL("a run that does not fit was started");
  } catch (const Error& error) {
    CHECK(error.code() == ExitCode::Usage);
    CHECK(error.hint().find("batch.micro") != std::string::npos);
  }
  CHECK_FALSE(fs::exists(run.path()));
  CHECK(run.go({fmt::format("memory:available={}", sum)}).code == ExitCode::Success);

  DeviceInfo own = device->info();
  own.uses_host_memory = false;  // as of a GPU
  CHECK_NOTHROW(require_memory(planned, own, planned.host_bytes));
  CHECK_THROWS_AS(require_memory(planned, own, planned.host_bytes - 1), Error);
  CHECK_NOTHROW(require_memory(planned, device->info(), 0));  // unknown
  RunConfig greedy = config;
  greedy.evaluation.batches = 1000000000;
  try {
    require_memory(measure_memory(device.get(), greedy), device->info(), sum);
    FAIL("256 GB of validation windows fit");
  } catch (const Error& error) {
    CHECK(error.hint().find("evaluation.batches") != std::string::npos);
  }
}

TEST_CASE("an evaluation of more batches than there are reads every window once") {
  const TinyData data;  // five validation windows: three micro-batches of two
  TinyRun all(data), absurd(data, {"evaluation.batches=1000000000"}), one(data, {"evaluation.batches=1"});
  for (TinyRun* run : {&all, &absurd, &one}) CHECK(run->go().code == ExitCode::Success);
  CHECK(absurd.records("validation")[1]["validation/loss"] ==
        all.records("validation")[1]["validation/loss"]);
  CHECK(one.records("validation")[1]["validation/loss"] != all.records("validation")[1]["validation/loss"]);
  TinyRun logged(data, {"evaluation.batches=4"});
  set_log_level(LogLevel::Info);
  const std::string text = standard_error_of([&] { logged.go(); });
  CHECK(count_of(text, "evaluation.batches 4: the validation shards hold 5 windows") == 1);
  CHECK(count_of(text, "in 3 micro-batches") == 1);
}
