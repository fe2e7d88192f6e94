// Element-wise copies between storage types: widening is exact, narrowing rounds to nearest even.
#pragma once
#include <cstdint>

#include "kernels/namespace.h"
#include "numerics/recipe.h"

OCTET_KERNELS_BEGIN

struct ConvertArguments {
  void* to;
  octet::Format to_storage;  // FP32 or BF16, not that of `from`
  const void* from;
  octet::Format from_storage;
  int64_t count;
  Stream stream = nullptr;
};
void convert(const ConvertArguments&);

OCTET_KERNELS_END
