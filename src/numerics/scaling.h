// From amax to scale, and the delayed-scaling state machine.
// "scale" multiplies before encoding; "inverse scale" undoes it after the GEMM.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#include "base/platform.h"
#include "numerics/float8.h"
#include "numerics/recipe.h"

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

}  // namespace octet
