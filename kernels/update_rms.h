// The root mean square of the updates of a tensor, before they are made. Specification:
// device/cpu/update_rms.cpp; order of sums: numerics/sums.h. Equal to the bit.
#pragma once
#include <cstdint>

#include "kernels/gradient_norm.h"
#include "kernels/moments.h"
#include "kernels/namespace.h"

OCTET_KERNELS_BEGIN

// partial[p] = sum over piece p (norm_piece values) of update_square(), in FP64 [numerics/update_clipping.h];
// 0 where control says that the step is not applied.
struct UpdateSquaresArguments {
  const void* gradient;
  octet::Format gradient_storage;  // FP32 or BF16
  MomentArguments second;
  int64_t count;
  float beta2, correction, least;  // correction = 1 / (1 - beta2^t), least = epsilon^2, from the host
  const Control* control;
  double* partial;  // [norm_pieces(count)], written
  Stream stream = nullptr;
};
void update_squares(const UpdateSquaresArguments&);

// rms[0] = sqrt(sum of partial / elements).
struct UpdateRmsArguments {
  const double* partial;
  int64_t count;     // of partials
  int64_t elements;  // of the tensor
  float* rms;
  Stream stream = nullptr;
};
void update_rms(const UpdateRmsArguments&);

OCTET_KERNELS_END
