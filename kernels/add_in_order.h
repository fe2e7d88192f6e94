// sum[i] = ((sum[i] + sources[0][i]) + sources[1][i]) + ... Specification: device/cpu/add_in_order.cpp. Equal
// to the bit.
#pragma once
#include <cstdint>

#include "kernels/namespace.h"
#include "numerics/recipe.h"

OCTET_KERNELS_BEGIN

// Any alignment of the types.
struct AddInOrderArguments {
  float* sum;             // [count]
  const void* values;     // [sources, count]
  octet::Format storage;  // of the values: FP32 or BF16
  int64_t sources, count;
  Stream stream = nullptr;
};
void add_in_order(const AddInOrderArguments&);

struct AddDoublesInOrderArguments {
  double* sum;           // [count]
  const double* values;  // [sources, count]
  int64_t sources, count;
  Stream stream = nullptr;
};
void add_doubles_in_order(const AddDoublesInOrderArguments&);

OCTET_KERNELS_END
