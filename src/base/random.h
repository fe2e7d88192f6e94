// Counter-based random numbers: pure functions of (key, counter), the same on every device.
// Philox4x32-10  [Salmon et al., SC'11; known-answer vectors in tests/base]
#pragma once
#include <cmath>
#include <cstdint>

#include "base/platform.h"

namespace octet {

struct Random4 {
  uint32_t x, y, z, w;
};

OCTET_HD Random4 philox(uint64_t key, uint64_t counter_low, uint64_t counter_high = 0) {
  uint32_t c0 = static_cast<uint32_t>(counter_low), c1 = static_cast<uint32_t>(counter_low >> 32);
  uint32_t c2 = static_cast<uint32_t>(counter_high), c3 = static_cast<uint32_t>(counter_high >> 32);
  uint32_t k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = static_cast<uint64_t>(0xD2511F53u) * c0, p1 = static_cast<uint64_t>(0xCD9E8D57u) * c2;
    const uint32_t n0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ k0,
                   n2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ k1;
    c1 = static_cast<uint32_t>(p1);
    c3 = static_cast<uint32_t>(p0);
    c0 = n0;
    c2 = n2;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {c0, c1, c2, c3};
}

// The 32 random bits of one element: word (element % 4) of block (element / 4).
OCTET_HD uint32_t random_bits(uint64_t key, uint64_t element) {
  const Random4 r = philox(key, element >> 2);
  switch (element & 3) {
    case 0:
      return r.x;
    case 1:
      return r.y;
    case 2:
      return r.z;
    default:
      return r.w;
  }
}

// What a random number is for: mixed into the key so that no two uses share a stream.
enum class Purpose : uint32_t {
  Initialization = 1,
  StochasticRounding = 2,
  DataOrder = 3,
  Test = 4,
  GradientWire = 5,
  MasterRounding = 6,
};

// Key of (seed, purpose, two more coordinates such as tensor and step).
OCTET_HD uint64_t random_key(uint64_t seed, Purpose purpose, uint64_t a = 0, uint64_t b = 0) {
  const Random4 r = philox(seed, a, (static_cast<uint64_t>(purpose) << 48) ^ b);
  return (static_cast<uint64_t>(r.y) << 32) | r.x;
}

// Standard normal of (key, element) by Box-Muller, computed in double on the host: |z| <= 6.7.
inline double random_normal(uint64_t key, uint64_t element) {
  const Random4 r = philox(key, element >> 1);
  const double u = (static_cast<double>(r.x) + 0.5) * 0x1p-32, v = (static_cast<double>(r.y) + 0.5) * 0x1p-32;
  const double radius = std::sqrt(-2.0 * std::log(u)), angle = 6.283185307179586476925 * v;
  return radius * ((element & 1) ? std::sin(angle) : std::cos(angle));
}

}  // namespace octet
