#include "analysis/statistics.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

namespace octet {
namespace {

constexpr double normal_quantile = 1.959963984540054;  // 97.5 %

// Long-run sum of squares of a mean-zero series u: Bartlett weights up to lag ceil(sqrt(n)).
double long_run_sum(std::span<const double> u) {
  const size_t n = u.size();
  const auto lags =
      std::min<size_t>(n - 1, static_cast<size_t>(std::ceil(std::sqrt(static_cast<double>(n)))));
  double total = 0;
  for (double x : u) total += x * x;
  for (size_t lag = 1; lag <= lags; ++lag) {
    double covariance = 0;
    for (size_t i = lag; i < n; ++i) covariance += u[i] * u[i - lag];
    total += 2.0 * (1.0 - static_cast<double>(lag) / static_cast<double>(lags + 1)) * covariance;
  }
  return std::max(total, 0.0);
}

}  // namespace

Share wilson_interval(int64_t count, int64_t of) {
  if (of <= 0) return {};
  const double n = static_cast<double>(of), p = static_cast<double>(count) / n,
               z2 = normal_quantile * normal_quantile;
  const double centre = (p + z2 / (2 * n)) / (1 + z2 / n),
               reach = normal_quantile / (1 + z2 / n) * std::sqrt(p * (1 - p) / n + z2 / (4 * n * n));
  return {p, count == 0 ? 0 : centre - reach, count == of ? 1 : centre + reach};
}

Estimate mean_with_confidence(std::span<const double> values) {
  const size_t n = values.size();
  if (n == 0) return {0, std::numeric_limits<double>::infinity()};
  double sum = 0;
  for (double v : values) sum += v;
  const double mean = sum / static_cast<double>(n);
  if (n < 2) return {mean, std::numeric_limits<double>::infinity()};
  std::vector<double> u(n);
  for (size_t i = 0; i < n; ++i) u[i] = values[i] - mean;
  const auto samples = static_cast<double>(n);
  return {mean, normal_quantile * std::sqrt(long_run_sum(u) / (samples * (samples - 1.0)))};
}

Estimate slope_with_confidence(std::span<const double> x, std::span<const double> y) {
  const size_t n = x.size();
  if (n < 3) return {0, std::numeric_limits<double>::infinity()};
  double mean_x = 0, mean_y = 0;
  for (size_t i = 0; i < n; ++i) {
    mean_x += x[i];
    mean_y += y[i];
  }
  mean_x /= static_cast<double>(n);
  mean_y /= static_cast<double>(n);
  double sxx = 0, sxy = 0;
  for (size_t i = 0; i < n; ++i) {
    sxx += (x[i] - mean_x) * (x[i] - mean_x);
    sxy += (x[i] - mean_x) * (y[i] - mean_y);
  }
  if (sxx <= 0) return {0, std::numeric_limits<double>::infinity()};
  const double slope = sxy / sxx;
  std::vector<double> score(n);
  for (size_t i = 0; i < n; ++i) score[i] = (x[i] - mean_x) * (y[i] - mean_y - slope * (x[i] - mean_x));
  const auto samples = static_cast<double>(n);
  return {slope, normal_quantile * std::sqrt(long_run_sum(score) * samples / (samples - 2.0)) / sxx};
}

std::vector<double> exponential_average(std::span<const double> values, double decay) {
  std::vector<int64_t> steps(values.size());
  std::iota(steps.begin(), steps.end(), int64_t{1});
  return exponential_average(values, steps, decay);
}

std::vector<double> exponential_average(std::span<const double> values, std::span<const int64_t> steps,
                                        double decay) {
  std::vector<double> out(values.size());
  double average = 0, weight = 0;
  for (size_t i = 0; i < values.size(); ++i) {
    if (std::isfinite(values[i])) {
      // The first value stands for one step: its weight cancels in the bias correction.
      const int64_t passed = i > 0 ? steps[i] - steps[i - 1] : 1;
      const double kept = passed == 1 ? decay : std::pow(decay, static_cast<double>(passed));
      average = kept * average + (1 - kept) * values[i];
      weight = kept * weight + (1 - kept);
    }
    out[i] = weight > 0 ? average / weight : std::numeric_limits<double>::quiet_NaN();
  }
  return out;
}

SmoothedBand moving_mean(std::span<const double> values, size_t radius) {
  SmoothedBand band;
  for (size_t i = 0; i < values.size(); ++i) {
    const size_t begin = i > radius ? i - radius : 0, end = std::min(values.size(), i + radius + 1);
    const Estimate estimate = mean_with_confidence(values.subspan(begin, end - begin));
    band.value.push_back(estimate.value);
    band.low.push_back(estimate.low());
    band.high.push_back(estimate.high());
  }
  return band;
}

}  // namespace octet
