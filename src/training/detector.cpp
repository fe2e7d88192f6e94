#include "training/detector.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/median.h"

namespace octet {

SpikeDetector::SpikeDetector(double deviations, int64_t window)
    : limit_(deviations), window_(static_cast<size_t>(std::max<int64_t>(window, 1))) {}

double SpikeDetector::deviation(double value) const {
  if (!std::isfinite(value)) return std::numeric_limits<double>::infinity();
  if (history_.size() < std::max<size_t>(8, window_ / 4)) return 0;
  const double centre = median(history_);
  std::vector<double> distances(history_.size());
  std::transform(history_.begin(), history_.end(), distances.begin(),
                 [centre](double x) { return std::abs(x - centre); });
  // 1.4826 MAD estimates the standard deviation of normal noise. The floor keeps a plateau of equal losses
  // from making every last bit a spike.
  const double spread = std::max(1.4826 * median(distances), 1e-3 * std::abs(centre) + 1e-12);
  return (value - centre) / spread;
}

void SpikeDetector::observe(double value) {
  if (!std::isfinite(value)) return;
  if (history_.size() == window_) history_.erase(history_.begin());
  history_.push_back(value);
}

void SpikeDetector::restore(std::vector<double> history) {
  std::erase_if(history, [](double x) { return !std::isfinite(x); });
  if (history.size() > window_)
    history.erase(history.begin(), history.end() - static_cast<std::ptrdiff_t>(window_));
  history_ = std::move(history);
}

}  // namespace octet
