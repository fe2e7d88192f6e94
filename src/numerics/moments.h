// Adam's moments as bytes: one exact scale a block, round to nearest, and a floor under the second moment.
// [Fishman et al. 2409.12517, released code: exact scales from the just-computed amax; floor and blocks are
// ours]
//
// Why exact: with power-of-two scales and round to nearest a decaying v sticks to its codes and only ever
// rises. Why the floor: a v that became 0 while m did not would make the next update m / epsilon.
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>

#include "numerics/float8.h"
#include "numerics/scaling.h"

namespace octet {

enum class Moment : uint8_t { First, Second };

struct MomentScale {
  float scale, inverse;  // MAX / amax and amax / MAX, each correctly rounded; both normal numbers
};

// 1 and 1 when amax is 0 or not finite. An amax below MAX * 2^-126 gets 2^126 and 2^-126: even the smallest
// subnormal code then decodes to a non-zero float.
OCTET_HD MomentScale moment_scale(Format f, float amax) {
  if (!is_usable_amax(amax)) return {1.0f, 1.0f};
  const float max = max_of(f), inverse = amax / max;
  return {exact_scale(amax, max), inverse < 0x1p-126f ? 0x1p-126f : inverse};
}

OCTET_HD uint8_t encode_moment(Format f, Moment moment, float value, float scale) {
  const uint8_t code = encode(f, value * scale);
  return moment == Moment::Second && value > 0.0f && code == 0 ? uint8_t{1} : code;
}
OCTET_HD float decode_moment(Format f, uint8_t code, float inverse) { return decode(f, code) * inverse; }

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

}  // namespace octet
