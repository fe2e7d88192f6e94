// E4M3 (fn: no infinity, NaN = 0x7f/0xff, max 448) and E5M2 (IEEE-like, max 57344) codes.  [OCP OFP8 1.0;
// Micikevicius et al. 2209.05433]
#pragma once
#include <cstdint>
#include <cstring>

#include "base/platform.h"
#include "numerics/recipe.h"

namespace octet {

inline constexpr float e4m3_max = 448.0f, e5m2_max = 57344.0f;
inline constexpr float e4m3_min_subnormal = 0x1p-9f, e5m2_min_subnormal = 0x1p-16f;

OCTET_HD float max_of(Format f) { return f == Format::E4M3 ? e4m3_max : e5m2_max; }

// Round to nearest even, saturating: |x| > max and infinities become +-max, every NaN becomes 0x7f: what
// PTX's cvt.rn.satfinite does. (The sign of a NaN that arithmetic made differs between processors.)
// Branch-free.
OCTET_HD uint8_t encode_e4m3(float x) {
  uint32_t u;
  memcpy(&u, &x, 4);
  const uint32_t sign = (u >> 24) & 0x80u;
  u &= 0x7fffffffu;
  float a;
  memcpy(&a, &u, 4);
  const float clamped = a < e4m3_max ? a : e4m3_max;
  uint32_t v;
  memcpy(&v, &clamped, 4);
  const uint32_t normal = ((v + 0x7ffffu + ((v >> 20) & 1u)) >> 20) - ((127u - 7u) << 3);
  const float shifted =
      clamped * 512.0f + 12582912.0f;  // subnormal step 2^-9: adding 1.5 * 2^23 rounds to nearest even
  uint32_t s;
  memcpy(&s, &shifted, 4);
  const uint32_t code = v < 0x3c800000u ? (s & 0x7fu) : normal;
  return static_cast<uint8_t>(u > 0x7f800000u ? 0x7fu : code | sign);
}
OCTET_HD uint8_t encode_e5m2(float x) {
  uint32_t u;
  memcpy(&u, &x, 4);
  const uint32_t sign = (u >> 24) & 0x80u;
  u &= 0x7fffffffu;
  float a;
  memcpy(&a, &u, 4);
  const float clamped = a < e5m2_max ? a : e5m2_max;
  uint32_t v;
  memcpy(&v, &clamped, 4);
  const uint32_t normal = ((v + 0xfffffu + ((v >> 21) & 1u)) >> 21) - ((127u - 15u) << 2);
  const float shifted = clamped * 65536.0f + 12582912.0f;  // subnormal step 2^-16
  uint32_t s;
  memcpy(&s, &shifted, 4);
  const uint32_t code = v < 0x38800000u ? (s & 0x7fu) : normal;
  return static_cast<uint8_t>(u > 0x7f800000u ? 0x7fu : code | sign);
}
// a where `condition`, else b: a mask instead of a branch, so that loops vectorise.
OCTET_HD uint32_t select_bits(bool condition, uint32_t a, uint32_t b) {
  return b ^ ((a ^ b) & (0u - static_cast<uint32_t>(condition)));
}
OCTET_HD float decode_e4m3(uint8_t code) {
  const uint32_t sign = static_cast<uint32_t>(code & 0x80u) << 24, magnitude = code & 0x7fu;
  const float subnormal = static_cast<float>(static_cast<int32_t>(magnitude)) * 0x1p-9f;
  uint32_t small;
  memcpy(&small, &subnormal, 4);
  const uint32_t normal = (magnitude << 20) + ((127u - 7u) << 23);
  const uint32_t finite = select_bits(magnitude < 8u, small, normal);
  const uint32_t bits = select_bits(magnitude == 0x7fu, 0x7fc00000u, finite) | sign;
  float value;
  memcpy(&value, &bits, 4);
  return value;
}
// E5M2 is the upper byte of an FP16; infinities and NaNs decode as such.
OCTET_HD float decode_e5m2(uint8_t code) {
  const uint32_t sign = static_cast<uint32_t>(code & 0x80u) << 24, magnitude = code & 0x7fu;
  const float subnormal = static_cast<float>(static_cast<int32_t>(magnitude)) * 0x1p-16f;
  uint32_t small;
  memcpy(&small, &subnormal, 4);
  const uint32_t normal = (magnitude << 21) + ((127u - 15u) << 23);
  const uint32_t finite = select_bits(magnitude < 4u, small, normal);
  const uint32_t special = select_bits(magnitude == 0x7cu, 0x7f800000u, 0x7fc00000u);
  const uint32_t bits = select_bits(magnitude >= 0x7cu, special, finite) | sign;
  float value;
  memcpy(&value, &bits, 4);
  return value;
}
OCTET_HD uint8_t encode(Format f, float x) { return f == Format::E4M3 ? encode_e4m3(x) : encode_e5m2(x); }
OCTET_HD float decode(Format f, uint8_t code) {
  return f == Format::E4M3 ? decode_e4m3(code) : decode_e5m2(code);
}

// Stochastic rounding: away from zero with probability (|x| - lower) / (upper - lower), from 32 random bits;
// saturating as above. The probability is exact for every normal code and for subnormals down to |x| = 2^-18
// (E4M3) or 2^-25 (E5M2); below it is rounded down to a multiple of 2^-32. Codes stay what they are.
OCTET_HD uint8_t encode_stochastic(Format f, float x, uint32_t random) {
  const uint32_t mantissa = f == Format::E4M3 ? 3u : 2u, bias = f == Format::E4M3 ? 7u : 15u;
  uint32_t u;
  memcpy(&u, &x, 4);
  const uint32_t sign = (u >> 24) & 0x80u;
  u &= 0x7fffffffu;
  if (u > 0x7f800000u) return 0x7fu;
  const float max = max_of(f);
  uint32_t largest;
  memcpy(&largest, &max, 4);
  u = u < largest ? u : largest;
  uint32_t code, away;
  if (u >> 23 > 127u - bias) {  // a normal code: the low `shift` bits of the significand are discarded
    const uint32_t shift = 23u - mantissa;
    code = (u >> shift) - ((127u - bias) << mantissa);
    away = random >> (32u - shift) < (u & ((1u << shift) - 1u));
  } else {  // |x| = significand * 2^(exponent - 150), in steps of 2^(1 - bias - mantissa)
    const uint32_t exponent = u >> 23 ? u >> 23 : 1u;
    const uint32_t significand = (u & 0x7fffffu) | (u >> 23 ? 0x800000u : 0u);
    const uint32_t shift = 151u - bias - mantissa - exponent;  // at least 21
    code = shift < 24u ? significand >> shift : 0u;
    if (shift < 32u) {
      away = random >> (32u - shift) < (significand & ((1u << shift) - 1u));
    } else {
      away = random < (shift < 56u ? significand >> (shift - 32u) : 0u);
    }
  }
  return static_cast<uint8_t>((code + away) | sign);
}

}  // namespace octet
