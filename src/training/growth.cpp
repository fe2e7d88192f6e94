#include "training/growth.h"

#include <cmath>
#include <limits>

namespace octet {
namespace {

constexpr double unit = 1e-4;
constexpr double none = std::numeric_limits<double>::quiet_NaN();

}  // namespace

void GrowthTable::observe(int64_t step, std::span<const double> values) {
  if (values_.size() != values.size()) {
    steps_.clear();
    values_.assign(values.size(), {});
    baselines_.assign(values.size(), missing);
    streaks_.assign(values.size(), 0);
  }
  steps_.push_back(step);
  for (size_t s = 0; s < values.size(); ++s) {
    const bool usable = values[s] > 0 && std::isfinite(values[s]);
    values_[s].push_back(usable ? static_cast<int32_t>(std::lround(std::log(values[s]) / unit)) : missing);
    if (baselines_[s] == missing && step >= baseline_step_) baselines_[s] = values_[s].back();
  }
  thin(step);
  for (size_t s = 0; s < values.size(); ++s) {
    const bool fast = exponent(s) > alarm_exponent && factor(s) > alarm_factor;
    streaks_[s] = fast ? streaks_[s] + 1 : 0;
  }
}

// Only the steps since half of `step` count; of more points than can be kept every second goes.
void GrowthTable::thin(int64_t step) {
  std::vector<size_t> kept;
  for (size_t i = 0; i < steps_.size(); ++i)
    if (steps_[i] >= step / 2) kept.push_back(i);
  if (kept.size() > most_points) {
    std::vector<size_t> half;
    for (size_t i = 0; i < kept.size(); ++i)
      if (i % 2 == 0 || i + 1 == kept.size()) half.push_back(kept[i]);
    kept = std::move(half);
  }
  if (kept.size() == steps_.size()) return;
  const auto keep = [&](auto& list) {
    for (size_t i = 0; i < kept.size(); ++i) list[i] = list[kept[i]];
    list.resize(kept.size());
  };
  keep(steps_);
  for (auto& series : values_) keep(series);
}

double GrowthTable::exponent(size_t series) const {
  const std::vector<int32_t>& values = values_[series];
  double n = 0, x = 0, y = 0, xx = 0, xy = 0;
  for (size_t i = 0; i < steps_.size(); ++i) {
    if (values[i] == missing || steps_[i] < 1) continue;
    const double t = std::log(static_cast<double>(steps_[i])), value = unit * values[i];
    n += 1;
    x += t;
    y += value;
    xx += t * t;
    xy += t * value;
  }
  const double spread = n * xx - x * x;
  if (n < static_cast<double>(fewest_points) || spread <= 0) return none;
  return (n * xy - x * y) / spread;
}

double GrowthTable::factor(size_t series) const {
  const int32_t now = values_[series].empty() ? missing : values_[series].back(), before = baselines_[series];
  return now == missing || before == missing ? none : std::exp(unit * (now - before));
}

Json GrowthTable::state() const {
  return {{"steps", steps_}, {"values", values_}, {"baselines", baselines_}, {"streaks", streaks_}};
}

void GrowthTable::restore(const Json& state) {
  steps_ = state.at("steps").get<std::vector<int64_t>>();
  values_ = state.at("values").get<std::vector<std::vector<int32_t>>>();
  baselines_ = state.at("baselines").get<std::vector<int32_t>>();
  streaks_ = state.at("streaks").get<std::vector<int>>();
}

}  // namespace octet
