// The health monitor in a run: what it records, that it changes nothing, and that it goes on after a resume.
#include <cmath>

#include "tiny_run.h"

using namespace octet;
using namespace octet::testing;

namespace {

constexpr const char* tensors[] = {
    "block_output", "ffn_before_activation", "ffn_hidden", "ffn_output", "qkv_input", "qkv", "query", "key"};

}  // namespace

// (K2)
TEST_CASE("health records have both kurtoses of eight tensors a block, casts, blocks and weights") {
  const TinyData data;
  for (const char* recipe : {"fp8", "deepseek", "bf16"}) {
    TinyRun run(data, {fmt::format("precision.recipe={}", recipe), "model.layers=2"});
    REQUIRE(run.go().code == ExitCode::Success);
    const auto records = run.records("health");
    REQUIRE(records.size() == 4);
    for (const Json& record : records) {
      INFO(recipe << ", step " << record["step"]);
      CHECK(record["sites"].empty() == (recipe == std::string("bf16")));
      for (const Json& site : record["sites"]) {
        CHECK(number_of(site["snr_db"]) > 18);
        // With a scale a token or a block the site has none.
        REQUIRE(site.contains("utilisation") ==
                (recipe == std::string("fp8") &&
                 site["name"].get<std::string>().find("ffn.down.input") == std::string::npos));
        if (!site.contains("utilisation")) continue;
        CHECK(number_of(site["utilisation"]) > 0.2);
        CHECK(number_of(site["utilisation"]) < 4);  // of the step, with the last cast's scale
      }
      REQUIRE(record["activations"].size() == std::size(tensors));
      for (const char* tensor : tensors) {
        const Json& t = record["activations"][tensor];
        for (const char* field : {"kurtosis", "sequence_kurtosis", "mean", "rms", "max", "amax"})
          REQUIRE(t[field].size() == 2);
        for (size_t b = 0; b < 2; ++b) {
          CHECK(number_of(t["kurtosis"][b]) >= 1);
          CHECK(number_of(t["kurtosis"][b]) < 96);
          CHECK(number_of(t["sequence_kurtosis"][b]) >= 1);
          CHECK(number_of(t["rms"][b]) <= number_of(t["amax"][b]));
          CHECK(number_of(t["max"][b]) <= number_of(t["amax"][b]));
          CHECK(std::abs(number_of(t["mean"][b])) < number_of(t["rms"][b]));
        }
        CHECK(record["health/kurtosis/" + std::string(tensor)].is_number());
      }
      CHECK(number_of(record["activations"]["qkv"]["kurtosis"][0]) !=
            number_of(record["activations"]["qkv"]["sequence_kurtosis"][0]));
      for (const char* field :
           {"log_sum_exp", "cosine", "neuron", "neuron_amax", "channel", "channel_amax", "channel_median"})
        CHECK(record["blocks"][field].size() == 2);
      CHECK(record["weights"].size() == 9);
      for (const Json& weight : record["weights"]) {
        CHECK(number_of(weight["update_rms"]) > 0.1);  // what an update is, in units of what was expected
        CHECK(number_of(weight["update_rms"]) < 10);
      }
    }
    CHECK(number_of(records[0]["weights"][0]["growth"]) == 1.0);
    CHECK(number_of(records[3]["weights"][0]["growth"]) != 1.0);
  }
}

TEST_CASE("the monitor on or off: the same losses, weights and scales to the bit") {
  const TinyData data;
  for (const char* recipe : {"fp8", "bf16"}) {
    const std::string precision = fmt::format("precision.recipe={}", recipe);
    TinyRun on(data, {precision}), off(data, {precision, "health.activations=false"}),
        none(data, {precision, "health.every=0"}), other(data, {precision, "run.seed=8"});
    for (TinyRun* run : {&on, &off, &none, &other}) REQUIRE(run->go().code == ExitCode::Success);
    CHECK(on.curve() == off.curve());
    CHECK(on.curve() == none.curve());
    CHECK(on.curve() != other.curve());  // the control: curves can differ
    for (const char* file : {"masters.safetensors", "moments.safetensors"})
      CHECK(bytes_of(on.checkpoint(8) / file) == bytes_of(off.checkpoint(8) / file));
    const auto records = off.records("health");
    CHECK(records.size() == (recipe == std::string("fp8") ? 4u : 0u));
    for (const Json& record : records) CHECK_FALSE(record.contains("activations"));
    CHECK(none.records("health").empty());
  }
}

