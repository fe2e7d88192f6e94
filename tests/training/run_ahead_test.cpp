// A device that works on its own: the trainer enqueues a step before it looks at the one before, and replays
// recordings of forward and backward. On the kernel interpreter, which runs what was enqueued as late as a
// GPU may, every number must be the CPU's.
#include <set>

#include "device/gpu/interpreted/interpreted_backend.h"
#include "training/tiny_run.h"

using namespace octet;
using namespace octet::testing;

namespace {

// What a run wrote that does not depend on time or machine.
struct Story {
  std::vector<std::string> steps, health, validation, skipped, spikes;
  bool operator==(const Story&) const = default;
};

Story story_of(const TinyRun& run) {
  const std::set<std::string> passing = {"time", "data/stalled_seconds", "perf/tokens_per_second",
                                         "perf/step_seconds", "memory/bytes"};
  const auto lines = [&](const char* kind) {
    std::vector<std::string> all;
    for (const Json& record : run.records(kind)) {
      Json kept;
      for (const auto& [key, value] : record.items())
        if (!passing.count(key)) kept[key] = value;
      all.push_back(kept.dump());
    }
    return all;
  };
  return {lines("step"), lines("health"), lines("validation"), run.events("skipped"), run.events("spike")};
}

void check_like_cpu(const TinyData& data, const std::vector<std::string>& overrides,
                    const std::vector<std::string>& inject = {}) {
  TinyRun cpu(data, overrides);
  const TrainResult expected = cpu.go(inject);
  for (const char* graphs : {"true", "false"}) {
    std::vector<std::string> with_graphs = overrides;
    with_graphs.push_back(std::string("run.cuda_graphs=") + graphs);
    TinyRun run(data, with_graphs);
    run.request.device = "interpreter";
    const TrainResult found = run.go(inject);
    INFO("graphs " << graphs);
    CHECK(found.code == expected.code);
    CHECK(found.step == expected.step);
    CHECK(story_of(run) == story_of(cpu));
    const std::vector<CheckpointEntry> saved = list_checkpoints(cpu.path() / "checkpoints");
    REQUIRE(list_checkpoints(run.path() / "checkpoints").size() == saved.size());
    for (const CheckpointEntry& entry : saved) {
      // manifest.json holds the configuration, which says cuda_graphs.
      auto theirs = files_in(cpu.checkpoint(entry.step)), ours = files_in(run.checkpoint(entry.step));
      theirs.erase("manifest.json");
      ours.erase("manifest.json");
      CHECK((ours == theirs));  // in parentheses: not to be printed
    }
  }
}

}  // namespace

TEST_CASE("a run ahead of its results is the run that waits for each, in every recipe") {
  const TinyData data;
  for (const char* recipe : {"bf16", "fp8"}) {
    INFO(recipe);
    check_like_cpu(data, {fmt::format("precision.recipe={}", recipe), "checkpoint.every=0",
                          "evaluation.every=0", "health.every=3"});
  }
  check_like_cpu(data, {"precision.scaling=delayed", "precision.grad.rounding=stochastic"});
  check_like_cpu(data, {"precision.scaling=quantile", "precision.grad.scaling=following", "run.steps=4"});
  check_like_cpu(data, {"precision.attention=fp8"});
  check_like_cpu(data, unit_model({"precision.recipe=munit", "run.steps=4"}));
  // Nothing but the key of stochastic rounding differs between its steps.
  check_like_cpu(data, {"precision.grad.rounding=stochastic", "health.every=0", "checkpoint.every=0",
                        "evaluation.every=0"});
}

TEST_CASE("a step that is not finite is skipped on the device, and told one step later") {
  const TinyData data;
  check_like_cpu(data, {"checkpoint.every=0", "evaluation.every=0", "precision.scaling=delayed"},
                 {"nan:step=3,count=2"});
  check_like_cpu(data, {"checkpoint.every=0", "evaluation.every=0", "health.stop_after_nonfinite=2"},
                 {"nan:step=3,count=2"});
}

TEST_CASE("spike policies that decide before the update wait for the loss") {
  const TinyData data;
  for (const char* policy : {"log", "skip", "rollback"}) {
    INFO(policy);
    // A window of 8 with its least 8 values: the spike comes late in a longer run.
    check_like_cpu(data,
                   {fmt::format("health.on_spike={}", policy), "health.spike_window=8", "run.steps=12",
                    "evaluation.every=0", "checkpoint.every=3"},
                   {"spike:step=11,loss=50"});
  }
}

