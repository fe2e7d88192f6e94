// A linear that passes a limit runs in BF16 from the next step on, and stays there; nothing else changes.
#include "training/fallback.h"

#include <algorithm>
#include <limits>

#include "numerics/recipes.h"
#include "training/tiny_run.h"

using namespace octet;
using namespace octet::testing;

namespace {

// Two blocks of FP8 with delayed scales; a neuron of both grows tenfold in every step from the third on, so
// that the scale of what enters the down projection is always that of a smaller tensor.
const std::vector<std::string> outliers = {"model.layers=2", "precision.input.scaling=delayed",
                                           "precision.smooth_swiglu=none", "health.every=1",
                                           "schedule.learning_rate=1e-6"};
const std::vector<std::string> growing = {"align:step=3,hidden=100", "align:step=4,hidden=1000",
                                          "align:step=5,hidden=10000", "align:step=6,hidden=100000"};

std::vector<std::string> with(std::vector<std::string> settings, const std::vector<std::string>& more) {
  settings.insert(settings.end(), more.begin(), more.end());
  return settings;
}

// The saturated share of a site at a step; negative: there is no such site.
double saturated(const TinyRun& run, int64_t step, const std::string& site) {
  for (const Json& record : run.records("health"))
    if (record["step"] == step)
      for (const Json& one : record["sites"])
        if (one["name"] == site) return one["saturated"];
  return -1;
}

std::vector<Json> fallbacks_of(const TinyRun& run) {
  std::vector<Json> found;
  for (const Json& e : run.records("event"))
    if (e["event"] == "fallback") found.push_back(e);
  return found;
}

std::vector<std::string> warnings_of(const TinyRun& run, const std::string& rule) {
  std::vector<std::string> found;
  for (const Json& e : run.records("event"))
    if (e["event"] == "warning" && e["rule"] == rule) found.push_back(e["message"]);
  return found;
}

double share(const TinyRun& run, size_t step) { return run.records("step")[step - 1]["perf/fp8_flop_share"]; }

const char* down = "blocks.0.ffn.down";
const std::string down_input = "blocks.0.ffn.down.input";

}  // namespace

TEST_CASE(
    "an outlier that outgrows its delayed scale sends that linear to BF16, and without a limit it saturates "
    "on") {
  const TinyData data;
  TinyRun control(data, outliers), falls(data, with(outliers, {"precision.fallback.saturated=0.005"})),
      high(data, with(outliers, {"precision.fallback.saturated=0.5"})),
      calm(data, with(outliers, {"precision.fallback.saturated=0.005"}));
  REQUIRE(control.go(growing).code == ExitCode::Success);
  for (int64_t step = 3; step <= 6; ++step) CHECK(saturated(control, step, down_input) > 0.001);
  CHECK(fallbacks_of(control).empty());

  const TrainResult result = falls.go(growing);
  REQUIRE(result.code == ExitCode::Success);
  const std::vector<Json> events = fallbacks_of(falls);
  INFO(Json(events).dump());
  REQUIRE(events.size() == 2);  // the down projections of both blocks, in the first step with an outlier
  CHECK(events[0]["linear"] == down);
  CHECK(events[1]["linear"] == "blocks.1.ffn.down");
  CHECK(events[0]["step"] == 3);
  CHECK(events[0]["reason"] == "saturated");
  CHECK(events[0]["value"].get<double>() == saturated(falls, 3, down_input));
  CHECK(events[0]["limit"] == 0.005);
  REQUIRE(result.fallbacks.size() == 2);
  CHECK(result.fallbacks[0].find("blocks.0.ffn.down runs in BF16 from step 4 on") == 0);
  CHECK(falls.curve()[2] == control.curve()[2]);  // the step that shows it is as without
  CHECK(falls.curve()[3] != control.curve()[3]);
  for (int64_t step = 4; step <= 8; ++step) CHECK(saturated(falls, step, down_input) < 0);
  CHECK(saturated(falls, 4, "blocks.0.ffn.gate_up.input") >= 0);
  // Counted: of the blocks' products those of the down projections, 48 x 32 of their weights, are no longer
  // FP8.
  const double before = share(falls, 3), after = share(falls, 4);
  const int64_t of_block = 32 * 64 + 32 * 32 + 2 * 48 * 32 + 48 * 32;
  CHECK(after / before == Approx(static_cast<double>(of_block - 48 * 32) / of_block).epsilon(1e-12));
  CHECK(falls.records("start").size() == 2);

  // Limits that are not passed change nothing.
  REQUIRE(high.go(growing).code == ExitCode::Success);
  CHECK(high.curve() == control.curve());
  CHECK(masters_of(high, 8) == masters_of(control, 8));
  TinyRun plain(data, outliers);
  plain.go();
  REQUIRE(calm.go().code == ExitCode::Success);
  CHECK(fallbacks_of(calm).empty());
  CHECK(calm.curve() == plain.curve());
}

