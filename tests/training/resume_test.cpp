// A run stopped anywhere and resumed is the run that was never stopped, byte for byte.
#include <cmath>

#include "training/tiny_run.h"

using namespace octet;
using namespace octet::testing;

namespace {
const std::vector<std::vector<std::string>> recipes = {
    {"precision.recipe=bf16"},
    {"precision.recipe=fp8"},
    {"precision.recipe=deepseek"},
    {"precision.recipe=fp8", "precision.scaling=delayed", "precision.weight.scaling=delayed",
     "precision.grad.rounding=stochastic"},
    {"precision.recipe=fp8", "precision.scaling=quantile", "precision.weight.scaling=quantile",
     "precision.grad.scaling=following", "precision.smooth_swiglu=token", "precision.adaptive.above=0.01"},
    {"precision.recipe=fp8", "precision.attention=fp8"},
    {"precision.recipe=fp8", "precision.scaling=delayed", "precision.attention=fp8"},
};
}

TEST_CASE("a run stopped before any step and resumed gives the same losses and the same checkpoint bytes") {
  const TinyData data;
  for (const auto& recipe : recipes) {
    TinyRun whole(data, recipe);
    const TrainResult result = whole.go();
    REQUIRE(result.code == ExitCode::Success);
    CHECK(result.step == 8);
    CHECK(std::filesystem::exists(whole.checkpoint(8)));
    for (int stop_before = 1; stop_before <= 8; ++stop_before) {
      INFO(recipe.back() << ", stopped before step " << stop_before);
      TinyRun parts(data, recipe);
      const TrainResult first = parts.go({fmt::format("signal:name=TERM,phase=step,step={}", stop_before)});
      CHECK(first.code == ExitCode::Stopped);
      CHECK(first.step == stop_before - 1);
      CHECK(parts.status()["state"] == "stopped");
      CHECK(parts.status()["exit_code"] == 75);
      const TrainResult second = parts.go();
      CHECK(second.code == ExitCode::Success);
      CHECK(second.final_loss == result.final_loss);
      CHECK(parts.curve() == whole.curve());
      for (int step = 2; step <= 8; step += 2)
        CHECK(files_in(parts.checkpoint(step)) == files_in(whole.checkpoint(step)));
      CHECK(parts.status()["state"] == "finished");
    }
  }
}

TEST_CASE("weights rounded stochastically resume exactly, with new random numbers every step") {
  const TinyData data;
  TinyRun whole(data), parts(data), nearest(data);
  for (TinyRun* run : {&whole, &parts}) run->request.config.precision.weight.rounding = Rounding::Stochastic;
  whole.go();
  nearest.go();
  CHECK(whole.curve() != nearest.curve());
  for (const int stop : {2, 5, 7})
    CHECK(parts.go({fmt::format("signal:name=TERM,phase=step,step={}", stop)}).code == ExitCode::Stopped);
  CHECK(parts.go().code == ExitCode::Success);
  CHECK(parts.curve() == whole.curve());
  for (int step = 2; step <= 8; step += 2)
    CHECK(files_in(parts.checkpoint(step)) == files_in(whole.checkpoint(step)));
}

TEST_CASE("the comparison above can fail: another seed gives other losses and other bytes") {
  const TinyData data;
  TinyRun one(data), two(data, {"run.seed=8"});
  one.go();
  two.go();
  CHECK(one.curve() != two.curve());
  CHECK(masters_of(one, 8) != masters_of(two, 8));
}

TEST_CASE("the bytes do not depend on asynchronous saving, recomputation or what is logged") {
  const TinyData data;
  TinyRun plain(data), background(data, {"checkpoint.asynchronous=true"}),
      quiet(data, {"log.every=5", "health.every=0"});
  TinyRun recomputed(data, {"batch.recompute=block"});
  plain.go();
  background.go();
  quiet.go();
  recomputed.go();
  CHECK(masters_of(recomputed, 8) == masters_of(plain, 8));
  CHECK(masters_of(background, 8) == masters_of(plain, 8));
  CHECK(masters_of(quiet, 8) == masters_of(plain, 8));
  CHECK(bytes_of(background.checkpoint(8) / "moments.safetensors") ==
        bytes_of(plain.checkpoint(8) / "moments.safetensors"));
}

