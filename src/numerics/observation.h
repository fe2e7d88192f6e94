// What the health monitor computes of values, defined once: kurtosis, a maximum as an integer, and where the
// scales of codes are.
#pragma once
#include <cstdint>
#include <cstring>

#include "base/platform.h"

namespace octet {

// The inverse scale of code [r, c] is values[r / row_block * row_stride + c / column_block * column_stride].
// As it stands: one for the tensor. Null: 1.
struct InverseScales {
  const float* values = nullptr;
  int64_t row_block = 1, column_block = 1;
  int64_t row_stride = 0, column_stride = 0;

  OCTET_HD int64_t index(int64_t row, int64_t column) const {
    return row / row_block * row_stride + column / column_block * column_stride;
  }
  OCTET_HD float at(int64_t row, int64_t column) const { return values ? values[index(row, column)] : 1.0f; }
};

// (1/n sum x^4) / (1/n sum x^2)^2 of `count` values, not centred: casts scale, they do not shift. 3 for a
// Gaussian, 6 for a Laplacian, `count` when one value is not zero, 1 when all magnitudes are equal; 0 for
// zeros.
// [FOG, 2505.20524; the denominator of its code, the printed one degenerates]
// The sums are FP64: squares of FP32 numbers are exact there, and nothing overflows or vanishes.
OCTET_HD double kurtosis(double count, double squares, double fourths) {
  return squares == 0.0 ? 0.0 : count * (fourths / (squares * squares));
}

// Numbers in the order of these integers, every NaN above them all; none is zero.
OCTET_HD uint32_t ordered_bits(float x) {
  uint32_t u;
  memcpy(&u, &x, 4);
  if (x != x) return ~0u;
  return (u & 0x80000000u) != 0 ? ~u : u | 0x80000000u;
}
// The way back; zero, which no number has: NaN.
OCTET_HD float from_ordered_bits(uint32_t bits) {
  if (bits == 0) bits = ~0u;
  const uint32_t u = (bits & 0x80000000u) != 0 ? bits & 0x7fffffffu : ~bits;
  float x;
  memcpy(&x, &u, 4);
  return x;
}

}  // namespace octet
