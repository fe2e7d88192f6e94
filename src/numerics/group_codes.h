// What forward keeps for backward in a byte a value: E4M3 codes in groups of 16 neighbours of a row, each
// group with a power-of-two scale of its own.  [COAT 2410.19313, 4.2: 1 x 16 groups for what non-linear
// operations read; there a group's scale is BF16 and exact, here it is a byte, E8M0]
//
//   code = E4M3(BF16(value) * scale of its group),   scale = block_scale(amax of the group)
//   value = code * inverse scale, rounded once to storage: exact but for subnormals of BF16
//
// A group with a value that is not finite comes back as NaN.
#pragma once
#include "numerics/block_codes.h"

namespace octet {

inline constexpr int64_t code_group = 16;

}  // namespace octet
