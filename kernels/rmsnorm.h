// RMSNorm with the residual add in front of it, the norm or scale of the branch in front of that, and its
// backward. Specification and equations: device/cpu/rmsnorm.cpp; order of sums: numerics/sums.h. Results are
// equal to the bit.
#pragma once
#include <cstdint>

#include "kernels/namespace.h"
#include "kernels/output.h"
#include "numerics/recipe.h"

OCTET_KERNELS_BEGIN

// x = residual + branch (rounded to storage);  rstd = 1 / sqrt(mean(x^2) + epsilon);  out = x * rstd * gain
// With branch_gain: stream_factor * residual + branch * (branch_rstd * branch_factor) * branch_gain, where
// without branch_rstd all three factors are 1.
struct RmsNormForwardArguments {
  octet::Format storage;         // of residual, branch and sum
  const void* residual;          // [tokens, width]
  const void* branch = nullptr;  // [tokens, width] or null
  void* sum = nullptr;           // x is written here (may be `residual`); null: x is residual as it stands
  const float* gain;             // [width]; null: no norm, out.high takes x, `sum` is null or the same
  float* rstd;                   // [tokens], written; null without gain
  const float* branch_gain = nullptr;  // [width] or null
  float* branch_rstd = nullptr;        // [tokens], written, or null: the branch is not normalised
  float stream_factor = 1, branch_factor = 1;
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
  const float* rstd;                  // null: x was only scaled
  const void* gradient_in = nullptr;  // [tokens, width] or null; may be out.high
  void* gain_gradient;                // += [width]
  octet::Format gain_gradient_storage;
  float stream_factor = 1, branch_factor = 1;
  void* weighted_gradient = nullptr;  // out_gradient or null: takes stream_factor * out_gradient
  float* partial;                     // scratch [rmsnorm_partial_elements(tokens, width)]
  int64_t tokens, width;
  Output out;
  Stream stream = nullptr;
};
void rmsnorm_backward(const RmsNormBackwardArguments&);
// ceil(tokens / column_chunk) * width: the chunk sums of the gain gradient.
int64_t rmsnorm_partial_elements(int64_t tokens, int64_t width);

OCTET_KERNELS_END
