// Gradients on the wire: E4M3 codes in blocks of 256 values, each block with a power-of-two scale of its own.
//
// A message is what one rank sends to another of `count` values: the codes, zeros up to a multiple of 16, the
// blocks' inverse scales, one byte each, zeros up to a multiple of 16. An inverse scale is E8M0: 2^(byte -
// 127), and 255 is NaN.  [OCP Microscaling Formats 1.0, 5.4.1; its blocks are of 32]
//
// Why blocks: a gradient's values span more binades than E4M3's 18, and with one scale a tensor the small
// ones would drown in rounding noise of the size of the largest.
#pragma once
#include <cstdint>
#include <cstring>

#include "base/platform.h"
#include "numerics/float8.h"
#include "numerics/scaling.h"

namespace octet {

inline constexpr int64_t code_block = 256;
inline constexpr uint8_t e8m0_nan = 255;

OCTET_HD int64_t code_blocks(int64_t count) { return (count + code_block - 1) / code_block; }
// Where the scales of a message begin: bytes of its codes.
OCTET_HD int64_t coded_bytes(int64_t count) { return (count + 15) / 16 * 16; }
OCTET_HD int64_t message_bytes(int64_t count) {
  return coded_bytes(count) + (code_blocks(count) + 15) / 16 * 16;
}

struct BlockScale {
  float scale;      // multiplies before encoding
  uint8_t inverse;  // E8M0
};

// The largest power of two that keeps amax within E4M3, times 2^log2_mu, within [2^-126, 2^126]. A block with
// a value that is not finite gets NaN: saturation must not hide a diverged step.
OCTET_HD BlockScale block_scale(float amax, int log2_mu) {
  if (!(amax <= 3.4028234663852886e38f)) return {1.0f, e8m0_nan};
  float scale = power_of_two_scale(amax, e4m3_max);
  uint32_t bits;
  memcpy(&bits, &scale, 4);
  int exponent = static_cast<int>(bits >> 23) - 127 + log2_mu;
  exponent = exponent < -126 ? -126 : exponent > 126 ? 126 : exponent;
  bits = static_cast<uint32_t>(exponent + 127) << 23;
  memcpy(&scale, &bits, 4);
  return {scale, static_cast<uint8_t>(127 - exponent)};
}

OCTET_HD float e8m0_value(uint8_t e) {
  const uint32_t bits = select_bits(e == e8m0_nan, 0x7fc00000u,
                                    select_bits(e == 0, 0x00400000u, static_cast<uint32_t>(e) << 23));
  float value;
  memcpy(&value, &bits, 4);
  return value;
}

}  // namespace octet
