// From amax to scale, and the delayed-scaling state machine.
// "scale" multiplies before encoding; "inverse scale" undoes it after the GEMM.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#include "base/platform.h"
#include "numerics/float8.h"
#include "numerics/recipe.h"

#if defined(__FAST_MATH__) || defined(__USE_FAST_MATH__)
#error \
    "numerics/ needs subnormals and correctly rounded division: compile without -ffast-math or --use_fast_math"
#endif

namespace octet {

// 2^floor(log2(max / amax)), from the bits; 1 when amax is 0, negative or not finite. Exponent kept in [-126,
// 126], so that scale and 1/scale are both normal numbers.  [Fishman et al., released code; nanotron]
OCTET_HD float power_of_two_scale(float amax, float max) {
  if (!(amax > 0.0f) || !(amax <= 3.4028234663852886e38f)) return 1.0f;
  // floor(log2(max/amax)) without rounding error: exponent difference, minus one when max's significand is
  // below amax's.
  uint32_t a, m;
  int subnormal = 0;
  if (amax < 0x1p-126f) {
    amax *= 0x1p24f;
    subnormal = 24;
  }
  memcpy(&a, &amax, 4);
  memcpy(&m, &max, 4);
  int e = static_cast<int>(m >> 23) - static_cast<int>(a >> 23) + subnormal -
          ((m & 0x7fffffu) < (a & 0x7fffffu) ? 1 : 0);
  e = e < -126 ? -126 : e > 126 ? 126 : e;
  const uint32_t bits = static_cast<uint32_t>(e + 127) << 23;
  float scale;
  memcpy(&scale, &bits, 4);
  return scale;
}
// max / amax, correctly rounded; 1 as above; finite with a finite inverse.
OCTET_HD float exact_scale(float amax, float max) {
  if (!(amax > 0.0f) || !(amax <= 3.4028234663852886e38f)) return 1.0f;
  const float scale = max / amax;
  return scale > 0x1p126f ? 0x1p126f : scale;
}
OCTET_HD float scale_for(ScaleRule rule, float amax, float max) {
  return rule == ScaleRule::PowerOfTwo ? power_of_two_scale(amax, max) : exact_scale(amax, max);
}

// Of one row, column or block of a tensor. Rowwise and block-wise scaling take amaxes below 1e-12 for 1e-12.
// [torchao, EPS] Only scales of blocks follow the cast's rule: others are powers of two. Codes are made with
// the reciprocal of what is stored, which may be two roundings larger than max / amax; an exact scale is so
// much smaller, so that the amax itself does not saturate.
inline constexpr float fine_amax_floor = 1e-12f;
OCTET_HD float fine_scale(const Cast& cast, float amax) {
  const ScaleRule rule = cast.scaling == Scaling::Blockwise ? cast.rule : ScaleRule::PowerOfTwo;
  const float floor = is_one_scale(cast.scaling) ? 0.0f : fine_amax_floor;
  const float scale = scale_for(rule, amax < floor ? floor : amax, max_of(cast.format));
  const bool finite = amax <= 3.4028234663852886e38f;
  return rule == ScaleRule::Exact && finite ? scale * (1 - 0x1p-22f) : scale;
}

// The larger magnitude, with NaN above infinity above every number: the same result in any order of elements,
// and a broken element is never lost. (On a device the same as an integer atomicMax on the bits.)
OCTET_HD float max_magnitude(float amax, float x) {
  uint32_t a, b;
  memcpy(&a, &amax, 4);
  memcpy(&b, &x, 4);
  a &= 0x7fffffffu;
  b &= 0x7fffffffu;
  const uint32_t larger = a > b ? a : b;
  float result;
  memcpy(&result, &larger, 4);
  return result;
}

// ---- delayed scaling
// ---------------------------------------------------------------------------------------
//
// State of a site: the amaxes of the last `window` steps and the scale. After a step its amax goes into the
// ring, then delayed_scale() gives the scale of the next step, which so depends on earlier steps only.

// A site's ring: the amax of slot i is amaxes[i * stride]. A slot never written is 0.
struct AmaxHistory {
  const float* amaxes = nullptr;
  int64_t stride = 1;
  int64_t newest = 0;  // slot of the step that has just ended: step % window
};

OCTET_HD bool is_usable_amax(float amax) { return amax > 0.0f && amax <= 3.4028234663852886e38f; }

// The amax that decides the next scale, or 0: keep the present one. That is so when the newest amax is zero
// (the site did not run, or saw zeros) or not finite (a broken step); broken steps never enter a maximum.
OCTET_HD float deciding_amax(const DelayedScaling& options, const AmaxHistory& history) {
  const float newest = history.amaxes[history.newest * history.stride];
  if (!is_usable_amax(newest)) return 0.0f;
  if (options.algorithm == AmaxAlgorithm::MostRecent) return newest;
  float largest = newest;
  for (int i = 0; i < options.window; ++i) {
    const float amax = history.amaxes[i * history.stride];
    if (is_usable_amax(amax) && amax > largest) largest = amax;
  }
  return largest;
}

// The scale of the next step; `present` may be 0 (no history yet: the cast uses its own tensor's amax) and
// then stays 0 until a usable amax arrives. The margin divides by 2^margin, within [2^-126, 2^126].
OCTET_HD float delayed_scale(const DelayedScaling& options, const Cast& cast, const AmaxHistory& history,
                             float present) {
  const float amax = deciding_amax(options, history);
  if (amax == 0.0f) return present;
  const int margin = options.margin < -126 ? -126 : options.margin > 126 ? 126 : options.margin;
  const uint32_t bits = static_cast<uint32_t>(127 - margin) << 23;
  float factor;
  memcpy(&factor, &bits, 4);
  const float scale = scale_for(cast.rule, amax, max_of(cast.format)) * factor;
  return scale < 0x1p-126f ? 0x1p-126f : scale > 0x1p126f ? 0x1p126f : scale;
}

}  // namespace octet
