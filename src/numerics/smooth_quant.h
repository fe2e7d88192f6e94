// SmoothQuant: what the columns of X are divided by and those of W multiplied with before both are cast.
//
//   s_j = a_j^alpha / w_j^(1 - alpha)      a_j, w_j: largest magnitudes of column j of X and of W
//
// rounded to the nearest power of two (of logarithms), so that everything is undone exactly. The codes of X
// have one scale S, made from the largest a_j / s_j; so the inverse scale of column j is s_j / S.
// [Xiao et al. 2211.10438, eq. 4; every step as in nanotron pull request 266; docs/numerics.md,
// "SmoothQuant"]
#pragma once
#include <cstdint>
#include <cstring>

#include "numerics/elementary.h"
#include "numerics/scaling.h"

namespace octet {

// As the authors' released code: a column of W that is zero does not blow its column of X up to infinity.
inline constexpr float least_smoothing_weight = 1e-5f;

// Of powers of two whose reciprocals are normal too.
OCTET_HD int within_exponents(int exponent) {
  return exponent < -126 ? -126 : (exponent > 126 ? 126 : exponent);
}
OCTET_HD float power_of_two(int exponent) {
  const uint32_t bits = static_cast<uint32_t>(exponent + 127) << 23;
  float power;
  memcpy(&power, &bits, 4);
  return power;
}
OCTET_HD bool is_finite_amax(float amax) { return amax <= 3.4028234663852886e38f; }

// log2 s_j; 0 where an amax says nothing. a_j / s_j stays below 2^126 whatever the weight.
OCTET_HD int smoothing_exponent(float amax, float weight_amax, float alpha) {
  if (!(amax > 0.0f) || !is_finite_amax(amax) || !is_finite_amax(weight_amax)) return 0;
  const float weight = weight_amax < least_smoothing_weight ? least_smoothing_weight : weight_amax;
  const float logarithm = alpha * vector_log(amax) - (1.0f - alpha) * vector_log(weight);
  const float shifted = logarithm * 1.44269504088896341f + 12582912.0f;  // 1.5 * 2^23: rounds to an integer
  uint32_t bits;
  memcpy(&bits, &shifted, 4);
  const int exponent = within_exponents(static_cast<int>(bits - 0x4b400000u));
  memcpy(&bits, &amax, 4);
  const int least = static_cast<int>(bits >> 23) - 127 - 125;
  return exponent < least ? least : exponent;
}
// a_j / s_j; 0 where it is not finite, which is no other column's matter.
OCTET_HD float smoothed_amax(float amax, float weight_amax, float alpha) {
  return is_finite_amax(amax) ? amax * power_of_two(-smoothing_exponent(amax, weight_amax, alpha)) : 0.0f;
}
// s_j / S of a power of two S, a power of two with a normal reciprocal; NaN where the column is not finite.
OCTET_HD float smoothed_inverse_scale(float amax, float weight_amax, float alpha, float scale) {
  uint32_t bits;
  memcpy(&bits, &scale, 4);
  const int exponent = smoothing_exponent(amax, weight_amax, alpha) - (static_cast<int>(bits >> 23) - 127);
  const uint32_t nan_bits = 0x7fc00000u;
  float nan;
  memcpy(&nan, &nan_bits, 4);
  return is_finite_amax(amax) ? power_of_two(within_exponents(exponent)) : nan;
}

}  // namespace octet
