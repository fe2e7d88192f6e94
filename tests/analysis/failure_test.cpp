#include "analysis/failure.h"

#include <cmath>
#include <functional>
#include <limits>

#include "base/error.h"
#include "catch.h"

using namespace octet;

namespace {

constexpr double none = std::numeric_limits<double>::quiet_NaN();

RunHistory run_of(int64_t steps, const std::function<double(int64_t)>& loss) {
  RunHistory run;
  for (int64_t step = 1; step <= steps; ++step) {
    StepRecord record;
    record.step = step;
    record.loss = loss(step);
    run.steps.push_back(record);
  }
  return run;
}
// A calm curve whose deviations from its average are about 0.02.
double calm(int64_t step) { return 2.0 + (step % 2 == 0 ? 0.02 : -0.02); }

}  // namespace

TEST_CASE("a run with a loss that is not finite has failed, and a calm one has not") {
  CHECK_FALSE(outcome_of(run_of(400, calm), 400, none).failed);
  for (const double broken : {none, std::numeric_limits<double>::infinity()}) {
    const RunOutcome outcome =
        outcome_of(run_of(400, [&](int64_t step) { return step == 200 ? broken : calm(step); }), 400, none);
    CHECK(outcome.failed);
    CHECK(outcome.why == "the loss of step 200 is not finite");
    CHECK(outcome.final_loss == Approx(2).margin(0.03));  // of the others
  }
  RunHistory stopped = run_of(100, calm);
  stopped.status = RunStatus{"failed", static_cast<int>(ExitCode::Numerics), "5 steps in a row", 100};
  CHECK(outcome_of(stopped, 400, none).failed);
  stopped.status->exit_code = static_cast<int>(ExitCode::Data);  // a disk that was gone says nothing
  CHECK_FALSE(outcome_of(stopped, 400, none).failed);
}

TEST_CASE("a run that ends more than a quarter above the best BF16 run has failed") {
  const RunHistory run = run_of(400, calm);
  CHECK(outcome_of(run, 400, 1.7).failed);
  CHECK_FALSE(outcome_of(run, 400, 1.8).failed);
  CHECK_FALSE(outcome_of(run, 400, none).failed);  // nobody to be above of
}

TEST_CASE("an average that rises by more than a half has failed, unless it is back within 5 % of the steps") {
  // The average loses 1 % of a jump a step: after one of height 1.2 for n steps it is 1.2 * 0.99^n below it.
  const auto jump = [](int64_t from, int64_t count) {
    return [=](int64_t step) { return step >= from && step < from + count ? 3.2 : 2.0; };
  };
  CHECK(outcome_of(run_of(2000, jump(500, 1500)), 2000, none).failed);  // for good
  // 60 steps lift it to 2 + 1.2 * (1 - 0.99^60) = 2.543, above 2.5 for 8 steps of the 100 that are allowed.
  CHECK_FALSE(outcome_of(run_of(2000, jump(500, 60)), 2000, none).failed);
  CHECK(outcome_of(run_of(2000, jump(500, 60)), 100, none).failed);        // where 5 % are 5 steps
  CHECK_FALSE(outcome_of(run_of(2000, jump(500, 40)), 100, none).failed);  // 2.397: not above a half
  // A descent is no rise, however steep.
  CHECK_FALSE(
      outcome_of(run_of(2000, [](int64_t s) { return 10 - 0.004 * static_cast<double>(s); }), 2000, none)
          .failed);
}

TEST_CASE("a spike is a step more than five average deviations above the average before it") {
  const auto with = [](double above) {
    return run_of(400, [=](int64_t step) { return step == 300 ? calm(step) + above : calm(step); });
  };
  // Even steps are 0.02 above the average of 2, whose deviations are 0.02: 0.08 more are five of them.
  CHECK(outcome_of(with(0.07), 400, none).spikes.empty());
  const RunOutcome spiked = outcome_of(with(0.09), 400, none);
  CHECK(spiked.spikes == std::vector<int64_t>{300});
  CHECK(spiked.judged == 380);
  CHECK(spiked.spikes_per_thousand() == Approx(1000.0 / 380));
  // The first records only teach the averages.
  CHECK(outcome_of(run_of(20, [](int64_t step) { return step == 20 ? 9.0 : calm(step); }), 20, none)
            .spikes.empty());
}

TEST_CASE("a log that passes steps over has nearly the averages of one that does not") {
  const auto slope = [](int64_t step) { return 4.0 - 0.002 * static_cast<double>(step); };
  RunHistory sparse = run_of(1000, slope);
  std::erase_if(sparse.steps, [](const StepRecord& s) { return s.step % 10 != 0; });
  // The average lags behind a slope by decay / (1 - decay) = 99 steps; every tenth value stands for the ten
  // before it: half of those, at most, of difference.
  CHECK(outcome_of(sparse, 1000, none).final_loss ==
        Approx(outcome_of(run_of(1000, slope), 1000, none).final_loss).margin(0.002 * 5));
  CHECK(outcome_of(run_of(1000, slope), 1000, none).final_loss == Approx(2.0 + 0.002 * 99).margin(0.002));
}
