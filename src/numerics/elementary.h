// Elementary functions that the compiler can vectorise. libm's expf is a call, so a loop around it stays
// scalar; every operation that exponentiates (softmax, SiLU, cross-entropy) uses this one, so they agree.
#pragma once
#include <cstdint>
#include <cstring>

#include "base/platform.h"
#include "numerics/bfloat16.h"

namespace octet {

// e^x in FP32. x = n ln2 + r with |r| <= ln2/2, n ln2 subtracted in two parts (the first exact, because its
// constant has 9 significant bits and |n| has 8: Cody and Waite), then a degree-7 polynomial in r, then two
// exact powers of two whose product is 2^n, so that results down to the smallest subnormal and up to
// overflow are right. Error <= 2 ulp for normal results (tested against double over the whole range);
// exp(-inf) = 0, exp(inf) = inf, NaN stays NaN. Branch-free.
OCTET_HD float vector_exp(float x) {
  const float low = x < -104.0f ? -104.0f : x;
  const float clamped = low > 89.0f ? 89.0f : low;
  const float magic = 12582912.0f;                               // 1.5 * 2^23: adding it rounds to an integer
  const float shifted = clamped * 1.44269504088896341f + magic;  // log2(e)
  const float n = shifted - magic;
  const float r = (clamped - n * 0.693359375f) - n * -2.12194440054690583e-4f;
  float p = 1.0f / 5040.0f;
  p = p * r + 1.0f / 720.0f;
  p = p * r + 1.0f / 120.0f;
  p = p * r + 1.0f / 24.0f;
  p = p * r + 1.0f / 6.0f;
  p = p * r + 0.5f;
  p = (p * r) * r + r;
  p = p + 1.0f;
  uint32_t bits;
  memcpy(&bits, &shifted, 4);
  const int32_t exponent = static_cast<int32_t>(bits - 0x4b400000u), half = exponent >> 1;
  const uint32_t first = static_cast<uint32_t>(half + 127) << 23,
                 second = static_cast<uint32_t>(exponent - half + 127) << 23;
  float a, b;
  memcpy(&a, &first, 4);
  memcpy(&b, &second, 4);
  return p * a * b;
}

// 1 / (1 + e^-x).
OCTET_HD float vector_sigmoid(float x) { return 1.0f / (1.0f + vector_exp(-x)); }

// Storage types: every operation computes on load() and rounds once in store().
OCTET_HD float load(float x) { return x; }
OCTET_HD float load(BFloat16 x) { return to_float(x); }
OCTET_HD void store(float* to, float x) { *to = x; }
OCTET_HD void store(BFloat16* to, float x) { *to = to_bfloat16(x); }

}  // namespace octet
