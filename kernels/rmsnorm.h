// RMSNorm with the residual add in front of it, and its backward. Specification and equations:
// device/cpu/rmsnorm.cpp; order of sums: numerics/sums.h. Results are equal to the bit.
#pragma once
#include <cstdint>

#include "kernels/namespace.h"
#include "kernels/output.h"
#include "numerics/recipe.h"

OCTET_KERNELS_BEGIN

// x = residual + branch (rounded to storage);  rstd = 1 / sqrt(mean(x^2) + epsilon);  out = x * rstd * gain
struct RmsNormForwardArguments {
  octet::Format storage;         // of residual, branch and sum
  const void* residual;          // [tokens, width]
  const void* branch = nullptr;  // [tokens, width] or null
  void* sum = nullptr;           // x is written here (may be `residual`); null: x is residual as it stands
  const float* gain;             // [width]
  float* rstd;                   // [tokens], written
  float epsilon;
  int64_t tokens, width;
  Output out;
  Stream stream = nullptr;
};
void rmsnorm_forward(const RmsNormForwardArguments&);

struct RmsNormBackwardArguments {
  octet::Format storage;
  const void* out_gradient;  // [tokens, width]
  const void* x;             // [tokens, width]
  const float* gain;
  const float* rstd;
  const void* gradient_in = nullptr;  // [tokens, width] or null; may be out.high
  void* gain_gradient;                // += [width]
  octet::Format gain_gradient_storage;
  float* partial;  // scratch [rmsnorm_partial_elements(tokens, width)]
  int64_t tokens, width;
  Output out;
  Stream stream = nullptr;
};
void rmsnorm_backward(const RmsNormBackwardArguments&);
// ceil(tokens / column_chunk) * width: the chunk sums of the gain gradient.
int64_t rmsnorm_partial_elements(int64_t tokens, int64_t width);

OCTET_KERNELS_END
