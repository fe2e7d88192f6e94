#include <cmath>
#include <limits>

#include "analysis/comparison.h"
#include "analysis/synthetic_run.h"
#include "base/error.h"
#include "catch.h"

using namespace octet;
using namespace octet::testing;

namespace {
SyntheticRun fp8(std::function<double(int64_t)> gap, int64_t steps = 400) {
  SyntheticRun run;
  run.name = "fp8";
  run.steps = steps;
  run.gap = std::move(gap);
  run.noise_seed = 2;
  run.fp8_share = 0.9;
  run.input_format = "e4m3";
  return run;
}
SyntheticRun bf16(int64_t steps = 400) {
  SyntheticRun run;
  run.steps = steps;
  return run;
}
Comparison compare_with_gap(std::function<double(int64_t)> gap, int64_t steps = 400) {
  return compare_runs(synthetic_log(bf16(steps)), synthetic_log(fp8(std::move(gap), steps)), NoiseBand{});
}
}  // namespace

// The shared loss ends near 1.5, so 1 % is 0.015 nats; the gap's own noise of 0.002 gives the 80-step window
// an error near 0.0005.
TEST_CASE("the verdict on synthetic twins is the one their gap was made for") {
  CHECK(compare_with_gap([](int64_t) { return 0.0; }).verdict == Verdict::Equivalent);
  CHECK(compare_with_gap([](int64_t) { return 0.0015; }).verdict ==
        Verdict::Equivalent);  // +0.1 %, inside the 0.25 % anchor
  CHECK(compare_with_gap([](int64_t) { return -0.05; }).verdict ==
        Verdict::Equivalent);  // better is not worse
  CHECK(compare_with_gap([](int64_t) { return 0.0075; }).verdict == Verdict::SmallGap);  // +0.5 %
  CHECK(compare_with_gap([](int64_t) { return 0.0225; }).verdict == Verdict::Degraded);  // +1.5 %
  CHECK(compare_with_gap([](int64_t s) {
          return s < 200 ? 0.0 : 0.0003 * static_cast<double>(s - 200);
        }).verdict == Verdict::Diverging);
  CHECK(compare_with_gap([](int64_t s) { return s < 300 ? 0.0 : 0.4; }).verdict == Verdict::Diverged);
  CHECK(compare_with_gap([](int64_t s) {
          return s < 399 ? 0.0 : std::numeric_limits<double>::quiet_NaN();
        }).verdict == Verdict::Diverged);
  CHECK(compare_with_gap([](int64_t s) {
          return s < 300 ? 0.0 : 0.01 * static_cast<double>(s - 300);
        }).verdict == Verdict::Diverged);
}

TEST_CASE("a variant beside a baseline that diverged too is not said to have diverged for its format") {
  SyntheticRun broken = bf16();
  broken.gap = [](int64_t s) { return s < 300 ? 0.0 : 0.01 * static_cast<double>(s - 300); };
  const RunHistory variant = synthetic_log(fp8(broken.gap));
  const Comparison both = compare_runs(synthetic_log(broken), variant, NoiseBand{});
  CHECK(both.verdict == Verdict::Inconclusive);
  CHECK(both.sentence.find("the baseline is none") != std::string::npos);
  CHECK(both.sentence.find("; and fp8's loss ends") != std::string::npos);
  CHECK(compare_runs(synthetic_log(bf16()), variant, NoiseBand{}).verdict == Verdict::Diverged);
}

TEST_CASE("a gap inside the band that is surely above zero is called so") {
  const auto says_worse = [](double gap) {
    return compare_with_gap([=](int64_t) { return gap; }).sentence.find("measurably worse") !=
           std::string::npos;
  };
  CHECK(says_worse(0.0015));
  CHECK_FALSE(says_worse(0));
}

TEST_CASE("too few steps decide nothing and the report says how many more are needed") {
  const Comparison c = compare_with_gap([](int64_t) { return 0.0; }, 30);
  CHECK(c.verdict == Verdict::Inconclusive);
  CHECK(c.more_steps_needed == 20);
  CHECK(exit_code_of(c.verdict) == 10);
}

TEST_CASE("a gap drowned in noise is inconclusive, not equivalent") {
  SyntheticRun noisy = fp8([](int64_t) { return 0.004; });
  noisy.noise = 0.1;
  CHECK(compare_runs(synthetic_log(bf16()), synthetic_log(noisy), NoiseBand{}).verdict ==
        Verdict::Inconclusive);
}