TEST_CASE("scales that follow counters move in every step, and records show a step's own shares") {
  const TinyData data;
  const std::vector<std::string> settings = {"precision.scaling=quantile",
                                             "precision.grad.scaling=following",
                                             "precision.smooth_swiglu=none",
                                             "precision.adaptive.above=0.02",
                                             "run.steps=24",
                                             "evaluation.every=3"};
  TinyRun run(data, settings), each(data, settings), rarely(data, settings);
  each.request.config.health.every = 1;
  rarely.request.config.health.every = 0;
  for (TinyRun* one : {&run, &each, &rarely}) REQUIRE(one->go().code == ExitCode::Success);
  // Looking changes nothing, in a step with and without statistics.
  for (const TinyRun* one : {&each, &rarely}) {
    CHECK(one->curve() == run.curve());
    CHECK(bytes_of(one->checkpoint(24) / "scale_table.safetensors") ==
          bytes_of(run.checkpoint(24) / "scale_table.safetensors"));
  }
  std::map<std::string, std::vector<double>> shares, scales;
  for (const Json& record : each.records("health"))
    for (const Json& site : record["sites"]) {
      shares[site["name"]].push_back(site["saturated"]);
      scales[site["name"]].push_back(site["scale"]);
    }
  std::vector<Json> sparse = run.records("health"), dense = each.records("health");
  REQUIRE(sparse.size() == 12);
  for (size_t i = 0; i < sparse.size(); ++i) CHECK(sparse[i]["sites"] == dense[2 * i + 1]["sites"]);
  int inputs = 0;
  for (const auto& [name, values] : shares) {
    INFO(name);
    REQUIRE(values.size() == 24);
    if (!name.ends_with(".input")) continue;
    ++inputs;
    for (size_t step = 3; step < 24; ++step) CHECK(scales[name][step] != scales[name][step - 1]);
    double mean = 0;
    for (size_t step = 12; step < 24; ++step) mean += values[step] / 12;
    CHECK(mean > 0.01);
    CHECK(mean < 0.04);
  }
  CHECK(inputs == 4);
}

TEST_CASE("after a resume the monitor remembers what it has seen, to the byte of the checkpoint") {
  const TinyData data;
  TinyRun whole(data), parts(data);
  REQUIRE(whole.go().code == ExitCode::Success);
  REQUIRE(parts.go({"signal:name=TERM,phase=step,step=4"}).code == ExitCode::Stopped);
  REQUIRE(parts.go().code == ExitCode::Success);
  const auto records = [](const TinyRun& run) {
    std::vector<std::string> lines;
    for (const Json& record : run.records("health")) lines.push_back(record.dump());
    return lines;
  };
  CHECK(records(parts) == records(whole));
  const Manifest manifest = read_manifest(whole.checkpoint(8));
  CHECK_FALSE(manifest.state.health.is_null());
  CHECK(manifest.state.health["weight_rms"].size() == 5);
  CHECK(read_manifest(parts.checkpoint(8)).state.health.dump() == manifest.state.health.dump());
}

TEST_CASE("a warning is an event with rule, block, number and sentence") {
  const TinyData data;
  // Logits beyond any reason: a learning rate that no model survives.
  TinyRun run(data, {"precision.recipe=bf16", "schedule.learning_rate=3", "schedule.warmup_steps=0",
                     "run.steps=30", "health.every=1", "optimizer.clip_norm=0", "checkpoint.every=0",
                     "evaluation.every=0", "health.stop_after_nonfinite=1000"});
  run.go();
  int warnings = 0;
  for (const Json& event : run.records("event")) {
    if (event["event"] != "warning") continue;
    ++warnings;
    CHECK(event["block"] == 0);
    CHECK(event["rule"].get<std::string>() != "");
    CHECK(event["subject"].get<std::string>().rfind("blocks.0.", 0) == 0);
    CHECK(event["message"].get<std::string>().find("block 0") != std::string::npos);
  }
  CHECK(warnings > 0);
  CHECK(warnings < 30);  // once each, not once a step
}
