// ExMy: BF16 values reduced to x exponent and y mantissa bits, as Lee et al. simulate lower precision.  [To
// FP8 and Back Again, 2405.18710, section 3: mantissa bits are masked off, exponents are clamped, no scale]
//
//   bias b = 2^(x-1) - 1;  largest 2^b (2 - 2^-y);  smallest normal 2^(1-b);  no subnormals
//
// The mantissa is cut (toward zero) or rounded (to nearest even) first; then magnitudes above the largest
// become it, and those below the smallest normal become zero or it. Zeros, infinities and NaNs stay.
#pragma once
#include <cstdint>
#include <string>

#include "base/platform.h"
#include "numerics/bfloat16.h"
#include "numerics/recipe.h"

namespace octet {

inline constexpr int small_exponent_bits_from = 2, small_exponent_bits_to = 8, small_mantissa_bits_to = 7;

// What to_small_float() needs of a format, made once for a whole tensor. Magnitudes are BF16 bits without the
// sign.
struct SmallFloatBits {
  uint32_t mask;                     // of the bits that stay
  uint32_t dropped;                  // how many do not
  uint32_t half;                     // nearest: just below half of the last bit that stays; truncation: 0
  uint32_t odd;                      // nearest: 1, where a bit is dropped; else 0
  uint32_t largest, smallest, tiny;  // tiny: what a magnitude below `smallest` becomes
};
OCTET_HD SmallFloatBits bits_of(const SmallFloat& f) {
  const uint32_t dropped = 7u - f.mantissa_bits, bias = (1u << (f.exponent_bits - 1)) - 1u;
  const bool nearest = f.rounding == SmallRounding::Nearest && dropped > 0;
  SmallFloatBits b{};
  b.mask = 0x7fffu & ~((1u << dropped) - 1u);
  b.dropped = dropped;
  b.half = nearest ? (1u << (dropped - 1u)) - 1u : 0u;
  b.odd = nearest ? 1u : 0u;
  b.largest = (((127u + bias) << 7) | 0x7fu) & b.mask;
  b.smallest = (128u - bias) << 7;
  b.tiny = f.underflow == Underflow::Clamp ? b.smallest : 0u;
  return b;
}

// Only where f.reduces(): E8M7 has the subnormals of BF16 and is not touched at all.
OCTET_HD BFloat16 to_small_float(const SmallFloatBits& f, BFloat16 x) {
  const uint32_t sign = x.bits & 0x8000u, magnitude = x.bits & 0x7fffu;
  uint32_t u = (magnitude + f.half + ((magnitude >> f.dropped) & f.odd)) & f.mask;
  u = u > f.largest ? f.largest : u;
  u = u < f.smallest ? f.tiny : u;
  u = magnitude == 0u || magnitude >= 0x7f80u ? magnitude : u;
  return {static_cast<uint16_t>(u | sign)};
}

// "E8M3".
inline std::string name_of(const SmallFloat& f) {
  return "E" + std::to_string(f.exponent_bits) + "M" + std::to_string(f.mantissa_bits);
}

}  // namespace octet
