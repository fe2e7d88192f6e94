// A run whose precision changes is, byte for byte, one that was stopped there and went on with another
// recipe; and stopped, killed and resumed anywhere it ends the same.
#include "training/segment.h"

#include "error_of.h"
#include "tensor/safetensors.h"
#include "training/child_run.h"
#include "training/loaded_model.h"

using namespace octet;
using namespace octet::testing;

namespace {

const std::string states = R"("moments": {"first": "e4m3", "second": "e5m2"})";
const std::string delayed = R"({"recipe": "fp8", "scaling": "delayed", "weight": {"scaling": "delayed"}})";
const std::string bf16 = R"({"recipe": "bf16", )" + states + "}";

std::string stage(int64_t from, const std::string& precision) {
  return fmt::format(R"({{"from": {}, "precision": {}}})", from, precision);
}
std::string schedule(const std::vector<std::string>& stages) {
  std::string list;
  for (const std::string& one : stages) list += (list.empty() ? "" : ", ") + one;
  return "precision_schedule=[" + list + "]";
}

// The tensor files of a checkpoint; the manifest holds the configuration, which differs.
std::map<std::string, std::string> tensors_in(const std::filesystem::path& checkpoint) {
  std::map<std::string, std::string> files = files_in(checkpoint);
  files.erase(manifest_file);
  return files;
}

// Stopped after step `from`, and gone on with another section "precision".
void stop_and_go_on(TinyRun& run, int64_t from, const std::string& precision) {
  const TrainResult first = run.go({fmt::format("signal:name=TERM,phase=step,step={}", from + 1)});
  REQUIRE(first.code == ExitCode::Stopped);
  REQUIRE(first.step == from);
  TinyRun other(run.data, {"precision=" + precision});
  run.request.config.precision = other.request.config.precision;
}

std::vector<double> fp8_shares(const TinyRun& run) {
  std::vector<double> shares;
  for (const Json& r : run.records("step")) shares.push_back(r["perf/fp8_flop_share"].get<double>());
  return shares;
}

}  // namespace

TEST_CASE("a stage begins as a run that was stopped there and resumed with its recipe, bit for bit") {
  const TinyData data;
  struct Change {
    std::string first, second;
  };
  const std::vector<Change> changes = {
      {delayed, bf16},
      {bf16, delayed},
      {R"({"recipe": "fp8", "weight_gradient": "bf16"})", R"({"recipe": "fp8", "attention": "fp8"})"},
      {R"({"recipe": "bf16", "simulate": "e5m2"})", R"({"recipe": "bf16", "simulate": "e8m3"})"}};
  for (const Change& change : changes)
    for (const int64_t from : {3, 4}) {  // without and with a checkpoint and an evaluation that are due
      INFO(change.first << " -> " << change.second << " after step " << from);
      TinyRun scheduled(data, {"precision=" + change.first, schedule({stage(from, change.second)})}),
          by_hand(data, {"precision=" + change.first});
      REQUIRE(scheduled.go().code == ExitCode::Success);
      stop_and_go_on(by_hand, from, change.second);
      REQUIRE(by_hand.go().code == ExitCode::Success);
      CHECK(scheduled.curve() == by_hand.curve());
      for (const int64_t step : {int64_t{2}, from, int64_t{4}, int64_t{6}, int64_t{8}})
        CHECK(tensors_in(scheduled.checkpoint(step)) == tensors_in(by_hand.checkpoint(step)));
      // The control: the recipe does change the numbers, from its first step on.
      TinyRun unchanged(data, {"precision=" + change.first});
      unchanged.go();
      CHECK(unchanged.curve()[static_cast<size_t>(from) - 1] ==
            scheduled.curve()[static_cast<size_t>(from) - 1]);
      CHECK(unchanged.curve()[static_cast<size_t>(from)] != scheduled.curve()[static_cast<size_t>(from)]);
      CHECK(masters_of(unchanged, 8) != masters_of(scheduled, 8));
    }
}

