// AdamW on masters and moments in any of their formats. Specification and equations: device/cpu/adamw.cpp,
// numerics/moments.h. Equal to the bit.
#pragma once
#include <cstdint>

#include "kernels/gradient_norm.h"
#include "kernels/masters.h"
#include "kernels/moments.h"
#include "kernels/namespace.h"
#include "numerics/recipe.h"

OCTET_KERNELS_BEGIN

struct AdamWArguments {
  MasterArguments master;
  const void* gradient;
  octet::Format gradient_storage;  // FP32 or BF16
  MomentArguments first, second;
  int64_t count;
  float beta1, beta2, epsilon;
  float decay, rate;       // lr * weight_decay and lr * sqrt(1 - beta2^t) / (1 - beta1^t), from the host
  const Control* control;  // apply == 0: nothing changes
  uint32_t* amaxes =
      nullptr;  // scratch [2], cleared by the caller: moments with one scale a tensor (block 0)
  uint32_t* master_amax = nullptr;  // raised to the bits of the largest |BF16(w)|, also when nothing changes
  uint64_t rounding_key = 0;        // stochastic rounding of the masters: of element first_element + i
  int64_t first_element = 0;        // a multiple of 4
  const float* update_rms = nullptr;  // the rates are divided by what it exceeds 1 by
  Stream stream = nullptr;
};
void adamw(const AdamWArguments&);

OCTET_KERNELS_END
