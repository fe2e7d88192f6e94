// The scales of a product that has one for each row of an operand, where the library takes them in another
// form or not at all.
#pragma once
#include <cstdint>

#include "kernels/namespace.h"
#include "numerics/recipe.h"

OCTET_KERNELS_BEGIN

// out[m, n] (+)= product[m, n] * row_scale[m] * column_scale[n], in FP32, rounded once to out's storage.
struct OuterScalesArguments {
  const float* product;       // [rows, columns], 16-byte aligned
  const float* row_scale;     // [rows], or null: ones
  const float* column_scale;  // [columns], 16-byte aligned, or null: ones
  void* out;                  // [rows, columns], 16-byte aligned
  octet::Format storage;      // of out: FP32 or BF16
  bool accumulate;
  int64_t rows, columns;  // columns % 4 == 0
  Stream stream = nullptr;
};
void apply_outer_scales(const OuterScalesArguments&);  // throws gpu::LaunchError

// out[i] = *scale for i < count.
struct SpreadScaleArguments {
  float* out;
  const float* scale;
  int64_t count;
  Stream stream = nullptr;
};
void spread_scale(const SpreadScaleArguments&);

OCTET_KERNELS_END
