// What a thread of RoPE's kernels does with its share of a head.
#pragma once
#include <cstdint>

#include "kernels/output.cuh"
#include "kernels/rope.h"

OCTET_KERNELS_BEGIN

// Eight columns of a row and their partners.
struct Pair {
  unsigned head;
  int64_t first, second, count;  // columns; how many of the eight there are
  int64_t at;                    // in the tables
};

enum class Turn : uint8_t { Forward, Backward };

template <Turn turn>
__device__ __forceinline__ void rotate(const Pair& pair, const RopeShape& shape, Access access,
                                       float (&first)[8], float (&second)[8]) {
  float cosine[8], sine[8];
  load_up_to8(access, shape.cosine + pair.at, pair.count, cosine);
  load_up_to8(access, shape.sine + pair.at, pair.count, sine);
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const float a = first[i], b = second[i];
    if (turn == Turn::Forward) {
      first[i] = a * cosine[i] - b * sine[i];
      second[i] = b * cosine[i] + a * sine[i];
    } else {
      first[i] = a * cosine[i] + b * sine[i];
      second[i] = b * cosine[i] - a * sine[i];
    }
  }
}

__device__ __forceinline__ void add_bias(Access access, const float* bias, int64_t count, float (&x)[8]) {
  float added[8];
  load_up_to8(access, bias, count, added);
#pragma unroll
  for (int i = 0; i < 8; ++i) x[i] += added[i];
}

OCTET_KERNELS_END