TEST_CASE("a scale table that is gone is an error, unless the casts changed") {
  const TinyData data;
  TinyRun run(data);
  run.go({"signal:name=TERM,phase=step,step=4"});
  Manifest manifest = read_manifest(run.checkpoint(3));
  std::erase_if(manifest.files, [](const auto& file) { return file.name == "scale_table.safetensors"; });
  std::filesystem::remove(run.checkpoint(3) / "scale_table.safetensors");
  put_bytes(run.checkpoint(3) / manifest_file, to_text(manifest));
  CHECK(error_of([&] { run.go(); }).find("scale_table.safetensors") != std::string::npos);
  run.request.config.precision.grad.rounding = Rounding::Stochastic;
  CHECK(run.go().code == ExitCode::Success);
}

TEST_CASE("scales are kept when a manifest does not spell out what is the default") {
  const TinyData data;
  TinyRun whole(data, {"precision.scaling=delayed"}), parts(data, {"precision.scaling=delayed"}),
      changed(data, {"precision.scaling=delayed"});
  whole.go();
  for (TinyRun* run : {&parts, &changed}) {
    run->go({"signal:name=TERM,phase=step,step=4"});
    Manifest manifest = read_manifest(run->checkpoint(3));
    manifest.config["precision"].erase("first_blocks_bf16");
    if (run == &changed) manifest.config["precision"]["grad"]["rounding"] = "stochastic";
    put_bytes(run->checkpoint(3) / manifest_file, to_text(manifest));
    run->go();
  }
  CHECK(masters_of(parts, 8) == masters_of(whole, 8));
  CHECK_FALSE(masters_of(changed, 8) == masters_of(whole, 8));  // its scales started afresh
}

TEST_CASE("a finished run is not trained again") {
  const TinyData data;
  TinyRun run(data);
  const TrainResult first = run.go();
  const TrainResult again = run.go();
  CHECK(again.code == ExitCode::Success);
  CHECK(again.final_loss == first.final_loss);
  CHECK(again.validation_loss == first.validation_loss);
  CHECK(run.records("step").size() == 8);
  run.request.config.run.steps = 10;  // a longer horizon is a recorded change
  const TrainResult longer = run.go();
  CHECK(longer.step == 10);
  CHECK(run.events("resume").size() >= 2);
}

TEST_CASE("the loss goes down, and twins see the same batches from the same weights") {
  const TinyData data;
  TinyRun fp8(data, {"run.steps=40", "evaluation.every=20"}),
      bf16(data, {"run.steps=40", "evaluation.every=20", "precision.recipe=bf16"}),
      attention(data, {"run.steps=40", "evaluation.every=20", "precision.attention=fp8"});
  for (TinyRun* run : {&fp8, &bf16, &attention}) {
    run->go();
    const auto steps = run->records("step");
    REQUIRE(steps.size() == 40);
    // ln 64 = 4.16 before training; a uniform guess among the four likely next ids is ln 4 = 1.39.
    CHECK(steps.front()["train/loss"].get<double>() > 3.9);
    CHECK(steps.back()["train/loss"].get<double>() < 3.5);
    const auto validation = run->records("validation");
    REQUIRE(validation.size() == 2);
    CHECK(validation[1]["validation/loss"].get<double>() < validation[0]["validation/loss"].get<double>());
  }
  CHECK(fp8.records("start")[0]["init_hash"] == bf16.records("start")[0]["init_hash"]);
  for (size_t i = 0; i < 40; ++i)
    CHECK(fp8.records("step")[i]["data/batch_hash"] == bf16.records("step")[i]["data/batch_hash"]);
  CHECK(fp8.records("step")[0]["train/loss"] != bf16.records("step")[0]["train/loss"]);
  CHECK(fp8.records("step")[0]["train/loss"] != attention.records("step")[0]["train/loss"]);
}