// Static scales are the model's, not a checkpoint's: there are none in a BF16 run's.
TEST_CASE("a run that goes from BF16 to static scales has them from its first step on") {
  const TinyData data;
  const std::string plain = R"({"recipe": "bf16"})", munit = R"({"recipe": "munit"})";
  TinyRun scheduled(data, unit_model({"precision=" + plain, schedule({stage(4, munit)})})),
      by_hand(data, unit_model({"precision=" + plain})), whole(data, unit_model({"precision=" + munit}));
  REQUIRE(scheduled.go().code == ExitCode::Success);
  REQUIRE(by_hand.go({"signal:name=TERM,phase=step,step=5"}).step == 4);
  by_hand.request.config.precision = whole.request.config.precision;
  REQUIRE(by_hand.go().code == ExitCode::Success);
  REQUIRE(whole.go().code == ExitCode::Success);
  CHECK(scheduled.curve() == by_hand.curve());
  CHECK(tensors_in(scheduled.checkpoint(8)) == tensors_in(by_hand.checkpoint(8)));
  const auto scales = [](const TinyRun& run, int64_t step) {
    const SafetensorsReader file(run.checkpoint(step) / "scale_table.safetensors", ExitCode::Internal);
    std::vector<float> values(file.find("scale").bytes / sizeof(float));
    file.read(file.find("scale"), values.data());
    return values;
  };
  CHECK(scales(scheduled, 6) == scales(whole, 2));
  CHECK(scales(scheduled, 6).size() == 12);
  for (const float scale : scales(scheduled, 6)) CHECK(scale > 0);
}

TEST_CASE("three stages: each runs what it promises, and the log says where it begins") {
  const TinyData data;
  TinyRun run(
      data,
      {"precision=" + bf16,
       schedule({stage(2, delayed), stage(5, R"({"recipe": "bf16", "simulate": "e8m3", )" + states + "}")})});
  REQUIRE(run.go().code == ExitCode::Success);
  const std::vector<double> shares = fp8_shares(run);
  REQUIRE(shares.size() == 8);
  TinyRun fp8(data, {"precision=" + delayed});
  fp8.go();
  for (size_t i = 0; i < 8; ++i) CHECK(shares[i] == (i >= 2 && i < 5 ? fp8_shares(fp8)[i] : 0.0));
  CHECK(shares[3] > 0.5);
  const std::vector<Json> starts = run.records("start");
  REQUIRE(starts.size() == 3);
  for (size_t i = 0; i < 3; ++i) {
    CHECK(starts[i]["stage"] == i + 1);
    CHECK(starts[i]["recipe"] == (i == 1 ? "fp8" : "bf16"));
  }
  CHECK(starts[2]["gemm_table"].dump().find("BF16 truncated to E8M3") != std::string::npos);
  CHECK(starts[0]["gemm_table"].dump().find("E8M3") == std::string::npos);
  std::vector<int64_t> steps;
  for (const Json& e : run.records("event"))
    if (e["event"] == "precision") steps.push_back(e["step"]);
  CHECK(steps == std::vector<int64_t>{3, 6});
  CHECK(run.events("precision")[1] == "stage 3 of 3, from step 6 on: bf16, operands reduced to E8M3");
  // Who loads a checkpoint's model gets the precision that the checkpoint is of.
  const auto loaded = [&](int64_t step) {
    return config_of(read_manifest(run.checkpoint(step)), run.checkpoint(step)).precision;
  };
  CHECK(loaded(2) == run.request.config.precision);
  CHECK(loaded(4) == run.request.config.precision_schedule[0].precision);
  CHECK(loaded(8) == run.request.config.precision_schedule[1].precision);
  CHECK(run.events("resume").empty());
  CHECK(run.status()["state"] == "finished");
}

TEST_CASE(
    "a run with a schedule that stops or is killed anywhere and goes on is the run that was never stopped") {
  const TinyData data;
  const std::vector<std::string> settings = {"precision=" + delayed,
                                             schedule({stage(3, bf16), stage(4, delayed), stage(6, bf16)})};
  TinyRun whole(data, settings);
  REQUIRE(whole.go().code == ExitCode::Success);
  const auto check = [&](TinyRun& parts) {
    CHECK(parts.go().code == ExitCode::Success);
    CHECK(parts.curve() == whole.curve());
    for (const int64_t step : {3, 4, 6, 8})
      CHECK(files_in(parts.checkpoint(step)) == files_in(whole.checkpoint(step)));
    CHECK(parts.events("precision") == whole.events("precision"));
    CHECK(parts.records("validation").size() == whole.records("validation").size());
    for (const std::string& text : parts.events("resume")) CHECK(text.find("changed") == std::string::npos);
  };
  for (int step = 1; step <= 8; ++step)
    for (const char* phase : {"step", "update", "save", "evaluation"}) {
      if (phase == std::string("save") && step != 2 && step != 3 && step != 4 && step != 6) continue;
      if (phase == std::string("evaluation") && step != 4) continue;
      INFO(phase << " of step " << step);
      TinyRun stopped(data, settings), killed(data, settings);
      CHECK(stopped.go({fmt::format("signal:name=TERM,phase={},step={}", phase, step)}).code ==
            ExitCode::Stopped);
      check(stopped);
      CHECK(train_in_child(killed, {fmt::format("kill:phase={},step={}", phase, step)}) == 137);
      check(killed);
    }
}

