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
  SyntheticRun secret = bf16();
  secret.fp8_share = 0.5;  // says BF16, ran FP8
  CHECK_THROWS_AS(require_comparable(synthetic_log(secret), baseline), Error);
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
