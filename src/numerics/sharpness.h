// Epsilon-sharpness of a token's logits.  [Lee et al. 2405.18710; of weights: Keskar et al. 1609.04836]
//
//   C = { z : |z_i| <= epsilon * (|y_i| + 1) }
//   sharpness = 100 * (max over z in C of L(y + z) - L(y)) / (1 + L(y)),   L = lse(y) - y_target
//
// dL/dy_i = p_i - [i = target] is nowhere negative for i != target and nowhere positive for the target. So L
// grows along every edge of C towards one corner, which is the exact maximum: the target's logit goes down,
// all others go up. No search is needed.
#pragma once
#include <cmath>
#include <cstdint>
#include <limits>

namespace octet {

// Logit y at that corner.
inline double moved_logit(float y, double epsilon, bool target) {
  const double value = static_cast<double>(y), reach = epsilon * (std::abs(value) + 1.0);
  return target ? value - reach : value + reach;
}

// In percent, of one row of n logits; everything in FP64, sums from the first logit to the last. The losses
// are log(sum of e^(y - largest)) + (largest - y_target): no large numbers cancel. NaN where a logit is.
inline double logit_sharpness(const float* y, int64_t n, int64_t target, double epsilon) {
  double largest = -std::numeric_limits<double>::infinity(), moved_largest = largest;
  for (int64_t i = 0; i < n; ++i) {
    const double moved = moved_logit(y[i], epsilon, i == target);
    largest = static_cast<double>(y[i]) > largest ? static_cast<double>(y[i]) : largest;
    moved_largest = moved > moved_largest ? moved : moved_largest;
  }
  double sum = 0, moved_sum = 0;
  for (int64_t i = 0; i < n; ++i) {
    sum += std::exp(static_cast<double>(y[i]) - largest);
    moved_sum += std::exp(moved_logit(y[i], epsilon, i == target) - moved_largest);
  }
  const double loss = std::log(sum) + (largest - static_cast<double>(y[target])),
               moved = std::log(moved_sum) + (moved_largest - moved_logit(y[target], epsilon, true));
  return 100.0 * (moved - loss) / (1.0 + loss);
}

}  // namespace octet