TEST_CASE("a run with a fallback that stops anywhere and goes on is the run that was never stopped") {
  const TinyData data;
  const std::vector<std::string> settings = with(outliers, {"precision.fallback.saturated=0.005"});
  TinyRun whole(data, settings);
  REQUIRE(whole.go(growing).code == ExitCode::Success);
  for (int stop = 1; stop <= 8; ++stop) {
    INFO("stopped before step " << stop);
    TinyRun parts(data, settings);
    std::vector<std::string> faults = growing;
    faults.push_back(fmt::format("signal:name=TERM,phase=step,step={}", stop));
    const TrainResult first = parts.go(faults);
    CHECK(first.code == ExitCode::Stopped);
    CHECK(first.fallbacks.size() == (stop > 3 ? 2 : 0));
    CHECK(parts.go(growing).code == ExitCode::Success);
    CHECK(parts.curve() == whole.curve());
    CHECK(parts.records("health") == whole.records("health"));
    CHECK(fallbacks_of(parts).size() == 2);
    for (const int64_t step : {2, 3, 4, 6, 8})
      CHECK(files_in(parts.checkpoint(step)) == files_in(whole.checkpoint(step)));
    for (const std::string& text : parts.events("resume")) CHECK(text.find("changed") == std::string::npos);
  }
  CHECK(read_manifest(whole.checkpoint(8)).state.fallbacks.size() == 2);
  // It is the run that was stopped there and resumed with an override by hand.
  TinyRun by_hand(data, outliers);
  std::vector<std::string> faults = growing;
  faults.push_back("signal:name=TERM,phase=step,step=4");
  REQUIRE(by_hand.go(faults).step == 3);
  TinyRun other(data, with(outliers, {R"(precision.overrides=[{"blocks": "first:1", "linears": ["down"],
      "recipe": "bf16"}, {"blocks": [1, 1], "linears": ["down"], "recipe": "bf16"}])"}));
  by_hand.request.config.precision = other.request.config.precision;
  REQUIRE(by_hand.go(growing).code == ExitCode::Success);
  CHECK(by_hand.curve() == whole.curve());
  CHECK(masters_of(by_hand, 8) == masters_of(whole, 8));
}

TEST_CASE("as many linears fall back as may, then the run goes on, and says so once") {
  const TinyData data;
  TinyRun run(data, with(outliers, {"precision.fallback.saturated=0.005", "precision.fallback.at_most=1"}));
  REQUIRE(run.go(growing).code == ExitCode::Success);
  REQUIRE(fallbacks_of(run).size() == 1);
  CHECK(saturated(run, 3, "blocks.1.ffn.down.input") > 0.005);
  for (int64_t step = 4; step <= 8; ++step)
    CHECK(saturated(run, step, "blocks.1.ffn.down.input") >= 0);  // in FP8
  const std::vector<std::string> warnings = warnings_of(run, "fallback");
  REQUIRE(warnings.size() == 1);
  CHECK(warnings[0] ==
        "blocks.1.ffn.down passed precision.fallback.saturated and stays in FP8: 1 linear in BF16 already "
        "(at_most)");
}

