// Codes whose scale must be known before they are made, as FP8 attention's library calls leave them: the
// scale before the call, the site's books and the decoded values after it.
// The specification is device/cpu/codes_beforehand.cpp; equal to the bit.
#pragma once
#include <cstdint>

#include "kernels/namespace.h"
#include "numerics/float8_attention.h"

OCTET_KERNELS_BEGIN

// scale = the site's, or without history that for a start [numerics/float8_attention.h]; inverse_scale =
// 1 / scale; amaxes = 0.
enum class StartOf : uint8_t { Output, ScoreGradient, QkvGradient };
struct ScaleBeforehandArguments {
  octet::Cast cast;
  const float* site_scale;  // [1] or null
  StartOf start_of;
  octet::GradientStart start = {};                // of the gradients
  const float* qkv_inverse_scale;                 // [1], of E4M3 codes
  const float* gradient_inverse_scale = nullptr;  // [1], of dO's E5M2 codes; of the gradients
  float* scale;                                   // [1], written
  float* inverse_scale = nullptr;                 // [1], written, or null
  float* amaxes;                                  // [amax_count], written
  int amax_count = 1;
  Stream stream = nullptr;
};
void scale_beforehand(const ScaleBeforehandArguments&);

// inverse_scale = 1 / scale, or NaN unless all amaxes are finite; the site learns that and the largest amax.
struct RecordBeforehandArguments {
  const float* scale;   // [1]
  const float* amaxes;  // [amax_count]
  int amax_count = 1;
  const float* other_amax = nullptr;    // [1] or null: must be finite too, is not recorded
  float* inverse_scale;                 // [1], written
  float* site_inverse_scale = nullptr;  // null: not there
  float* site_amax = nullptr;           // max-ed in; NaN counts as infinity
  Stream stream = nullptr;
};
void record_beforehand(const RecordBeforehandArguments&);

// to[i] = codes[i] * *inverse_scale, rounded to storage.
struct DecodeArguments {
  const uint8_t* codes;
  octet::Format format;  // E4M3 or E5M2
  const float* inverse_scale;
  void* to;
  octet::Format storage;  // FP32 or BF16
  int64_t count;
  Stream stream = nullptr;
};
void decode(const DecodeArguments&);

OCTET_KERNELS_END
