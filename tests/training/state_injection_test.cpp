// Weights that are changed once, before a step: exactly, also in a run that stops and goes on.
#include "training/state_injection.h"

#include "catch.h"
#include "error_of.h"
#include "training/tiny_run.h"

using namespace octet;
using namespace octet::testing;

namespace {

const std::vector<std::string> align = {"align:step=3,hidden=5000"};

// Row `row` of a matrix in a checkpoint.
std::vector<float> row_of(const TinyRun& run, int64_t step, const std::string& name, int64_t row) {
  const SafetensorsReader reader(run.checkpoint(step) / "masters.safetensors", ExitCode::Checkpoint);
  const SafetensorsEntry& entry = reader.find(name);
  std::vector<float> values(static_cast<size_t>(entry.shape.elements()));
  reader.read(entry, values.data());
  const int64_t width = entry.shape[1];
  return {values.begin() + row * width, values.begin() + (row + 1) * width};
}

double amax_of(const TinyRun& run, int64_t step, const std::string& site) {
  for (const Json& record : run.records("health"))
    if (record["step"] == step)
      for (const Json& one : record["sites"])
        if (one["name"] == site) return one["amax"];
  FAIL("no statistics of " << site << " in step " << step);
  return 0;
}

}  // namespace

TEST_CASE("an aligned neuron's product reaches what was asked for in that very step, and not before") {
  const TinyData data;
  for (const char* recipe : {"bf16", "fp8"}) {
    const std::vector<std::string> overrides = {std::string("precision.recipe=") + recipe, "model.layers=2",
                                                "health.every=1", "schedule.learning_rate=1e-30",
                                                "schedule.warmup_steps=0"};
    TinyRun plain(data, overrides), injected(data, overrides);
    plain.go();
    const TrainResult result = injected.go(align);
    CHECK(result.step == 8);
    INFO(recipe);
    // Until then it is the other run; the learning rate leaves the weights as they were made.
    CHECK(masters_of(plain, 2) == masters_of(injected, 2));
    CHECK(plain.curve()[1] == injected.curve()[1]);
    CHECK(plain.curve()[2] != injected.curve()[2]);
    for (int block = 0; block < 2; ++block) {
      const std::string name = fmt::format("blocks.{}.ffn.gate_up.weight", block);
      const std::vector<float> before = row_of(injected, 2, name, 17), gate = row_of(injected, 4, name, 17),
                               linear = row_of(injected, 4, name, 48 + 17);
      CHECK(gate == linear);
      CHECK(gate[0] / before[0] == Approx(gate[5] / before[5]).epsilon(1e-6));
      CHECK(row_of(injected, 4, name, 16) == row_of(plain, 4, name, 16));
      if (std::string(recipe) == "bf16") continue;
      const std::string site = fmt::format("blocks.{}.ffn.down.input", block);
      CHECK(amax_of(injected, 2, site) < 50);
      // Two roundings to BF16 of the preactivation's factors, squared, and one of the product; the FP8
      // weight's own rounding moves z by 2^-4 at most, h by twice that.
      CHECK(amax_of(injected, 3, site) >= 5000 * (1 - 2 * 0x1p-4));
    }
    const std::vector<std::string> events = injected.events("inject");
    REQUIRE(events.size() == 1);
    CHECK(events[0].find(
              "align:step=3,hidden=5000: gate and linear weights of 1 neuron in each of 2 blocks") == 0);
  }
}

TEST_CASE(
    "an aligned neuron with a contribution has its column of the down projection divided, and no other") {
  const TinyData data;
  const std::vector<std::string> overrides = {"model.layers=2", "schedule.learning_rate=1e-30",
                                              "schedule.warmup_steps=0"};
  TinyRun plain(data, overrides), injected(data, overrides);
  plain.go();
  injected.go({"align:step=3,hidden=4096,contribution=2"});
  for (const char* name : {"blocks.0.ffn.down.weight", "blocks.1.ffn.down.weight"})
    for (const int64_t row : {int64_t{0}, int64_t{5}}) {
      std::vector<float> before = row_of(plain, 4, name, row);
      const std::vector<float> after = row_of(injected, 4, name, row);
      CHECK(before != after);
      before[17] *= 2.0f / 4096;
      CHECK(before == after);
    }
}

