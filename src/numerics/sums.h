// The order of every sum that is not a GEMM's: the same on every device, so that devices agree to the bit.
//
// A row of n values is summed in 256 lanes: value i goes to lane i % 256, in ascending order of i; then the
// lanes are added as a tree: lane l takes lane l + 128, then l + 64, ... l + 1. On a GPU a warp does this
// with eight neighbouring values (one 16-byte load of BF16) a thread; on a CPU it vectorises.
//
// A column over tokens is summed in chunks of 64 tokens from zero, and the chunks are added in order.
//
// A head of 2 n values, n <= 512, is summed in pairs (i, n + i). Eight neighbouring pairs are a piece, added
// as a tree: pair l takes pair l + 4, then l + 2, l + 1; then the pieces as a tree over the next power of
// two. On a GPU a thread has a piece, which is also what RoPE rotates.
#pragma once
#include <cstdint>

#include "base/platform.h"

namespace octet {

inline constexpr int64_t sum_lanes = 256;
inline constexpr int64_t column_chunk = 64;     // tokens
inline constexpr int64_t norm_piece = 1 << 14;  // gradient norm: values a partial sum in FP64 covers
constexpr int64_t norm_pieces(int64_t count) { return (count + norm_piece - 1) / norm_piece; }
inline constexpr int64_t cross_entropy_chunk =
    512;  // logits whose FP32 sum is added to the FP64 sum of a row

template <class T>
struct Lanes {
  T sums[sum_lanes] = {};
};

// lane i % 256 += a[i] * b[i].
OCTET_HD void add_products(Lanes<float>& lanes, const float* a, const float* b, int64_t n) {
  int64_t i = 0;
  for (; i + sum_lanes <= n; i += sum_lanes) {
    for (int64_t l = 0; l < sum_lanes; ++l) lanes.sums[l] += a[i + l] * b[i + l];
  }
  for (int64_t l = 0; i + l < n; ++l) lanes.sums[l] += a[i + l] * b[i + l];
}
// lane i % 256 += a[i].
template <class T>
OCTET_HD void add_values(Lanes<T>& lanes, const float* a, int64_t n) {
  int64_t i = 0;
  for (; i + sum_lanes <= n; i += sum_lanes) {
    for (int64_t l = 0; l < sum_lanes; ++l) lanes.sums[l] += static_cast<T>(a[i + l]);
  }
  for (int64_t l = 0; i + l < n; ++l) lanes.sums[l] += static_cast<T>(a[i + l]);
}
// A piece of a head.
OCTET_HD float sum_of_pairs(const float (&s)[8]) {
  return ((s[0] + s[4]) + (s[2] + s[6])) + ((s[1] + s[5]) + (s[3] + s[7]));
}
template <class T>
OCTET_HD T sum_of(Lanes<T> lanes) {
  for (int64_t width = sum_lanes / 2; width > 0; width /= 2) {
    for (int64_t l = 0; l < width; ++l) lanes.sums[l] += lanes.sums[l + width];
  }
  return lanes.sums[0];
}

}  // namespace octet