TEST_CASE("a signal while a step is in flight saves the step that was finished") {
  const TinyData data;
  TinyRun whole(data, {"checkpoint.every=0", "evaluation.every=0"});
  whole.request.device = "interpreter";
  whole.go();
  TinyRun run(data, {"checkpoint.every=0", "evaluation.every=0"});
  run.request.device = "interpreter";
  const TrainResult stopped = run.go({"signal:name=TERM,phase=step,step=5"});
  CHECK(stopped.code == ExitCode::Stopped);
  CHECK(stopped.step == 4);
  CHECK_NOTHROW(verify_checkpoint(run.checkpoint(4)));
  CHECK(run.records("step").size() == 4);
  CHECK(run.go({"signal:name=USR1,phase=step,step=6"}).code == ExitCode::Success);
  CHECK_NOTHROW(verify_checkpoint(run.checkpoint(6)));
  CHECK((files_in(run.checkpoint(8)) == files_in(whole.checkpoint(8))));
}

TEST_CASE("mixtures read their sources' losses one step later") {
  const TinyData data;
  data.write("other", 145, 145, 9);
  TinyRun cpu(data), ahead(data);
  for (TinyRun* run : {&cpu, &ahead}) {
    run->request.config.data.train = {{"first", {data.glob("train")}, 1},
                                      {"second", {data.glob("other")}, 1}};
    run->request.config.checkpoint.every = 0;
    run->request.config.evaluation.every = 0;
  }
  ahead.request.device = "interpreter";
  cpu.go();
  ahead.go();
  CHECK(story_of(ahead) == story_of(cpu));
  CHECK(story_of(cpu).steps[0].find("train/loss/second") != std::string::npos);
}

TEST_CASE("what is enqueued has not happened yet, a recording repeats its arguments, not its function") {
  const std::unique_ptr<Device> device = make_interpreted_device({.threads = 1});
  auto* values = static_cast<float*>(device->allocate(2 * sizeof(float)));
  const Tensor first{values, DType::F32, {1}}, second{values + 1, DType::F32, {1}};
  device->fill(first, 3.0f);
  CHECK(values[0] == 0.0f);  // the negative control of every test here: the device is late
  const uint64_t place = device->mark();
  device->fill(second, 4.0f);
  device->wait(place);
  CHECK(values[0] == 3.0f);
  CHECK(values[1] == 0.0f);  // after the place, so nobody has waited for it

  Replay replay;
  int calls = 0;
  float value = 1.0f;
  const auto work = [&] {
    ++calls;
    device->fill(first, value);
  };
  for (int i = 0; i < 4; ++i) {
    value = static_cast<float>(i);
    device->replay(replay, 7, work);
    device->synchronize();
    // Enqueued as it is, then recorded, then played: a changed argument under an unchanged signature shows.
    CHECK(values[0] == static_cast<float>(std::min(i, 1)));
  }
  CHECK(calls == 2);
  device->replay(replay, 8, work);
  device->synchronize();
  CHECK(values[0] == 3.0f);
  CHECK(calls == 3);
  device->replay(replay, 7, work);  // still there
  device->synchronize();
  CHECK(values[0] == 1.0f);
  CHECK(calls == 3);
  device->free(values);
}

TEST_CASE("two kinds of work that take turns are both recorded, work that is new every time is not") {
  const auto device = make_interpreted_device({.deterministic = true});
  void* const memory = device->allocate(sizeof(float));
  const Tensor one{memory, DType::F32, {1}};
  Replay turns, fresh;
  int called = 0;
  const auto work = [&] {
    ++called;
    device->fill(one, 1.0f);
  };
  for (uint64_t i = 0; i < 8; ++i) device->replay(turns, i % 2, work);
  CHECK(called == 4);  // each as it is, then to be recorded
  called = 0;
  for (uint64_t i = 0; i < 8; ++i) device->replay(fresh, i, work);
  CHECK(called == 8);
  CHECK(fresh.recordings.empty());
  device->synchronize();
  device->free(memory);
}
