// What the health monitor looks at. Specification: device/cpu/observation.cpp; order of sums:
// numerics/sums.h. Equal to the bit.
#pragma once
#include <cstdint>

#include "kernels/namespace.h"
#include "numerics/observation.h"
#include "numerics/recipe.h"

OCTET_KERNELS_BEGIN

// FP32, BF16 or codes [rows, width].
struct ObservedValues {
  const void* values;
  octet::Format format;
  int64_t rows, width;
  octet::InverseScales inverse_scales = {};  // of codes
};

// Two launches: rows, then one block over their sums.
struct TensorStatisticsArguments {
  ObservedValues x;
  int64_t first, columns, context;
  double* row_sums;    // [3, rows], written: sums of x, x^2, x^4
  double* sums;        // [4]: += kurtosis of rows, of sequences, x / columns, x^2 / columns
  uint32_t* extremes;  // [2]: raised to ordered bits of x, bits of |x|
  Stream stream = nullptr;
};
void tensor_statistics(const TensorStatisticsArguments&);

struct ChannelAmaxArguments {
  const void* x;  // [rows, columns]
  octet::Format storage;
  int64_t rows, columns;
  float* amax;  // [columns], raised
  Stream stream = nullptr;
};
void channel_amax(const ChannelAmaxArguments&);

struct RowCosinesArguments {
  ObservedValues x;  // [2 n, width]
  float* cosines;    // [n], written
  Stream stream = nullptr;
};
void row_cosines(const RowCosinesArguments&);

struct CastErrorArguments {
  const void* source;  // [rows, width]
  octet::Format storage;
  ObservedValues codes;
  double* row_sums;  // [2, rows], written: sums of x^2, of squared errors
  double* sums;      // [2]: += theirs
  Stream stream = nullptr;
};
void cast_error(const CastErrorArguments&);

OCTET_KERNELS_END
