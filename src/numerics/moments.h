// Adam's moments as codes of FP8 or FP16: one exact scale a block, round to nearest, and a floor under the
// second moment. [Fishman et al. 2409.12517, released code: exact scales from the just-computed amax; FP16
// for v: FP8-LM 2310.18313; floor and blocks are ours]
//
// Why exact: with power-of-two scales and round to nearest a decaying v sticks to its codes and only ever
// rises. Why the floor: a v that became 0 while m did not would make the next update m / epsilon.
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>

#include "numerics/elementary.h"
#include "numerics/float16.h"
#include "numerics/float8.h"
#include "numerics/scaling.h"

namespace octet {

enum class Moment : uint8_t { First, Second };

OCTET_HD bool is_coded_moment(Format f) {
  return f == Format::FP16 || f == Format::E4M3 || f == Format::E5M2;
}

struct MomentScale {
  float scale, inverse;  // MAX / amax and amax / MAX, each correctly rounded; both normal numbers
};

// 1 and 1 when amax is 0 or not finite. An amax below MAX * 2^-126 gets 2^126 and 2^-126 (FP16: 2^125): even
// the smallest subnormal code then decodes to a non-zero float.
OCTET_HD MomentScale moment_scale(Format f, float amax) {
  if (!is_usable_amax(amax)) return {1.0f, 1.0f};
  const bool wide = f == Format::FP16;
  const float max = wide ? float16_max : max_of(f), inverse = amax / max, scale = exact_scale(amax, max);
  const float least = wide ? 0x1p-125f : 0x1p-126f, most = wide ? 0x1p125f : 0x1p126f;
  return {scale > most ? most : scale, inverse < least ? least : inverse};
}

OCTET_HD uint8_t encode_moment(Format f, Moment moment, float value, float scale) {
  const uint8_t code = encode(f, value * scale);
  return moment == Moment::Second && value > 0.0f && code == 0 ? uint8_t{1} : code;
}
OCTET_HD float decode_moment(Format f, uint8_t code, float inverse) { return decode(f, code) * inverse; }

OCTET_HD uint16_t encode_moment_fp16(Moment moment, float value, float scale) {
  const uint16_t code = to_float16(value * scale).bits;
  return moment == Moment::Second && value > 0.0f && code == 0 ? uint16_t{1} : code;
}
OCTET_HD float decode_moment_fp16(uint16_t code, float inverse) { return to_float(Float16{code}) * inverse; }

// ---- range expansion
//
// FP8 spans far more binades than the values of a block do, so most codes go unused. Stored is |x|^k instead,
// with k such that the smallest non-zero value of the block lands near the format's smallest code:
//   code = FP8(sign(x) * MAX * (|x| / largest)^k),    x = sign * largest * (|code| / MAX)^(1/k)
//   k = floor(16 * ln(range) / ln(largest / smallest)) / 16,  range: MAX / (16/7 smallest subnormals)
// [COAT 2410.19313, 3.2, and its kernel, whose geometric centre cancels: largest and k are enough.] k is kept
// in [1/16, 255/16], so that a block of equal magnitudes is exact, and zeros are not taken for the smallest
// value. Largest and k take 5 bytes a block: 2.08 bytes a parameter for two moments of E4M3 in blocks of 128.
struct ExpandedScale {
  float largest;
  uint8_t sixteenths;  // of k
};

// ln(MAX / (16/7 * smallest subnormal)): 100352 for E4M3, 1644167168 for E5M2.
OCTET_HD float log_of_expanded_range(Format f) { return f == Format::E4M3 ? 11.5164399f : 21.2204998f; }

// `smallest`: of the magnitudes that are not zero. {1, 16/16} when largest is 0 or not finite.
OCTET_HD ExpandedScale expanded_scale(Format f, float largest, float smallest) {
  if (!is_usable_amax(largest)) return {1.0f, 16};
  const float wanted = 16.0f * log_of_expanded_range(f) / (vector_log(largest) - vector_log(smallest));
  if (!(wanted < 255.0f)) return {largest, 255};
  return {largest, static_cast<uint8_t>(wanted < 1.0f ? 1.0f : wanted)};
}
OCTET_HD float exponent_of(ExpandedScale s) { return static_cast<float>(s.sixteenths) * 0x1p-4f; }
OCTET_HD float inverse_exponent_of(ExpandedScale s) { return 16.0f / static_cast<float>(s.sixteenths); }

// `k`: exponent_of(); `inverse_k`: inverse_exponent_of().
OCTET_HD uint8_t encode_expanded(Format f, Moment moment, float value, float largest, float k) {
  const float y = max_of(f) * vector_power((value < 0.0f ? -value : value) / largest, k);
  const uint8_t code = encode(f, value < 0.0f ? -y : y);
  return moment == Moment::Second && value > 0.0f && code == 0 ? uint8_t{1} : code;
}
// A code that is not zero stays above zero, however small its block.
OCTET_HD float decode_expanded(Format f, uint8_t code, float largest, float inverse_k) {
  const float y = decode(f, static_cast<uint8_t>(code & 0x7fu)) / max_of(f),
              x = largest * vector_power(y, inverse_k);
  const float magnitude = y > 0.0f && !(x > 0x1p-149f) ? 0x1p-149f : x;
  return code & 0x80u ? -magnitude : magnitude;
}
// The bits of the smallest magnitude that is not zero, less one, and 0xffffffff for zero: a minimum over them
// is that over the non-zero magnitudes.
OCTET_HD uint32_t nonzero_rank(float value) {
  uint32_t bits;
  memcpy(&bits, &value, 4);
  return (bits & 0x7fffffffu) - 1u;
}
OCTET_HD float magnitude_of_rank(uint32_t rank) {
  const uint32_t bits = rank + 1u;
  float value;
  memcpy(&value, &bits, 4);
  return value;
}

// A block at once: codes as many as values; returns the inverse scale to store beside them.
inline float encode_moment_block(Format f, Moment moment, std::span<const float> values, uint8_t* codes) {
  float amax = 0.0f;
  for (const float v : values) amax = max_magnitude(amax, v);
  const MomentScale s = moment_scale(f, amax);
  for (size_t i = 0; i < values.size(); ++i) codes[i] = encode_moment(f, moment, values[i], s.scale);
  return s.inverse;
}
inline void decode_moment_block(Format f, std::span<const uint8_t> codes, float inverse, float* values) {
  for (size_t i = 0; i < codes.size(); ++i) values[i] = decode_moment(f, codes[i], inverse);
}

inline ExpandedScale encode_expanded_block(Format f, Moment moment, std::span<const float> values,
                                           uint8_t* codes) {
  float amax = 0.0f;
  uint32_t rank = 0xffffffffu;
  for (const float v : values) {
    amax = max_magnitude(amax, v);
    rank = nonzero_rank(v) < rank ? nonzero_rank(v) : rank;
  }
  const ExpandedScale s = expanded_scale(f, amax, magnitude_of_rank(rank));
  for (size_t i = 0; i < values.size(); ++i)
    codes[i] = encode_expanded(f, moment, values[i], s.largest, exponent_of(s));
  return s;
}
inline void decode_expanded_block(Format f, std::span<const uint8_t> codes, ExpandedScale s, float* values) {
  for (size_t i = 0; i < codes.size(); ++i)
    values[i] = decode_expanded(f, codes[i], s.largest, inverse_exponent_of(s));
}

}  // namespace octet
