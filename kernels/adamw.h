// AdamW on FP32 masters with moments in FP32, BF16 or FP8. Specification and equations: device/cpu/adamw.cpp,
// numerics/moments.h. Equal to the bit.
#pragma once
#include <cstdint>

#include "kernels/gradient_norm.h"
#include "kernels/namespace.h"
#include "numerics/recipe.h"

OCTET_KERNELS_BEGIN

struct MomentArguments {
  void* values;
  octet::Format format;      // FP32, BF16, E4M3 or E5M2
  float* inverse = nullptr;  // [ceil(count / block)], block 0: [1]
  int block = 128;
};
struct AdamWArguments {
  float* master;
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
  Stream stream = nullptr;
};
void adamw(const AdamWArguments&);

OCTET_KERNELS_END
