#include "device/cpu/amax.h"

#include <cstring>

#include "base/platform.h"

namespace octet {
namespace {

OCTET_VECTORIZED uint32_t largest_of(const float* values, int64_t n) {
  uint32_t largest = 0;
  for (int64_t i = 0; i < n; ++i) {
    uint32_t u;
    memcpy(&u, values + i, 4);
    u &= 0x7fffffffu;
    largest = u > largest ? u : largest;
  }
  return largest;
}
OCTET_VECTORIZED uint32_t largest_of(const BFloat16* values, int64_t n) {
  uint16_t largest = 0;
  for (int64_t i = 0; i < n; ++i) {
    const uint16_t u = static_cast<uint16_t>(values[i].bits & 0x7fffu);
    largest = u > largest ? u : largest;
  }
  return static_cast<uint32_t>(largest) << 16;
}
OCTET_VECTORIZED void larger_of(const float* values, int64_t n, uint32_t* largest) {
  for (int64_t i = 0; i < n; ++i) {
    uint32_t u;
    memcpy(&u, values + i, 4);
    u &= 0x7fffffffu;
    largest[i] = u > largest[i] ? u : largest[i];
  }
}

}  // namespace

uint32_t amax_bits(const float* values, int64_t count) { return largest_of(values, count); }
uint32_t amax_bits(const BFloat16* values, int64_t count) { return largest_of(values, count); }
void column_amax_bits(const float* values, int64_t count, uint32_t* largest) {
  larger_of(values, count, largest);
}

}  // namespace octet
