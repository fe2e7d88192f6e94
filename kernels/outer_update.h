// The outer step of local SGD.
//   outer_difference   local[i] = outer[i] - local[i]
//   outer_update       d = scale * local[i];  velocity[i] = u = momentum * velocity[i] + d
//                      outer[i] = local[i] = outer[i] - learning_rate * (d + momentum * u)
// Specification: device/cpu/outer_update.cpp. Equal to the bit.
#pragma once
#include <cstdint>

#include "kernels/namespace.h"

OCTET_KERNELS_BEGIN

// Any alignment of floats.
struct OuterDifferenceArguments {
  const float* outer;  // [count]
  float* local;
  int64_t count;
  Stream stream = nullptr;
};
void outer_difference(const OuterDifferenceArguments&);

struct OuterUpdateArguments {
  float *outer, *velocity, *local;  // [count]
  int64_t count;
  float scale, learning_rate, momentum;
  Stream stream = nullptr;
};
void outer_update(const OuterUpdateArguments&);

OCTET_KERNELS_END
