// Scales that follow how many values a step's casts saturated and flushed, in place of the largest value.
// The state is the scale itself. Every operation is rounded once, so that all devices have the same bits, and
// shares are exact quotients: what all ranks count r times has the share of what is counted once.
// [docs/numerics.md, "Scales that follow the distribution"]
#pragma once
#include <cstdint>

#include "base/platform.h"
#include "numerics/recipe.h"
#include "numerics/scaling.h"

namespace octet {

// What a site's casts of one step found.
struct CastsOfStep {
  float amax = 0;
  uint64_t elements = 0, saturated = 0, flushed = 0;
};

OCTET_HD float within_scales(float scale) {
  return scale < 0x1p-126f ? 0x1p-126f : scale > 0x1p126f ? 0x1p126f : scale;
}
OCTET_HD double share_of(uint64_t some, uint64_t all) {
  return static_cast<double>(some) / static_cast<double>(all);
}

// T = max / scale estimates the magnitude that a share q = `above` of the values exceeds. With p the share
// that exceeded T in this step,
//   T <- min(T * min(1 + eta (p / q - 1), 2), max(amax, (1 - eta) T)),   eta = 1 / 16
// T stays where p = q. Near there ln T changes by eta (p / q - 1), so that a deviation of ln T is multiplied
// by 1 - eta h in a step, h = -d ln p / d ln T, and decays while eta h < 2. A Gaussian has h < (T / sigma)^2
// + 1, which is 25 for q = 1e-6 (T = 4.9 sigma), a Laplacian h = ln(1 / q), then 14; heavier tails have
// less. p is noisy, but its mean is what is compared with q. T never shrinks by more than a sixteenth in a
// step, so that a calm one does not cut those that follow; the cap ends what a burst of saturation raised it
// to. Values that end sharply at their amax
// (h is then 1 / q) make T move between amax and 15/16 of it: what saturates loses a sixteenth, which is
// E4M3's own rounding.
inline constexpr double quantile_rate = 1.0 / 16;
OCTET_HD float quantile_scale(double above, float max, const CastsOfStep& step, float present) {
  const double factor = 1 + quantile_rate * (share_of(step.saturated, step.elements) / above - 1);
  const double scale = static_cast<double>(present) / (factor < 2 ? factor : 2);
  const double shrunk = static_cast<double>(present) / (1 - quantile_rate),
               of_amax = static_cast<double>(exact_scale(step.amax, max));
  const double least = of_amax < shrunk ? of_amax : shrunk;
  return within_scales(static_cast<float>(scale < least ? least : scale));
}

// Halved when more than a share `saturated` of the values saturates, else doubled when more than a share
// `flushed` becomes zero.
OCTET_HD float following_scale(const AdaptiveScaling& options, const CastsOfStep& step, float present) {
  if (share_of(step.saturated, step.elements) > options.saturated) return within_scales(0.5f * present);
  if (share_of(step.flushed, step.elements) > options.flushed) return within_scales(2 * present);
  return present;
}

// The scale of a counted site's next step. `present` may be 0 (no history yet: the cast used its own tensor's
// amax); then the first usable amax makes it, exactly for a quantile, whatever the cast's rule. A step
// without casts, or whose amax is zero or not finite, changes nothing.
OCTET_HD float adaptive_scale(const AdaptiveScaling& options, const Cast& cast, const CastsOfStep& step,
                              float present) {
  if (!is_usable_amax(step.amax)) return present;
  const float max = max_of(cast.format);
  const bool quantile = cast.scaling == Scaling::Quantile;
  if (present == 0.0f) return quantile ? exact_scale(step.amax, max) : scale_for(cast.rule, step.amax, max);
  if (step.elements == 0) return present;
  return quantile ? quantile_scale(options.above, max, step, present)
                  : following_scale(options, step, present);
}

}  // namespace octet
