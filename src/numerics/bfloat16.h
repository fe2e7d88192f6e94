// BF16: the upper half of an FP32.
#pragma once
#include <bit>
#include <cstdint>
#include <cstring>

#include "base/platform.h"

namespace octet {

struct BFloat16 {
  uint16_t bits;
};

OCTET_HD float to_float(BFloat16 x) {
  const uint32_t u = static_cast<uint32_t>(x.bits) << 16;
  float f;
  memcpy(&f, &u, 4);
  return f;
}
// Round to nearest even; NaN stays a (quiet) NaN, overflow becomes infinity. Branch-free, so that loops
// vectorise. (cvt.rn.bf16.f32 agrees but for the payload of a NaN.)
OCTET_HD BFloat16 to_bfloat16(float f) {
  uint32_t u;
  memcpy(&u, &f, 4);
  const uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  const uint32_t nan = (u >> 16) | 0x40u;
  return {static_cast<uint16_t>((u & 0x7fffffffu) > 0x7f800000u ? nan : rounded)};
}
OCTET_HD float round_to_bfloat16(float f) { return to_float(to_bfloat16(f)); }

}  // namespace octet