TEST_CASE("a mixture logs the loss of each source, and resumes exactly") {
  const TinyData data;
  data.write("other", 81, 1000, 3);
  const std::string mixture = fmt::format(
      R"(data.train=[{{"name": "a", "files": ["{}"], "weight": 3}}, {{"name": "b", "files": ["{}"], "weight": 1}}])",
      data.glob("train"), data.glob("other"));
  TinyRun whole(data, {mixture}), parts(data, {mixture});
  whole.go();
  for (const Json& r : whole.records("step")) {
    // Four windows a step: the mean is the sources' means, weighted by their windows.
    const double mean = r["train/loss"].get<double>();
    const double a = number_of(r.value("train/loss/a", Json("NaN"))),
                 b = number_of(r.value("train/loss/b", Json("NaN")));
    bool explained = false;
    for (int windows = 0; windows <= 4; ++windows) {
      const double mixed = (windows > 0 ? windows * b : 0) / 4 + (windows < 4 ? (4 - windows) * a : 0) / 4;
      explained = explained || std::abs(mixed - mean) < 1e-12 * 64;
    }
    CHECK(explained);
  }
  CHECK(parts.go({"signal:name=TERM,phase=step,step=4"}).code == ExitCode::Stopped);
  CHECK(parts.go().code == ExitCode::Success);
  CHECK(parts.curve() == whole.curve());
  CHECK(files_in(parts.checkpoint(8)) == files_in(whole.checkpoint(8)));
}

TEST_CASE("a run resumes exactly with masters and moments in every format, resident or offloaded") {
  const TinyData data;
  std::map<std::string, std::string> curves;
  for (const char* master :
       {"fp32", "bf16_remainder", "bf16_kahan", "bf16_stochastic", "bf16_nearest", "fp16_scaled"}) {
    INFO(master);
    const std::string key = std::string("precision.master=") + master;
    const std::string moments = std::string("precision.moments.") +
                                (master[0] == 'f' ? "second=fp16" : "second=e4m3"),
                      expansion = std::string("precision.moments.range_expansion=") +
                                  (master[0] == 'f' ? "false" : "true");
    const std::vector<std::string> keys = {key, moments, expansion, "optimizer.update_clipping=true"};
    TinyRun whole(data, keys), parts(data, keys), offloaded(data, keys), interpreted(data, keys);
    whole.go();
    CHECK(parts.go({"signal:name=TERM,phase=step,step=4"}).code == ExitCode::Stopped);
    CHECK(parts.go().code == ExitCode::Success);
    CHECK(parts.curve() == whole.curve());
    CHECK(files_in(parts.checkpoint(8)) == files_in(whole.checkpoint(8)));
    offloaded.request.config.memory.offload = Offload::Optimizer;
    interpreted.request.config.memory.offload = Offload::Optimizer;
    interpreted.request.device = "interpreter";
    for (TinyRun* run : {&offloaded, &interpreted}) {
      CHECK(run->go({"signal:name=TERM,phase=step,step=6"}).code == ExitCode::Stopped);
      CHECK(run->go().code == ExitCode::Success);
      CHECK(run->curve() == whole.curve());
      CHECK(masters_of(*run, 8) == masters_of(whole, 8));
    }
    curves[master] = whole.curve().back();
    // All begin with the same weights, before these are rounded to what the optimizer stores.
    TinyRun plain(data, {"run.steps=1", "schedule.warmup_steps=0"});
    plain.go();
    CHECK(plain.records("start")[0]["init_hash"] == whole.records("start")[0]["init_hash"]);
    // What is stored cannot be read as another format.
    TinyRun& other = parts;
    other.request.config.run.steps = 10;
    other.request.config.precision.master =
        master == std::string("fp32") ? MasterFormat::BF16Kahan : MasterFormat::FP32;
    CHECK_FALSE(error_of([&] { other.go(); }).empty());
  }
  CHECK(curves["bf16_kahan"] != curves["bf16_nearest"]);
  CHECK(curves["bf16_stochastic"] != curves["bf16_nearest"]);
}
