// FP16 (binary16): 11 significant bits, largest 65504, smallest normal 2^-14, smallest subnormal 2^-24.
#pragma once
#include <cstdint>
#include <cstring>

#include "base/platform.h"

namespace octet {

struct Float16 {
  uint16_t bits;
};

inline constexpr float float16_max = 65504.0f;

// Round to nearest even, saturating as FP8 codes do: |x| > 65504 and infinities become +-65504; every NaN
// becomes 0x7e00. Branch-free.
OCTET_HD Float16 to_float16(float x) {
  uint32_t u;
  memcpy(&u, &x, 4);
  const uint32_t sign = (u >> 16) & 0x8000u;
  u &= 0x7fffffffu;
  float a;
  memcpy(&a, &u, 4);
  const float clamped = a < float16_max ? a : float16_max;
  uint32_t v;
  memcpy(&v, &clamped, 4);
  const uint32_t normal = ((v + 0xfffu + ((v >> 13) & 1u)) >> 13) - ((127u - 15u) << 10);
  const float shifted = clamped * 0x1p24f + 12582912.0f;  // subnormal step 2^-24: 1.5 * 2^23 rounds
  uint32_t s;
  memcpy(&s, &shifted, 4);
  const uint32_t code = v < 0x38800000u ? (s & 0x7ffu) : normal;
  return {static_cast<uint16_t>(u > 0x7f800000u ? 0x7e00u : code | sign)};
}
OCTET_HD float to_float(Float16 x) {
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000u) << 16, magnitude = x.bits & 0x7fffu;
  const float subnormal = static_cast<float>(static_cast<int32_t>(magnitude)) * 0x1p-24f;
  uint32_t small;
  memcpy(&small, &subnormal, 4);
  const uint32_t normal = (magnitude << 13) + ((127u - 15u) << 23);
  const uint32_t special = (magnitude << 13) | 0x7f800000u;
  const uint32_t bits = (magnitude < 0x400u ? small : magnitude < 0x7c00u ? normal : special) | sign;
  float value;
  memcpy(&value, &bits, 4);
  return value;
}

}  // namespace octet
