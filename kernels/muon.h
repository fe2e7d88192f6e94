// Muon's operations beside its products. Specification and equations: device/cpu/muon.cpp. Equal to the bit.
#pragma once
#include <cstdint>

#include "kernels/gradient_norm.h"
#include "kernels/masters.h"
#include "kernels/moments.h"
#include "kernels/namespace.h"
#include "numerics/recipe.h"

OCTET_KERNELS_BEGIN

struct MuonMomentumArguments {
  const void* gradient;
  octet::Format gradient_storage;  // FP32 or BF16
  MomentArguments first;
  void* direction;
  octet::Format direction_storage;  // FP32 or BF16
  int64_t count;
  float momentum;
  const Control* control;    // apply == 0: nothing changes
  uint32_t* amax = nullptr;  // scratch [1], cleared by the caller: a momentum with one scale (block 0)
  Stream stream = nullptr;
};
void muon_momentum(const MuonMomentumArguments&);

// x = x * muon_factor(sum of partial)
struct NormalizeArguments {
  void* x;
  octet::Format storage;
  int64_t count;
  const double* partial;  // [norm_pieces(count)], summed in the lanes of numerics/sums.h
  Stream stream = nullptr;
};
void normalize(const NormalizeArguments&);

// out = alpha * x + beta * y
struct WeightedSumArguments {
  const void *x, *y;
  void* out;  // may be x or y
  octet::Format storage;
  int64_t count;
  float alpha, beta;
  Stream stream = nullptr;
};
void weighted_sum(const WeightedSumArguments&);

// w = w - (decay * w + rate * direction)
struct MuonUpdateArguments {
  MasterArguments master;
  const void* direction;
  octet::Format direction_storage;
  int64_t count;
  float decay, rate;
  const Control* control;           // apply == 0: nothing changes
  uint32_t* master_amax = nullptr;  // as AdamWArguments'
  uint64_t rounding_key = 0;
  int64_t first_element = 0;  // a multiple of 4
  Stream stream = nullptr;
};
void muon_update(const MuonUpdateArguments&);

OCTET_KERNELS_END