TEST_CASE("seeds of the baseline replace the anchor as the band") {
  SyntheticRun other = bf16();
  other.gap = [](int64_t) { return 0.03; };  // 2 % between seeds
  const NoiseBand band = noise_band({synthetic_log(bf16()), synthetic_log(other)});
  CHECK(band.relative == Approx(0.02).epsilon(0.1));
  const RunHistory variant = synthetic_log(fp8([](int64_t) { return 0.0225; }));
  CHECK(compare_runs(synthetic_log(bf16()), variant, band).verdict == Verdict::Equivalent);
  CHECK(compare_runs(synthetic_log(bf16()), variant, NoiseBand{}).verdict ==
        Verdict::Degraded);  // negative control
  CHECK(noise_band({synthetic_log(bf16())}).relative == 0.0025);
}

TEST_CASE("a variant is not equivalent to a baseline that diverged") {
  SyntheticRun rising = bf16();
  rising.gap = [](int64_t s) { return s > 300 ? 2.0 : 0.0; };
  const RunHistory variant = synthetic_log(fp8([](int64_t) { return 0.0; }));
  const Comparison c = compare_runs(synthetic_log(rising), variant, NoiseBand{});
  CHECK(c.verdict == Verdict::Inconclusive);
  CHECK(c.sentence.find("baseline") != std::string::npos);
  CHECK(compare_runs(synthetic_log(bf16()), variant, NoiseBand{}).verdict == Verdict::Equivalent);
}

TEST_CASE("runs that are not twins are refused") {
  const RunHistory baseline = synthetic_log(bf16());
  CHECK_NOTHROW(require_comparable(baseline, synthetic_log(fp8([](int64_t) { return 0.0; }))));
  SyntheticRun other_init = fp8([](int64_t) { return 0.0; });
  other_init.init_hash = "00000000000000bb";
  CHECK_THROWS_AS(require_comparable(baseline, synthetic_log(other_init)), Error);
  SyntheticRun other_batches = fp8([](int64_t) { return 0.0; });
  other_batches.batch_salt = "x";
  CHECK_THROWS_AS(require_comparable(baseline, synthetic_log(other_batches)), Error);
  SyntheticRun mislabelled = fp8([](int64_t) { return 0.0; });
  mislabelled.fp8_share = 0;  // says FP8, ran BF16
  CHECK_THROWS_AS(require_comparable(baseline, synthetic_log(mislabelled)), Error);
  RunHistory changed = synthetic_log(fp8([](int64_t) { return 0.0; }));
  changed.steps[10].fp8_flop_share = 0;  // BF16 until it was resumed with another recipe
  CHECK_THROWS_AS(require_comparable(baseline, changed), Error);
  SyntheticRun secret = bf16();
  secret.fp8_share = 0.5;  // says BF16, ran FP8
  CHECK_THROWS_AS(require_comparable(synthetic_log(secret), baseline), Error);
}

TEST_CASE("a verdict names the linears that fell back, and the proof of precision ends with the first") {
  const RunHistory baseline = synthetic_log(bf16());
  RunHistory fallen = synthetic_log(fp8([](int64_t) { return 0.0; }));
  CHECK(compare_runs(baseline, fallen, NoiseBand{}).sentence.find("fell back") == std::string::npos);
  fallen.events.push_back({100, "fallback", "blocks.0.ffn.down runs in BF16"});
  fallen.events.push_back({150, "fallback", "blocks.1.ffn.down runs in BF16"});
  CHECK(compare_runs(baseline, fallen, NoiseBand{})
            .sentence.find("in fp8 2 linears fell back to BF16, the first after step 100") !=
        std::string::npos);
  fallen.steps[300].fp8_flop_share = 0;  // nothing is claimed of it any more
  CHECK_NOTHROW(require_comparable(baseline, fallen));
  fallen.steps[10].fp8_flop_share = 0;
  CHECK_THROWS_AS(require_comparable(baseline, fallen), Error);
}

TEST_CASE("a variant that learns half as fast needs twice the tokens") {
  // Loss depends on the step only through exp(-step / tau): stretch it.
  const auto clean = [](double step) { return 1.5 + 4.0 * std::exp(-step / 80.0); };
  SyntheticRun base = bf16(),
               slow = fp8([&](int64_t s) { return clean(static_cast<double>(s) / 2) - shared_loss(s); });
  base.gap = [&](int64_t s) { return clean(static_cast<double>(s)) - shared_loss(s); };
  base.noise = slow.noise = 0;
  const Comparison c = compare_runs(synthetic_log(base), synthetic_log(slow), NoiseBand{});
  CHECK(c.token_penalty == Approx(2.0).epsilon(0.1));  // averaging lags by 20 steps of 400 at most
  CHECK(c.speed_up == Approx(0.9).epsilon(1e-6));
  CHECK(c.net_benefit == Approx(c.speed_up / c.token_penalty));
}

