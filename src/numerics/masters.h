// How the optimizer stores what it owns of a weight, beside plain FP32.
//
//                     values          rest                an update starts from     the model sees
//   bf16_remainder    BF16            16 bits             all 32 bits of the FP32   the FP32
//   bf16_kahan        BF16            compensation BF16   values + rest             values
//   bf16_stochastic   BF16            -                   values                    values
//   bf16_nearest      BF16            -                   values                    values
//   fp16_scaled       FP16 * scale    -                   values / scale            values / scale
//
// remainder: values is the FP32 rounded to nearest, ties away from zero; with the remainder, a signed 16-bit
//   difference of the bits, it is the FP32 again, to the bit. Working weights round ties to even, so they are
//   made from the FP32: 65537 numbers round to a BF16 with an even last bit, and 16 bits tell 65536 apart, so
//   no pair of 16 bits can hold the working weight and the whole FP32.
// kahan: what the rounding of values lost, rounded itself, is added before the next update: some 16
//   significant bits together.  [Zamirai et al. 2010.06192]
// stochastic: away from zero with probability (|w| - lower) / (upper - lower), so that E[stored] = w and
//   small updates are kept on average.  [Zamirai et al. 2010.06192]
// nearest: the control. An update below half an ulp, 2^-9 of the weight, is lost each time.
// scaled: one power-of-two scale a block of master_block elements, so that its largest magnitude is in
//   (32752, 65504]. [Fishman et al. 2409.12517 and FP8-LM 2310.18313 have one a tensor; powers of two differ
//   in nothing but where FP16 ends, and a block's does not depend on how a tensor is divided among ranks.]
#pragma once
#include <cstdint>
#include <cstring>

#include "numerics/bfloat16.h"
#include "numerics/float16.h"
#include "numerics/scaling.h"

namespace octet {

inline constexpr int64_t master_block = 128;

// 1 for a block of zeros, or with a value that is not finite.
OCTET_HD float master_scale(float amax) { return power_of_two_scale(amax, float16_max); }

// To one of the two neighbours of |x|, from the upper half of 32 random bits. What is not finite stays so.
OCTET_HD BFloat16 to_bfloat16_stochastic(float x, uint32_t random) {
  uint32_t u;
  memcpy(&u, &x, 4);
  const uint32_t away = (random >> 16) < (u & 0xffffu) ? 1u : 0u, special = u & 0x7fffffffu;
  if (special >= 0x7f800000u) return to_bfloat16(x);
  return {static_cast<uint16_t>((u >> 16) + away)};
}

struct StoredMaster {
  uint16_t value, rest;
};

// `scale`: master_scale of the block; `random`: of the element. Each is read by the format that needs it.
OCTET_HD StoredMaster store_master(MasterFormat format, float w, float scale, uint32_t random) {
  uint32_t bits;
  memcpy(&bits, &w, 4);
  switch (format) {
    case MasterFormat::BF16Remainder:
      return {static_cast<uint16_t>((bits + 0x8000u) >> 16), static_cast<uint16_t>(bits)};
    case MasterFormat::BF16Kahan: {
      const BFloat16 value = to_bfloat16(w);
      return {value.bits, to_bfloat16(w - to_float(value)).bits};
    }
    case MasterFormat::BF16Stochastic:
      return {to_bfloat16_stochastic(w, random).bits, 0};
    case MasterFormat::FP16Scaled:
      return {to_float16(w * scale).bits, 0};
    default:
      return {to_bfloat16(w).bits, 0};
  }
}

// The number that the model sees: working weights are this, rounded. `inverse`: 1 / scale of the block.
OCTET_HD float master_value(MasterFormat format, StoredMaster stored, float inverse) {
  if (format == MasterFormat::FP16Scaled) return to_float(Float16{stored.value}) * inverse;
  uint32_t bits = static_cast<uint32_t>(stored.value) << 16;
  if (format == MasterFormat::BF16Remainder)
    bits += static_cast<uint32_t>(static_cast<int32_t>(static_cast<int16_t>(stored.rest)));
  float w;
  memcpy(&w, &bits, 4);
  return w;
}

// The number that an update starts from.
OCTET_HD float load_master(MasterFormat format, StoredMaster stored, float inverse) {
  const float value = master_value(format, stored, inverse);
  return format == MasterFormat::BF16Kahan ? value + to_float(BFloat16{stored.rest}) : value;
}

}  // namespace octet
