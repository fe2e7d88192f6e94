#include "training/growth.h"

#include <algorithm>
#include <cmath>
#include <functional>

#include "catch.h"

using namespace octet;

namespace {

struct Heard {
  int64_t first = -1;  // step of the first alarm
  double exponent = 0;
};
// A series over `steps` steps, one record every hundred; warm-up ends at 500.
Heard listen(const std::function<double(double)>& series, int64_t steps = 100'000) {
  GrowthTable table(500);
  Heard heard;
  for (int64_t t = 100; t <= steps; t += 100) {
    const double value = series(static_cast<double>(t));
    table.observe(t, {&value, 1});
    if (heard.first < 0 && table.alarm(0)) heard.first = t;
  }
  heard.exponent = table.exponent(0);
  return heard;
}
double noise(double t) { return 1 + 0.1 * std::sin(12.9898 * t); }

}  // namespace

// (K3)
TEST_CASE("growth that does not slow down raises the alarm, and growth that does never") {
  const Heard power = listen([](double t) { return 3 + std::pow(t / 500, 1.5); });
  CHECK(power.first > 0);
  CHECK(std::abs(power.exponent - 1.5) < 0.01);
  // Ten times what it was at step 500, where it was 4: at 37^(2/3) * 500.
  CHECK(power.first >= 5500);
  CHECK(power.first <= 6000);
  const Heard exponential = listen([](double t) { return 3 * std::exp(t / 2000); });
  CHECK(exponential.first > 0);
  CHECK(exponential.first <= 5500);  // ten times at 500 + 2000 ln 10 = 5105
  CHECK(listen([](double t) { return 3 * noise(t) + std::pow(t / 500, 1.5); }).first > 0);

  CHECK(listen([](double t) { return 3 * std::log(t); }).first < 0);
  CHECK(listen([](double t) { return 40 * std::log(t) * noise(t); }).first < 0);
  CHECK(listen([](double t) { return 3 * std::sqrt(t); }).first < 0);
  CHECK(std::abs(listen([](double t) { return 3 * std::sqrt(t); }).exponent - 0.5) < 0.01);
  CHECK(listen([](double t) { return 3000 * noise(t); }).first < 0);
  CHECK(listen([](double t) { return 1000 / t; }).first < 0);
  CHECK(listen([](double t) { return std::pow(t, 0.9); }).first < 0);  // a hundredfold, but slower than t
}

TEST_CASE("one record that is high is no growth, three in a row are") {
  const auto alarms = [](int high) {
    GrowthTable table(0);
    bool any = false;
    for (int64_t t = 1; t <= 40; ++t) {
      const double value = t > 30 && t <= 30 + high ? 1e6 : 3;
      table.observe(t, {&value, 1});
      any = any || table.alarm(0);
    }
    return any;
  };
  CHECK_FALSE(alarms(1));
  CHECK_FALSE(alarms(2));
  CHECK(alarms(3));
}

TEST_CASE("a series needs eight records, and values that are missing change nothing but themselves") {
  GrowthTable table(0), with_gaps(0);
  int alarmed = 0;
  for (int64_t t = 1; t <= 20; ++t) {
    const double value = std::exp(static_cast<double>(t));
    const double values[] = {value, NAN, t % 3 == 0 ? INFINITY : value, 0};
    table.observe(t, {&value, 1});
    with_gaps.observe(t, values);
    const int64_t points = t - std::max<int64_t>(1, t / 2) + 1;  // since half of the run
    CHECK(std::isnan(table.exponent(0)) == (points < 8));
    alarmed += table.alarm(0);
  }
  CHECK(alarmed > 0);
  CHECK(std::isnan(with_gaps.exponent(1)));
  CHECK_FALSE(with_gaps.alarm(1));
  CHECK(std::abs(with_gaps.exponent(2) / table.exponent(0) - 1) < 0.2);
  CHECK(std::isnan(with_gaps.factor(3)));
}

TEST_CASE("a long run's series stay small, and a table that is written and read goes on alike") {
  const auto value = [](int64_t t) {
    return 3 + std::pow(static_cast<double>(t) / 50'000, 3.0) * noise(static_cast<double>(t));
  };
  GrowthTable whole(500), first(500);
  const auto feed = [&](GrowthTable& table, int64_t from, int64_t to) {
    for (int64_t t = from; t <= to; t += 100) {
      const double values[] = {value(t), static_cast<double>(t)};
      table.observe(t, values);
    }
  };
  feed(whole, 100, 500'000);
  CHECK(whole.state()["steps"].size() <= GrowthTable::most_points);
  CHECK(whole.state()["steps"].size() >= GrowthTable::most_points / 2);
  CHECK(whole.alarm(0));
  CHECK(std::abs(whole.exponent(0) - 3) < 0.2);
  for (const int64_t half : {int64_t{700}, int64_t{123'400}}) {
    GrowthTable before(500), after(500);
    feed(before, 100, half);
    after.restore(Json::parse(before.state().dump()));
    feed(after, half + 100, 500'000);
    CHECK(after.state().dump() == whole.state().dump());
  }
}
