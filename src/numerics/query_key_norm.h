// What keeps queries and keys from growing: applied to each head before RoPE.
//
//   rms         x / rms(x) * gain, one gain [Dh] for all query heads and one for all key heads, trained
//   [Qwen3] rms_frozen  x / rms(x): the constant gain g of FOG is part of the softmax scale, g^2 / sqrt(Dh);
//   nothing is
//               trained, because trained gains grow without bound under FP8 attention [2505.20524]
//   tanh        tanh(alpha x), one alpha for queries and one for keys, trained            [2505.20524,
//   released code]
//
// OLMo-2's released code normalises the projection of all heads at once; rms is per head.
#pragma once
#include <cstdint>

#include "base/platform.h"
#include "numerics/elementary.h"

namespace octet {

enum class QkNorm : uint8_t { None, RMS, RMSFrozen, Tanh };

constexpr bool is_trained(QkNorm norm) { return norm == QkNorm::RMS || norm == QkNorm::Tanh; }

// Of the widest head that can be regularised: a head is one reduction of at most a warp, 16 values a thread.
inline constexpr int64_t widest_regularised_head = 512;

// g^2 of FOG: g = 2^(1/4), 0.125 = g^2 / sqrt(Dh) at Dh = 128.
inline constexpr double frozen_gain_squared = 1.4142135623730951;

}  // namespace octet
