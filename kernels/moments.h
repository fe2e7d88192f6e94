// One of Adam's moments as kernels see it. [numerics/moments.h]
#pragma once
#include <cstdint>

#include "kernels/namespace.h"
#include "numerics/recipe.h"

OCTET_KERNELS_BEGIN

struct MomentArguments {
  void* values;
  octet::Format format;      // FP32, BF16, FP16, E4M3 or E5M2
  float* inverse = nullptr;  // [ceil(count / block)], block 0: [1]
  int block = 128;
  uint8_t* exponents = nullptr;  // range expansion: [ceil(count / block)], and `inverse` has the largest
};

OCTET_KERNELS_END
