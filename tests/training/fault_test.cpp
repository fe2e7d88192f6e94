// Kills, full disks, flipped bytes: the next start finds the newest whole checkpoint and ends with the same
// bytes.
#include <atomic>
#include <chrono>
#include <thread>

#include "base/files.h"
#include "standard_error.h"
#include "training/child_run.h"

using namespace octet;
using namespace octet::testing;
namespace fs = std::filesystem;

namespace {

const std::vector<std::string> short_run = {"run.steps=3", "checkpoint.every=1", "checkpoint.keep=1"};

// A run stopped after its first step, as the beginning of every experiment.
void begin(TinyRun& run) {
  REQUIRE(run.go({"signal:name=TERM,phase=step,step=2"}).code == ExitCode::Stopped);
}

}  // namespace

TEST_CASE("killed at any file operation and resumed, a run ends with the same bytes") {
  const TinyData data;
  TinyRun whole(data, short_run);
  REQUIRE(whole.go().code == ExitCode::Success);
  const auto expected = files_in(whole.checkpoint(3));
  TinyRun prepared(data, short_run);
  begin(prepared);

  int operation = 1, killed = 0;
  for (;; ++operation) {
    INFO("killed before file operation " << operation);
    TinyRun run(data, short_run);
    fs::copy(prepared.path(), run.path(), fs::copy_options::recursive);
    const int code = train_in_child(run, {fmt::format("kill:file-operation={}", operation)});
    if (code == 0) break;
    REQUIRE(code == 137);
    ++killed;
    CHECK_FALSE(list_checkpoints(run.path() / "checkpoints").empty());
    run.records("step");  // every line is JSON, but for a torn last one, which a write(2) cannot leave here
    REQUIRE(run.go().code == ExitCode::Success);
    REQUIRE(files_in(run.checkpoint(3)) == expected);
    REQUIRE(run.curve() == whole.curve());
    REQUIRE(list_checkpoints(run.path() / "checkpoints").size() == 1);
    REQUIRE(fs::exists(run.path() / "checkpoints"));
    for (const auto& entry : fs::directory_iterator(run.path() / "checkpoints"))
      REQUIRE(entry.path().filename() == "step-00000003");  // nothing left over
  }
  // Two saves of three files with two writes a tensor, manifests, renames, removals and status files.
  CHECK(killed > 100);
}

TEST_CASE("a disk full at any write of a save leaves the run going and its previous checkpoint whole") {
  const TinyData data;
  TinyRun whole(data, short_run);
  whole.go();
  const auto expected = files_in(whole.checkpoint(3));
  TinyRun prepared(data, short_run);
  begin(prepared);
  int write = 1;
  for (;; ++write) {
    INFO("no space at write " << write);
    TinyRun run(data, short_run);
    fs::copy(prepared.path(), run.path(), fs::copy_options::recursive);
    const TrainResult result = run.go({fmt::format("enospc:write={}", write)});
    CHECK(result.step == 3);
    size_t alarms = 0;
    for (const std::string& text : run.events("checkpoint"))
      alarms += text.find("FAILED") != std::string::npos;
    if (alarms == 0) {
      CHECK(result.code == ExitCode::Success);
      break;
    }
    CHECK(alarms == 1);
    const auto entries = list_checkpoints(run.path() / "checkpoints");
    REQUIRE(entries.size() == 1);
    CHECK_NOTHROW(verify_checkpoint(entries[0].folder));
    if (result.code == ExitCode::Success) {  // the save of step 2 failed, that of step 3 did not
      CHECK(files_in(run.checkpoint(3)) == expected);
    } else {  // the last one failed: said so, and the run can be finished
      CHECK(result.code == ExitCode::Checkpoint);
      CHECK(entries[0].step == 2);
      CHECK(run.go().code == ExitCode::Success);
      CHECK(files_in(run.checkpoint(3)) == expected);
    }
    for (const auto& entry : fs::directory_iterator(run.path() / "checkpoints"))
      CHECK(entry.path().filename().string().find(".tmp-") == std::string::npos);
  }
  CHECK(write > 60);
}

TEST_CASE("with on_error exit a failed save ends the run, stopped with a failed save is 76") {
  const TinyData data;
  TinyRun strict(data, {"checkpoint.on_error=exit"});
  CHECK(error_of([&] { strict.go({"enospc:write=1"}); }).find("No space left") != std::string::npos);
  CHECK(strict.status()["state"] == "failed");
  for (const char* policy : {"continue", "exit"}) {
    INFO(policy);
    TinyRun unsaved(data, {"checkpoint.every=0", fmt::format("checkpoint.on_error={}", policy)});
    const TrainResult result =
        unsaved.go({"signal:name=TERM,phase=step,step=4", "enospc:write=1,count=100000"});
    CHECK(result.code == ExitCode::StoppedUnsaved);
    CHECK(unsaved.status()["exit_code"] == 76);
  }
}