TEST_CASE("the windows of a comparison are steps, however many of them are logged") {
  // The gap opens at step 1800 of 2000: a window of 400 steps sees half of it, whatever log.every is.
  const auto opens = [](int64_t s) { return s <= 1800 ? 0.0 : 0.04; };
  const auto compare_every = [&](int64_t baseline_every, int64_t variant_every) {
    SyntheticRun base = bf16(2000), variant = fp8(opens, 2000);
    base.log_every = baseline_every;
    variant.log_every = variant_every;
    base.noise = variant.noise = 0;
    return compare_runs(synthetic_log(base), synthetic_log(variant), NoiseBand{});
  };
  for (const auto& [baseline, variant] : {std::pair<int64_t, int64_t>{1, 1}, {10, 10}, {1, 10}, {10, 1}}) {
    INFO("log.every " << baseline << " and " << variant);
    const Comparison c = compare_every(baseline, variant);
    CHECK(c.window == 400);
    CHECK(c.records == (baseline * variant == 1 ? 400u : 40u));
    CHECK(c.final_gap.value == Approx(0.02));
    CHECK(c.sentence.find("the last 400 steps") != std::string::npos);
  }
  // 30 records of 300 steps are steps enough, but their window holds six.
  SyntheticRun base = bf16(300), variant = fp8([](int64_t) { return 0.0; }, 300);
  base.log_every = variant.log_every = 10;
  const Comparison few = compare_runs(synthetic_log(base), synthetic_log(variant), NoiseBand{});
  CHECK(few.verdict == Verdict::Inconclusive);
  CHECK(few.sentence.find("6 common records") != std::string::npos);
  CHECK(few.more_steps_needed == 700);  // 1000 steps: a window of 200, 20 records
  CHECK(few.sentence.find("log.every") != std::string::npos);
  // The noise band's windows, too: seeds that differ in log.every only do not differ.
  SyntheticRun sparse = bf16(2000);
  sparse.log_every = 5;
  sparse.gap = [](int64_t s) { return 1.55 - shared_loss(s); };
  SyntheticRun dense = sparse;
  dense.log_every = 1;
  sparse.noise = dense.noise = 0;
  CHECK(noise_band({synthetic_log(sparse), synthetic_log(dense)}).relative == Approx(0).margin(1e-12));
}

TEST_CASE("what two runs differ in beside the recipe is named, and what it spoils is not stated") {
  using nlohmann::json;
  const RunHistory baseline = [] {
    SyntheticRun run = bf16();
    run.config = {{"schedule", {{"learning_rate", 1e-3}}}, {"log", {{"every", 1}}}};
    return synthetic_log(run);
  }();
  const auto against = [&](const json& config, const std::string& data = "train+validation") {
    SyntheticRun run = fp8([](int64_t) { return 0.0; });
    run.config = config;
    run.data_fingerprint = data;
    const RunHistory variant = synthetic_log(run);
    require_comparable(baseline, variant);
    return compare_runs(baseline, variant, NoiseBand{});
  };
  // The recipe, names, paths and logging are no differences.
  const Comparison twins =
      against({{"schedule", {{"learning_rate", 1e-3}}},
               {"log", {{"every", 7}}},
               {"run", {{"name", "other"}, {"threads", 3}}},
               {"data", {{"validation", {{{"files", {"elsewhere"}}, {"weight", 2.0}}}}}}});
  CHECK(twins.also_differ.empty());
  CHECK(twins.sentence.find("also differ") == std::string::npos);
  CHECK(std::isfinite(twins.validation_gap));

  const Comparison rate = against({{"schedule", {{"learning_rate", 2e-3}}}});
  CHECK(rate.verdict == Verdict::Equivalent);
  CHECK(rate.sentence.find("these runs also differ in: /schedule/learning_rate (0.001 and 0.002)") !=
        std::string::npos);
  CHECK(std::isfinite(rate.validation_gap));

  const Comparison data = against(json::object(), "train+other");
  CHECK(data.sentence.find("validation data (validation and other)") != std::string::npos);
  CHECK(std::isnan(data.validation_gap));
  CHECK(std::isnan(against({{"evaluation", {{"batches", 3}}}}).validation_gap));

  const Comparison horizon = against({{"run", {{"steps", 777}}}});  // of a cosine, the default
  CHECK(horizon.verdict == Verdict::Inconclusive);
  CHECK(horizon.sentence.find("/run/steps") != std::string::npos);
  CHECK(against({{"schedule", {{"warmup_steps", 40}}}}).verdict == Verdict::Inconclusive);
}

TEST_CASE("a run without records is named, not compared") {
  RunHistory empty = synthetic_log(bf16());
  empty.start = Json();
  empty.steps.clear();
  empty.name = "nothing-yet";
  try {
    require_comparable(synthetic_log(bf16()), empty);
    FAIL("compared");
  } catch (const Error& error) {
    CHECK(error.code() == ExitCode::Data);
    CHECK(std::string(error.what()).find("nothing-yet: no records") != std::string::npos);
  }
}