TEST_CASE("a dropped step sends the first linear that saw a value that is not finite to BF16") {
  const TinyData data;
  const std::vector<std::string> settings = {"model.layers=2",
                                             "precision.smooth_swiglu=none",
                                             "precision.fallback.nonfinite=true",
                                             "precision.fallback.at_most=1",
                                             "health.every=0",
                                             "health.stop_after_nonfinite=3"};
  TinyRun overflow(data, settings);
  CHECK(overflow.go({"align:step=3,scale=1e25"}).code == ExitCode::Numerics);  // BF16 cannot hold it either
  const std::vector<Json> events = fallbacks_of(overflow);
  REQUIRE(events.size() == 1);
  CHECK(events[0]["linear"] == down);
  CHECK(events[0]["reason"] == "nonfinite");
  CHECK(events[0]["step"] == 3);
  CHECK(warnings_of(overflow, "fallback").size() == 1);
  // The control: a gradient that is spoilt elsewhere drops the step, and no linear is to blame.
  TinyRun spoilt(data, settings), plain(data, settings);
  CHECK(spoilt.go({"nan:step=3"}).code == ExitCode::Success);
  CHECK(spoilt.events("skipped").size() == 1);
  CHECK(fallbacks_of(spoilt).empty());
}

TEST_CASE("a linear whose input's kurtosis passes the limit falls back, by that reason") {
  const TinyData data;
  const std::vector<std::string> settings = {"health.every=2"};
  TinyRun measured(data, settings), none(data, with(settings, {"precision.fallback.kurtosis=1000"}));
  measured.go();
  none.go();
  CHECK(none.curve() == measured.curve());
  const Json activations = measured.records("health").at(0)["activations"];
  const double hidden = activations["ffn_hidden"]["kurtosis"][0],
               input = activations["qkv_input"]["kurtosis"][0];
  REQUIRE(hidden > input + 0.1);
  TinyRun falls(data, with(settings, {fmt::format("precision.fallback.kurtosis={}", (hidden + input) / 2)}));
  REQUIRE(falls.go().code == ExitCode::Success);
  const std::vector<Json> events = fallbacks_of(falls);
  REQUIRE(events.size() >= 1);
  CHECK(events[0]["step"] == 2);
  CHECK(events[0]["linear"] == down);
  CHECK(events[0]["reason"] == "kurtosis");
  CHECK(events[0]["value"].get<double>() == Approx(hidden).epsilon(1e-4));
}

TEST_CASE("what a step shows decides alone: the first value that is not finite, forward before backward") {
  TransformerSpec spec;
  spec.layers = 2;
  Recipe recipe = make_recipe("fp8");
  std::vector<SiteInfo> sites;
  for (int block = 0; block < 2; ++block)
    for (const char* linear : {"attention.qkv", "attention.out", "ffn.gate_up", "ffn.down"})
      for (const char* role : {"input", "weight", "grad"})
        sites.push_back({fmt::format("blocks.{}.{}.{}", block, linear, role), block, {}});
  const auto first = [&](const std::vector<std::string>& broken, bool dropped = true) {
    std::vector<float> amax;
    for (const SiteInfo& site : sites) {
      const bool is = std::count(broken.begin(), broken.end(), site.name) > 0;
      amax.push_back(is ? std::numeric_limits<float>::infinity() : 1);
    }
    const std::vector<Fallback> found = linears_past_limits(
        {.nonfinite = true},
        {.step = 5, .spec = spec, .recipe = recipe, .dropped = dropped, .sites = sites, .amax = amax});
    REQUIRE(found.size() <= 1);
    return found.empty() ? std::string() : found[0].name;
  };
  CHECK(first({}) == "");
  CHECK(first({"blocks.1.ffn.down.input"}, false) == "");
  CHECK(first({"blocks.1.ffn.down.input", "blocks.1.attention.out.input", "blocks.0.attention.qkv.grad"}) ==
        "blocks.1.attention.out");
  CHECK(first({"blocks.0.attention.qkv.grad", "blocks.1.ffn.gate_up.grad", "blocks.0.ffn.down.grad"}) ==
        "blocks.1.ffn.gate_up");
  CHECK(first({"blocks.1.ffn.gate_up.weight"}) == "blocks.1.ffn.gate_up");
  recipe.first_blocks_bf16 = 1;  // what is in BF16 already is nobody's
  CHECK(first({"blocks.0.ffn.down.input", "blocks.1.attention.qkv.input"}) == "blocks.1.attention.qkv");
}