TEST_CASE("a byte flipped in any region of any file is passed over loudly, and the run still ends the same") {
  const TinyData data;
  const std::vector<std::string> overrides = {"run.steps=4"};
  TinyRun whole(data, overrides);
  whole.go();
  const auto expected = files_in(whole.checkpoint(4));
  for (const auto& [file, bytes] : expected) {
    // Beginning (header length), header, the middle and the end of the payload.
    for (const size_t at : {size_t{0}, size_t{20}, bytes.size() / 2, bytes.size() - 1}) {
      INFO(file << ", byte " << at);
      TinyRun run(data, overrides);
      fs::copy(whole.path(), run.path(), fs::copy_options::recursive);
      std::string damaged = bytes;
      damaged[at] = static_cast<char>(damaged[at] ^ 1);
      put_bytes(run.checkpoint(4) / file, damaged);
      CHECK(error_of([&] { verify_checkpoint(run.checkpoint(4)); }).find(file) != std::string::npos);
      CHECK(run.go().code == ExitCode::Success);  // from step 2
      CHECK(run.events("resume")[0] == "from step-00000002");
      CHECK(files_in(run.checkpoint(4)) == expected);
    }
  }
  TinyRun run(data, overrides);  // two damaged: not without consent
  fs::copy(whole.path(), run.path(), fs::copy_options::recursive);
  for (const int64_t step : {2, 4}) fs::remove(run.checkpoint(step) / "moments.safetensors");
  CHECK(error_of([&] { run.go(); }).find("newest two") != std::string::npos);
}

TEST_CASE("a save still running at the next interval is not queued behind") {
  const TinyData data;
  TinyRun run(data, {"checkpoint.every=1", "checkpoint.asynchronous=true"});
  // The first save hangs until the log says that the second was passed over.
  std::atomic<bool> first{true}, released{false};
  set_file_hook([&](FileOperation operation, const fs::path& path) {
    const bool checkpoint = path.string().find("/checkpoints/") != std::string::npos;
    if (operation != FileOperation::Create || !checkpoint || !first.exchange(false)) return;
    for (int tries = 0; tries < 10000 && !released; ++tries) {  // a minute or so: only a failure takes it
      released = bytes_of(run.path() / metrics_file).find("still running") != std::string::npos;
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
  });
  const TrainResult result = run.go();
  set_file_hook({});
  CHECK(result.code == ExitCode::Success);
  CHECK(released);
  const std::vector<std::string> events = run.events("checkpoint");
  REQUIRE(events.size() == 8);  // every step's save is either made or passed over
  CHECK(events[0] == "step 2: not saved, the save before it is still running");
  CHECK(count_of(events.back(), "step-00000008 saved in") == 1);
  CHECK_NOTHROW(verify_checkpoint(run.checkpoint(1)));
  CHECK_FALSE(fs::exists(run.checkpoint(2)));
  CHECK_NOTHROW(verify_checkpoint(run.checkpoint(8)));
}

TEST_CASE("killed at any file operation of a save onto a checkpoint that is there, a run does not lose it") {
  const TinyData data;
  TinyRun whole(data, short_run);
  REQUIRE(whole.go().code == ExitCode::Success);
  const auto expected = files_in(whole.checkpoint(3));
  TinyRun prepared(data, short_run), other(data, short_run);
  begin(prepared);
  begin(other);
  for (const int exchange : {1, 0}) {
    int operation = 1;
    for (;; ++operation) {
      INFO("exchange " << exchange << ", killed before file operation " << operation);
      TinyRun run(data, short_run);
      fs::copy(prepared.path(), run.path(), fs::copy_options::recursive);
      // From step 1 of another folder, and stopped there: its own step 1 is saved anew.
      run.request.resume = {ResumePolicy::Kind::Path, other.checkpoint(1).string()};
      const int code = train_in_child(
          run, {fmt::format("kill:file-operation={}", operation),
                fmt::format("file-system:exchange={}", exchange), "signal:name=TERM,phase=startup"});
      run.request.resume = {ResumePolicy::Kind::Require, {}};
      REQUIRE(run.go().code == ExitCode::Success);
      REQUIRE(run.events("resume").at(0) == "from step-00000001");
      REQUIRE(files_in(run.checkpoint(3)) == expected);
      for (const auto& entry : fs::directory_iterator(run.path() / "checkpoints"))
        REQUIRE(entry.path().filename() == "step-00000003");  // nothing left over
      if (code == 75) break;
      REQUIRE(code == 137);
    }
    // Three files with two writes a tensor, the manifest, the exchange or the renames, the removal.
    CHECK(operation > 60);
  }
}

TEST_CASE("a process killed for good leaves a log of whole lines") {
  const TinyData data;
  TinyRun run(data);
  CHECK(train_in_child(run, {"kill:step=6"}) == 137);
  CHECK(run.records("step").size() == 5);
  CHECK(run.go().step == 8);
  CHECK(run.records("step").size() == 8);  // step 5 was logged twice, the first was dropped
  CHECK(run.events("resume")[0] == "from step-00000004");
}

TEST_CASE("a shard that shrinks under a run ends it with an error after a save") {
  const TinyData data;
  TinyRun whole(data, {"run.steps=60", "checkpoint.every=0"}),
      run(data, {"run.steps=60", "checkpoint.every=0"});
  whole.go();
  REQUIRE(run.go({"signal:name=TERM,phase=step,step=3"}).code == ExitCode::Stopped);
  const fs::path shard = data.folder.path / "train_000001.bin";
  const std::string bytes = bytes_of(shard);
  // Its size is what the header says at the start; the reader meets the missing part later.
  set_file_hook([&](FileOperation operation, const fs::path& path) {
    if (operation == FileOperation::Rename && path.filename() == status_file)
      fs::resize_file(shard, bytes.size() / 2);
  });
  run.request.inject.clear();
  const std::string error = error_of([&] { train(run.request); });
  set_file_hook({});
  put_bytes(shard, bytes);
  CHECK(error.find("train_000001.bin") != std::string::npos);
  CHECK(run.status()["exit_code"] == 3);
  CHECK(run.status()["step"].get<int64_t>() >= 2);
  CHECK(run.go().code == ExitCode::Success);
  CHECK(files_in(run.checkpoint(60)) == files_in(whole.checkpoint(60)));
}
