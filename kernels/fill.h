// out[i] = value for i < count.
#pragma once
#include <cstdint>

#include "kernels/namespace.h"

OCTET_KERNELS_BEGIN

struct FillArguments {
  float* out;  // [count], any alignment of a float
  int64_t count;
  float value;
  Stream stream = nullptr;
};
void fill(const FillArguments&);  // throws gpu::LaunchError

OCTET_KERNELS_END
