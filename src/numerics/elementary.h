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

// ln x of a positive finite x in FP32. x = 2^n m with m in [sqrt(1/2), sqrt(2)); ln m = 2 artanh(s) with
// s = (m - 1) / (m + 1), |s| < 0.172, whose series ends after s^11 with 2^-35 of the sum left; n ln2 is added
// in two parts, the first exact. Error <= 4 ulp (tested against double over the whole range); ln 1 = 0.
// Branch-free.
OCTET_HD float vector_log(float x) {
  const bool subnormal = x < 0x1p-126f;
  const float normal = subnormal ? x * 0x1p24f : x;
  uint32_t bits;
  memcpy(&bits, &normal, 4);
  const uint32_t shifted = bits - 0x3f3504f3u;  // of sqrt(1/2)
  const int32_t n = static_cast<int32_t>(shifted) >> 23;
  const uint32_t reduced = bits - (static_cast<uint32_t>(n) << 23);
  float m;
  memcpy(&m, &reduced, 4);
  const float f = m - 1.0f;
  const float s = f / (f + 2.0f), z = s * s;
  float p = 2.0f / 11.0f;
  p = p * z + 2.0f / 9.0f;
  p = p * z + 2.0f / 7.0f;
  p = p * z + 2.0f / 5.0f;
  p = p * z + 2.0f / 3.0f;
  const float logarithm = 2.0f * s + s * (z * p);
  const float e = static_cast<float>(n - (subnormal ? 24 : 0));
  return (logarithm + e * -2.12194440054690583e-4f) + e * 0.693359375f;
}
// r^k for r >= 0; 0 stays 0, and NaN NaN.
OCTET_HD float vector_power(float r, float k) { return r > 0.0f ? vector_exp(k * vector_log(r)) : r; }

// 1 / (1 + e^-x).
OCTET_HD float vector_sigmoid(float x) { return 1.0f / (1.0f + vector_exp(-x)); }

// e^x - 1 and e^x - 1 - x for x <= 0 (what comes out for x > 0 means nothing). Down to -1 by the series of
// the second, whose first omitted term is x^12 / 12! of it or less; below, where nothing cancels any more,
// from e^x. Both are within 8 * 2^-24 of their size; NaN stays NaN.
struct Expm1 {
  float expm1, rest;
};
OCTET_HD Expm1 expm1_and_rest(float x) {
  float p = 1.0f / 39916800.0f;
  p = p * x + 1.0f / 3628800.0f;
  p = p * x + 1.0f / 362880.0f;
  p = p * x + 1.0f / 40320.0f;
  p = p * x + 1.0f / 5040.0f;
  p = p * x + 1.0f / 720.0f;
  p = p * x + 1.0f / 120.0f;
  p = p * x + 1.0f / 24.0f;
  p = p * x + 1.0f / 6.0f;
  p = p * x + 0.5f;
  const float near = p * (x * x), far = vector_exp(x) - 1.0f;
  const bool small = x > -1.0f;
  return {small ? x + near : far, small ? near : far - x};
}

// tanh(x) and 1 - tanh^2(x), from e^(-2|x|).
struct Tanh {
  float value, slope;
};
OCTET_HD Tanh vector_tanh(float x) {
  const float magnitude = x < 0.0f ? -x : x;
  const float e = expm1_and_rest(-2.0f * magnitude).expm1;
  const float shrink = 1.0f / (2.0f + e);  // 1 / (1 + e^(-2|x|))
  const float value = -e * shrink;
  return {x < 0.0f ? -value : value, 4.0f * (1.0f + e) * (shrink * shrink)};
}

// ln(1 + e^x) = max(x, 0) + ln(1 + y), y = e^-|x|, ln(1 + y) = 2 artanh(y / (2 + y)) by its series: the
// argument is at most 1/3, so the first omitted term is below 2^-32 of the sum.
OCTET_HD float vector_softplus(float x) {
  const float y = vector_exp(x < 0.0f ? x : -x);
  const float s = y / (2.0f + y), square = s * s;
  float p = 1.0f / 17.0f;
  p = p * square + 1.0f / 15.0f;
  p = p * square + 1.0f / 13.0f;
  p = p * square + 1.0f / 11.0f;
  p = p * square + 1.0f / 9.0f;
  p = p * square + 1.0f / 7.0f;
  p = p * square + 1.0f / 5.0f;
  p = p * square + 1.0f / 3.0f;
  p = p * square + 1.0f;
  return (x < 0.0f ? 0.0f : x) + 2.0f * s * p;
}

// The normal distribution's Phi(x) and e^(-x^2/2). Phi(-u) = e^(-u^2/2) t P(t), t = 1 / (1 + u/4), u >= 0: a
// polynomial of degree 9 fitted to the scaled complementary error function, 5.3e-8 relative anywhere. With
// the roundings Phi is within (32 + x^2/2) 2^-24 of itself: the last term, which BF16 values do not have, is
// the rounding of x^2.
struct NormalDistribution {
  float cumulative, bell;
};
OCTET_HD NormalDistribution vector_normal(float x) {
  const float u = x < 0.0f ? -x : x;
  const float bell = vector_exp(-0.5f * (x * x));
  const float t = 1.0f / (1.0f + 0.25f * u);
  float p = 1.978199116e-02f;
  p = p * t - 8.087723476e-02f;
  p = p * t + 9.559695135e-02f;
  p = p * t - 3.171739978e-02f;
  p = p * t + 6.369904650e-02f;
  p = p * t + 5.897516874e-02f;
  p = p * t + 8.160310609e-02f;
  p = p * t + 9.346635542e-02f;
  p = p * t + 9.973643162e-02f;
  p = p * t + 9.973556672e-02f;
  const float tail = bell * (t * p);
  return {x < 0.0f ? tail : 1.0f - tail, bell};
}

// Storage types: every operation computes on load() and rounds once in store().
OCTET_HD float load(float x) { return x; }
OCTET_HD float load(BFloat16 x) { return to_float(x); }
OCTET_HD void store(float* to, float x) { *to = x; }
OCTET_HD void store(BFloat16* to, float x) { *to = to_bfloat16(x); }

}  // namespace octet
