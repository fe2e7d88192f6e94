// How fast positive numbers grow over a run: the exponent p of t^p, fitted over the steps since half of the
// run so far, and an alarm on growth that does not slow down.
//   alarm: p > 1 at three records in a row, and ten times the value at the end of warm-up
// Super-linear growth of kurtosis precedes divergence, healthy runs grow like a logarithm.  [FOG, 2505.20524]
// The fit, the three records and the factor are ours: the paper has no threshold.
#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include "training/metrics.h"

namespace octet {

class GrowthTable {
 public:
  static constexpr double alarm_exponent = 1, alarm_factor = 10;
  static constexpr int alarm_records = 3;
  static constexpr size_t fewest_points = 8, most_points = 32;

  // `baseline_step`: the first record from it on is the baseline.
  explicit GrowthTable(int64_t baseline_step) : baseline_step_(baseline_step) {}

  // One value a series, the same series each time; one that is not positive and finite is missing.
  void observe(int64_t step, std::span<const double> values);

  double exponent(size_t series) const;  // NaN: too few records
  double factor(size_t series) const;    // the newest value over the baseline; NaN: there is none
  int64_t baseline_step() const { return baseline_step_; }
  bool alarm(size_t series) const { return streaks_[series] >= alarm_records; }

  // All that observe() remembers; a pure function of what it was given.
  Json state() const;
  void restore(const Json& state);

 private:
  // Logarithms in units of 1e-4, so that a checkpoint of them is small.
  static constexpr int32_t missing = INT32_MIN;
  void thin(int64_t step);

  int64_t baseline_step_;
  std::vector<int64_t> steps_;
  std::vector<std::vector<int32_t>> values_;  // [series][steps_]
  std::vector<int32_t> baselines_;            // [series]
  std::vector<int> streaks_;                  // [series]: records in a row that grow too fast
};

}  // namespace octet