TEST_CASE("a run with an injection that stops anywhere and goes on is the run that was never stopped") {
  const TinyData data;
  const std::vector<std::vector<std::string>> recipes = {
      {"precision.recipe=bf16"},
      {"precision.recipe=fp8", "precision.scaling=delayed", "precision.weight.scaling=delayed",
       "precision.grad.rounding=stochastic", "health.every=1"},
      {"memory.offload=optimizer", "batch.recompute=block"}};
  for (const auto& recipe : recipes) {
    TinyRun whole(data, recipe);
    REQUIRE(whole.go(align).code == ExitCode::Success);
    for (int stop = 1; stop <= 5; ++stop) {
      INFO(recipe.back() << ", stopped in step " << stop);
      TinyRun parts(data, recipe);
      std::vector<std::string> faults = align;
      faults.push_back(fmt::format("signal:name=TERM,phase=step,step={}", stop));
      const TrainResult first = parts.go(faults);
      CHECK(first.code == ExitCode::Stopped);
      CHECK(first.step == stop - 1);
      CHECK(parts.go(align).code == ExitCode::Success);
      CHECK(parts.curve() == whole.curve());
      CHECK(parts.records("health") == whole.records("health"));
      for (int step = 2; step <= 8; step += 2)
        CHECK(files_in(parts.checkpoint(step)) == files_in(whole.checkpoint(step)));
      CHECK(parts.events("inject").size() == 1);
    }
  }
  // The control: going on without it is another run.
  TinyRun whole(data), without(data);
  whole.go(align);
  without.go({"signal:name=TERM,phase=step,step=2"});
  without.go();
  CHECK(without.curve() != whole.curve());
  CHECK(whole.records("start").back()["inject"] == Json(align));
  CHECK(without.records("start").back()["inject"] == Json::array());
}

TEST_CASE("a row of a matrix, and so a token's embedding, can be multiplied") {
  const TinyData data;
  const std::vector<std::string> still = {"schedule.learning_rate=1e-30", "schedule.warmup_steps=0"};
  TinyRun plain(data, still), injected(data, still);
  plain.go();
  injected.go({"row:step=3,parameter=embedding.weight,row=5,scale=-64"});
  const std::vector<float> before = row_of(plain, 4, "embedding.weight", 5),
                           after = row_of(injected, 4, "embedding.weight", 5);
  for (size_t i = 0; i < before.size(); ++i) CHECK(after[i] == -64 * before[i]);
  CHECK(row_of(plain, 4, "embedding.weight", 4) == row_of(injected, 4, "embedding.weight", 4));
  CHECK(plain.curve()[2] != injected.curve()[2]);
}

TEST_CASE("an injection that is wrong is refused before there is a folder") {
  const TinyData data;
  const auto complaint = [&](const std::string& fault) {
    TinyRun run(data);
    const std::string text = octet::error_of([&] { run.go({fault}); }).what();
    CHECK_FALSE(std::filesystem::exists(run.path()));
    return text;
  };
  const auto says = [&](const std::string& fault, const std::string& part) {
    const std::string text = complaint(fault);
    INFO(text);
    CHECK(text.find(part) != std::string::npos);
  };
  says("align", "step=K is missing");
  says("align:step=9", "the run ends at step 8");
  says("align:step=0", "whole number from 1");
  says("align:step=3,hidden=x", "a number from 1");
  says("align:step=3,scale=0", "not zero");
  says("align:step=3,scale=2,hidden=10", "give one");
  says("align:step=3,rank=1", "'align' takes step, neuron");
  says("align:step=3,neuron=47,neurons=2", "neurons 47 to 48 of model.ffn_width 48");
  says("row:step=3,row=1,scale=2", "needs parameter");
  says("row:step=3,parameter=embeding.weight,row=1,scale=2", "did you mean embedding.weight?");
  says("row:step=3,parameter=final_norm.gain,row=0,scale=2", "is a vector");
  says("row:step=3,parameter=embedding.weight,row=64,scale=2", "has 64 rows");
  CHECK_FALSE(parse_state_injection("nan:step=3"));
  CHECK(parse_state_injection("align:step=3,scale=1e2")->scale == 100);
}
