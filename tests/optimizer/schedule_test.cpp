#include "optimizer/schedule.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "catch.h"

using namespace octet;

namespace {

ScheduleOptions schedule(ScheduleName name, double final_fraction = 0.1) {
  ScheduleOptions options;
  options.name = name;
  options.learning_rate = 2e-3;
  options.warmup_steps = 10;
  options.final_fraction = final_fraction;
  options.cooldown_fraction = 0.2;
  return options;
}

// A few roundings of double arithmetic: 8 half-ulps.
Approx near(double value) { return Approx(value).epsilon(8 * 0x1p-53).margin(0); }

struct Row {
  int64_t step;
  double fraction;  // of the peak
};

}  // namespace

TEST_CASE("learning rates follow the table") {
  constexpr int64_t total = 111;  // 10 of warmup, then 101: progress is a whole percentage
  const double half = std::sqrt(0.5);

  SECTION("warmup, the same for all") {
    for (ScheduleName name :
         {ScheduleName::Constant, ScheduleName::Linear, ScheduleName::Cosine, ScheduleName::WSD})
      for (const Row& row : {Row{0, 0.1}, Row{4, 0.5}, Row{9, 1.0}, Row{10, 1.0}})
        CHECK(learning_rate(schedule(name), row.step, total) == near(2e-3 * row.fraction));
  }
  SECTION("constant") {
    for (int64_t step : {10, 50, 110})
      CHECK(learning_rate(schedule(ScheduleName::Constant), step, total) == 2e-3);
  }
  SECTION("linear: warmup subtracted") {
    for (const Row& row : {Row{10, 1.0}, Row{35, 0.775}, Row{60, 0.55}, Row{110, 0.1}})
      CHECK(learning_rate(schedule(ScheduleName::Linear), row.step, total) == near(2e-3 * row.fraction));
  }
  SECTION("cosine: warmup subtracted") {
    for (const Row& row : {Row{10, 1.0}, Row{35, 0.1 + 0.9 * (1 + half) / 2}, Row{60, 0.55},
                           Row{85, 0.1 + 0.9 * (1 - half) / 2}, Row{110, 0.1}})
      CHECK(learning_rate(schedule(ScheduleName::Cosine), row.step, total) == near(2e-3 * row.fraction));
  }
  SECTION("WSD: the last fifth falls as 1 - sqrt") {
    // 111 * 0.2 rounds to 22 steps: 89..110.
    for (const Row& row : {Row{11, 1.0}, Row{88, 1.0}, Row{89, 0.1 + 0.9 * (1 - std::sqrt(1.0 / 22))},
                           Row{99, 0.1 + 0.9 * (1 - std::sqrt(0.5))}, Row{110, 0.1}})
      CHECK(learning_rate(schedule(ScheduleName::WSD), row.step, total) == near(2e-3 * row.fraction));
  }
}

TEST_CASE("the last step is exactly at the final fraction, also when that is zero") {
  for (ScheduleName name : {ScheduleName::Linear, ScheduleName::Cosine, ScheduleName::WSD})
    for (int64_t total : {11, 12, 400, 100003}) {
      CHECK(learning_rate(schedule(name, 0), total - 1, total) == 0.0);
      CHECK(learning_rate(schedule(name, 0.25), total - 1, total) == 2e-3 * 0.25);
      // Negative control: the step before is not there yet (when there is one between warmup and end).
      if (total > 12) CHECK(learning_rate(schedule(name, 0.25), total - 2, total) > 2e-3 * 0.25);
    }
}

TEST_CASE("without warmup the first step is at the peak") {
  ScheduleOptions options = schedule(ScheduleName::Cosine);
  options.warmup_steps = 0;
  CHECK(learning_rate(options, 0, 100) == 2e-3);
}

TEST_CASE("learning rates never rise after the warmup") {
  for (ScheduleName name :
       {ScheduleName::Constant, ScheduleName::Linear, ScheduleName::Cosine, ScheduleName::WSD})
    for (int64_t step = 11; step < 200; ++step)
      CHECK(learning_rate(schedule(name), step, 200) <= learning_rate(schedule(name), step - 1, 200));
}

TEST_CASE("final steps stay at the rate at which the schedule ends, which ends so much earlier") {
  for (ScheduleName name :
       {ScheduleName::Constant, ScheduleName::Linear, ScheduleName::Cosine, ScheduleName::WSD}) {
    ScheduleOptions options = schedule(name, 1e-6);
    std::vector<double> shorter;
    for (int64_t step = 0; step < 111; ++step) shorter.push_back(learning_rate(options, step, 111));
    options.final_steps = 39;
    for (int64_t step = 0; step < 150; ++step)
      CHECK(learning_rate(options, step, 150) == shorter[static_cast<size_t>(std::min<int64_t>(step, 110))]);
  }
}
