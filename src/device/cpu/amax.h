// Largest magnitudes, as bits: as integers, magnitudes sort like their values, with infinity and then NaN on
// top; and unlike a maximum of floats this vectorises.
#pragma once
#include <cstdint>

#include "numerics/bfloat16.h"

namespace octet {

// Bits of the FP32 with the largest magnitude of `values`; zero when there are none.
uint32_t amax_bits(const float* values, int64_t count);
uint32_t amax_bits(const BFloat16* values, int64_t count);
// largest[i] = max(largest[i], bits of |values[i]|).
void column_amax_bits(const float* values, int64_t count, uint32_t* largest);

}  // namespace octet
