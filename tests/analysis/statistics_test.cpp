#include <cmath>
#include <random>

#include "analysis/statistics.h"
#include "catch.h"

using namespace octet;

namespace {
// x_t = rho x_{t-1} + e_t, around `mean`.
std::vector<double> autoregressive(size_t n, double rho, double mean, uint64_t seed) {
  std::mt19937_64 generator(seed);
  std::normal_distribution<double> noise(0, 1);
  std::vector<double> values(n);
  double x = 0;
  for (double& value : values) value = mean + (x = rho * x + noise(generator));
  return values;
}

// The naive confidence half-width, which believes that all values are independent.
double naive_half_width(const std::vector<double>& values) {
  double mean = 0, squares = 0;
  for (double v : values) mean += v / static_cast<double>(values.size());
  for (double v : values) squares += (v - mean) * (v - mean);
  return 1.96 * std::sqrt(squares / static_cast<double>(values.size()) / static_cast<double>(values.size()));
}
}  // namespace

TEST_CASE("the confidence interval covers the true mean of correlated series, the naive one does not") {
  int covered = 0, naive_covered = 0;
  constexpr int trials = 400;
  for (int trial = 0; trial < trials; ++trial) {
    const auto values = autoregressive(400, 0.7, 3.0, static_cast<uint64_t>(trial) + 1);
    const Estimate estimate = mean_with_confidence(values);
    covered += std::abs(estimate.value - 3.0) <= estimate.half_width;
    naive_covered += std::abs(estimate.value - 3.0) <= naive_half_width(values);
  }
  // 95 % nominal; the Bartlett window at 20 lags of 400 values is known to fall a few percent short. Four
  // standard errors are 5 %.
  CHECK(covered > 0.85 * trials);
  // The naive interval is sqrt((1+rho)/(1-rho)) = 2.4 times too narrow: it covers about 59 %.
  CHECK(naive_covered < 0.70 * trials);
}

TEST_CASE("a mean of fewer than two values has no confidence") {
  CHECK(std::isinf(mean_with_confidence(std::vector<double>{1.0}).half_width));
  CHECK(std::isinf(mean_with_confidence(std::vector<double>{}).half_width));
}

TEST_CASE("the slope of a line is exact and the slope of noise is not significant") {
  std::vector<double> x, y;
  for (int i = 0; i < 100; ++i) {
    x.push_back(i);
    y.push_back(2.0 + 0.5 * i);
  }
  CHECK(slope_with_confidence(x, y).value == Approx(0.5).epsilon(1e-12));
  CHECK(slope_with_confidence(x, y).half_width < 1e-9);
  int significant = 0;
  for (uint64_t seed = 1; seed <= 200; ++seed) {
    const Estimate slope = slope_with_confidence(x, autoregressive(100, 0.0, 0.0, seed));
    significant += slope.low() > 0 || slope.high() < 0;
  }
  CHECK(significant < 40);  // 5 % nominal, up to 4 times that for 10 lags of 100 values
}

TEST_CASE(
    "the exponential average of a constant is that constant from the first step on, and passes over "
    "non-finite values") {
  const std::vector<double> values{2.0, 2.0, std::nan(""), 2.0};
  for (double v : exponential_average(values, 0.9)) CHECK(v == Approx(2.0).epsilon(1e-12));
  CHECK(std::isnan(exponential_average(std::vector<double>{std::nan("")}, 0.9)[0]));
}

TEST_CASE("an exponential average over steps forgets by steps, not by values") {
  // After a jump from 0 to 1 that lasts 10 steps, the average is 1 - decay^10 of the way (before bias
  // correction, which a long past makes small), whether one or ten values tell of it.
  std::vector<double> dense(400, 0.0), sparse;
  std::vector<int64_t> dense_steps, sparse_steps;
  for (int64_t step = 1; step <= 400; ++step) {
    if (step > 390) dense[static_cast<size_t>(step - 1)] = 1;
    dense_steps.push_back(step);
    if (step % 10 != 0) continue;
    sparse.push_back(dense[static_cast<size_t>(step - 1)]);
    sparse_steps.push_back(step);
  }
  const double expected = 1 - std::pow(0.9, 10);
  CHECK(exponential_average(dense, dense_steps, 0.9).back() == Approx(expected).epsilon(1e-12));
  CHECK(exponential_average(sparse, sparse_steps, 0.9).back() == Approx(expected).epsilon(1e-12));
  CHECK(exponential_average(dense, 0.9) == exponential_average(dense, dense_steps, 0.9));
  CHECK(exponential_average(sparse, 0.9).back() == Approx(0.1).epsilon(0.02));  // by values: another number
}

TEST_CASE("Wilson's interval is that of the literature, and lies within 0 and 1") {
  // Newcombe 1998, table I: 81 of 263, 15 of 148, 0 of 20, 1 of 29.
  const auto check = [](int64_t count, int64_t of, double low, double high) {
    const Share share = wilson_interval(count, of);
    CHECK(share.low == Approx(low).margin(5e-5));
    CHECK(share.high == Approx(high).margin(5e-5));
  };
  check(81, 263, 0.2553, 0.3662);
  check(15, 148, 0.0624, 0.1605);
  check(0, 20, 0.0000, 0.1611);
  check(1, 29, 0.0061, 0.1718);
  CHECK(wilson_interval(20, 20).high == 1);
  CHECK(wilson_interval(20, 20).low == Approx(1 - 0.1611).margin(5e-5));
  CHECK(wilson_interval(0, 0).high == 1);
}
