// Loss spikes, found robustly: deviation from the median of a window in units of the median absolute
// deviation.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

namespace octet {

// A pure function of the finite values observed; history() is its whole state (checkpointed).
class SpikeDetector {
 public:
  SpikeDetector(double deviations, int64_t window);

  // Robust deviations of `value` above the median of the window: (value - median) / (1.4826 MAD). 0 while
  // the window has fewer than a quarter (at least 8) of its values; infinite for a value that is not finite.
  double deviation(double value) const;
  bool is_spike(double value) const { return deviation(value) > limit_; }
  void observe(double value);  // ignored when not finite (F29)

  const std::vector<double>& history() const { return history_; }  // oldest first
  void restore(std::vector<double> history);

 private:
  double limit_;
  size_t window_;
  std::vector<double> history_;
};

}  // namespace octet
