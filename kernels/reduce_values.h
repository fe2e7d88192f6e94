// out[i] = in[i] reduced to x exponent and y mantissa bits: numerics/small_float.h on BF16 values.
#pragma once
#include <cstdint>

#include "kernels/namespace.h"
#include "numerics/recipe.h"

OCTET_KERNELS_BEGIN

struct ReduceValuesArguments {
  const void* in;  // BF16 [count], any alignment
  void* out;       // BF16 [count]
  int64_t count;
  octet::SmallFloat format;  // one that reduces
  Stream stream = nullptr;
};
void reduce_values(const ReduceValuesArguments&);  // throws gpu::LaunchError

OCTET_KERNELS_END
