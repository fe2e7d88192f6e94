// Statistics of autocorrelated series, closed-form and deterministic.
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace octet {

struct Estimate {
  double value = 0, half_width = 0;  // 95 % confidence: value +- half_width
  double low() const { return value - half_width; }
  double high() const { return value + half_width; }
};

// The 95 % interval of a share, of which `count` of `of` are seen: reasonable for few of them, and for none.
// [Wilson 1927]  of = 0: 0 .. 1.
struct Share {
  double value = 0, low = 0, high = 1;
};
Share wilson_interval(int64_t count, int64_t of);

// Mean with a Newey-West (Bartlett) standard error at lag ceil(sqrt(n)): neighbouring steps are correlated,
// so the naive error would be too small.  [Newey & West 1987]  n >= 2; the half-width of fewer values is
// infinite.
Estimate mean_with_confidence(std::span<const double> values);

// Least-squares slope of y over x with the same correction of its error.
Estimate slope_with_confidence(std::span<const double> x, std::span<const double> y);

// e_t = decay * e_{t-1} + (1 - decay) * x_t, bias-corrected at the start (as Adam's moments are); non-finite
// values are passed over.
std::vector<double> exponential_average(std::span<const double> values, double decay);
// The same over values of these ascending steps: decay^(difference) from one to the next, so that a log that
// passes steps over is averaged over as many steps as one that does not.
std::vector<double> exponential_average(std::span<const double> values, std::span<const int64_t> steps,
                                        double decay);

struct SmoothedBand {
  std::vector<double> value, low, high;
};
// Centred moving mean over 2 * radius + 1 values with its confidence band.
SmoothedBand moving_mean(std::span<const double> values, size_t radius);

}  // namespace octet