TEST_CASE(
    "a change of precision is saved though checkpoint.every is 0, and ends the run where it cannot be") {
  const TinyData data;
  const std::vector<std::string> stages = {"precision=" + delayed, schedule({stage(3, bf16)})};
  TinyRun often(data, stages), never(data, stages), full(data, stages);
  often.go();
  never.request.config.checkpoint.every = full.request.config.checkpoint.every = 0;
  REQUIRE(never.go().code == ExitCode::Success);
  CHECK(list_checkpoints(never.path() / "checkpoints").size() == 2);
  CHECK(tensors_in(never.checkpoint(3)) == tensors_in(often.checkpoint(3)));
  CHECK(tensors_in(never.checkpoint(8)) == tensors_in(often.checkpoint(8)));
  const TrainResult result = full.go({"enospc:write=1,count=1000"});
  CHECK(result.code == ExitCode::Checkpoint);
  CHECK(result.step == 3);
  CHECK(result.reason.find("the precision changes after this step, and the save failed") == 0);
  CHECK(full.go().code == ExitCode::Success);
  CHECK(full.curve() == often.curve());
}

TEST_CASE("a changed schedule is recorded, and what has been trained is not claimed to have been otherwise") {
  const TinyData data;
  TinyRun moved(data, {"precision=" + delayed, schedule({stage(6, bf16)})});
  CHECK(moved.go({"signal:name=TERM,phase=step,step=5"}).step == 4);
  TinyRun planned(data, {"precision=" + delayed, schedule({stage(4, bf16)})});
  moved.request.config.precision_schedule = planned.request.config.precision_schedule;
  CHECK(moved.go().code == ExitCode::Success);
  REQUIRE(moved.events("resume").size() == 2);
  CHECK((moved.events("resume")[0] + moved.events("resume")[1]).find("/precision_schedule: ") !=
        std::string::npos);
  planned.go();  // the checkpoint of step 4 was made in FP8 in both
  CHECK(moved.curve() == planned.curve());
  CHECK(tensors_in(moved.checkpoint(8)) == tensors_in(planned.checkpoint(8)));
}

TEST_CASE("the segment of a step follows from the schedule and from what fell back") {
  const TinyData data;
  const TinyRun run(data, {"precision=" + delayed, schedule({stage(3, bf16), stage(6, delayed)})});
  const RunConfig& config = run.request.config;
  const std::vector<Fallback> fallbacks = {
      {2, 0, BlockLinear::Down, "blocks.0.ffn.down", "saturated", 1, 1},
      {6, 0, BlockLinear::Qkv, "blocks.0.attention.qkv", "kurtosis", 1, 1}};
  struct Expected {
    int64_t step, begin, end;
    size_t stage, overrides;
  };
  for (const Expected& e : std::vector<Expected>{{0, 0, 2, 0, 0},
                                                 {2, 0, 2, 0, 0},
                                                 {3, 2, 3, 0, 1},
                                                 {4, 3, 6, 1, 1},
                                                 {6, 3, 6, 1, 1},
                                                 {7, 6, 8, 2, 2},
                                                 {8, 6, 8, 2, 2}}) {
    const Segment s = segment_of_step(config, fallbacks, e.step);
    INFO(e.step);
    CHECK(s.begin == e.begin);
    CHECK(s.end == e.end);
    CHECK(s.stage == e.stage);
    CHECK(s.recipe.overrides.size() == e.overrides);
  }
  const Recipe last = segment_of_step(config, fallbacks, 8).recipe;
  CHECK_FALSE(formats_of(last, 1, 0, BlockLinear::Down).float8());
  CHECK_FALSE(formats_of(last, 1, 0, BlockLinear::Qkv).float8());
  CHECK(formats_of(last, 1, 0, BlockLinear::Up).float8());
}
