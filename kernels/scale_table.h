// Once a step: amaxes into the ring, scales that follow earlier steps refreshed, amaxes and counters cleared.
// Specification: device/cpu/scale_table.cpp, numerics/scaling.h, numerics/adaptive_scaling.h. Equal to the
// bit.
#pragma once
#include <cstdint>

#include "kernels/namespace.h"
#include "numerics/recipe.h"

OCTET_KERNELS_BEGIN

struct ScaleTableArguments {
  int64_t sites;
  const octet::Cast* casts;  // device memory [sites]
  octet::DelayedScaling options;
  octet::AdaptiveScaling adaptive = {};
  int64_t newest;                       // step % window
  float* amax_history;                  // [window, sites]
  float *amax, *scale, *inverse_scale;  // [sites]
  uint64_t* counters;                   // [sites, 3]: elements, saturated, flushed
  const uint32_t* apply = nullptr;  // device memory [1]; 0: amax and counters are cleared only; null: applied
  Stream stream = nullptr;
};
void update_scale_table(const ScaleTableArguments&);

OCTET_KERNELS_END
