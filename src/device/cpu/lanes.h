// Sums in a fixed order that still vectorise: sixteen running sums, added as a tree at the end. The order is
// the same on every instruction set.
#pragma once
#include <cstdint>
#include <cstring>

#include "base/platform.h"

namespace octet {

inline constexpr int64_t lane_count = 16;
using Lanes = float __attribute__((vector_size(64)));

// lanes[i % 16] += a[i] * b[i].
OCTET_HD void add_products(Lanes& lanes, const float* a, const float* b, int64_t n) {
  int64_t i = 0;
  for (; i + lane_count <= n; i += lane_count) {
    Lanes x, y;
    memcpy(&x, a + i, sizeof x);
    memcpy(&y, b + i, sizeof y);
    lanes += x * y;
  }
  for (int64_t l = 0; i + l < n; ++l) lanes[l] += a[i + l] * b[i + l];
}
// lanes[i % 16] += a[i].
OCTET_HD void add_values(Lanes& lanes, const float* a, int64_t n) {
  int64_t i = 0;
  for (; i + lane_count <= n; i += lane_count) {
    Lanes x;
    memcpy(&x, a + i, sizeof x);
    lanes += x;
  }
  for (int64_t l = 0; i + l < n; ++l) lanes[l] += a[i + l];
}
OCTET_HD float sum_of(const Lanes& lanes) {
  float sums[lane_count];
  memcpy(sums, &lanes, sizeof sums);
  for (int64_t width = lane_count / 2; width > 0; width /= 2) {
    for (int64_t l = 0; l < width; ++l) sums[l] += sums[l + width];
  }
  return sums[0];
}

}  // namespace octet
