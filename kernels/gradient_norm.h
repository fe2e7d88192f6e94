// Global gradient norm and what it decides. Specification: device/cpu/gradient_norm.cpp; order of sums:
// numerics/sums.h. Equal to the bit. Also the sum of token losses.
#pragma once
#include <cstdint>

#include "kernels/namespace.h"
#include "numerics/recipe.h"

OCTET_KERNELS_BEGIN

// partial[p] = sum of the squares of piece p (norm_piece values) of one gradient, in FP64.
struct SquaresArguments {
  const void* values;
  octet::Format storage;
  int64_t count;
  double* partial;  // [norm_pieces(count)], written
  Stream stream = nullptr;
};
void squares(const SquaresArguments&);
int64_t norm_pieces(int64_t count);

// What device/device.h calls UpdateControl, as the kernels see it.
struct Control {
  float gradient_norm, scale, loss;
  uint32_t apply, nonfinite_piece;
};
struct FinishNormArguments {
  const double* partial;   // the pieces of all gradients, in order
  int64_t count;           // summed in the lanes of numerics/sums.h
  const double* loss_sum;  // [1]
  double loss_divisor;
  float clip_norm;   // 0 = no clipping
  Control* control;  // written
  Stream stream = nullptr;
};
void finish_norm(const FinishNormArguments&);

// out[0] += sum of x.
struct AccumulateSumArguments {
  double* out;
  const float* x;
  int64_t count;
  Stream stream = nullptr;
};
void accumulate_sum(const AccumulateSumArguments&);

OCTET_KERNELS_END
