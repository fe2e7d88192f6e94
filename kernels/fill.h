// out[i] = value for i < count, rounded to nearest even in BF16.
#pragma once
#include <cstdint>

#include "kernels/namespace.h"
#include "numerics/recipe.h"

OCTET_KERNELS_BEGIN

struct FillArguments {
  void* out;              // [count], any alignment of its type
  octet::Format storage;  // FP32 or BF16
  int64_t count;
  float value;
  Stream stream = nullptr;
};
void fill(const FillArguments&);  // throws gpu::LaunchError

OCTET_KERNELS_END
