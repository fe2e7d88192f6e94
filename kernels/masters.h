// Masters as they are stored, read as the model sees them and made from numbers in FP32. Specification:
// device/cpu/stored_master.cpp, numerics/masters.h. Equal to the bit.
#pragma once
#include <cstdint>

#include "kernels/gradient_norm.h"
#include "kernels/namespace.h"
#include "numerics/recipe.h"

OCTET_KERNELS_BEGIN

struct MasterArguments {
  void* values;  // FP32, BF16 or FP16
  octet::MasterFormat format = octet::MasterFormat::FP32;
  uint16_t* rest = nullptr;  // remainder or compensation
  float* inverse = nullptr;  // [ceil(count / master_block)]
};

// to[i] = the number of master i, in FP32 or rounded to BF16.
struct ReadMastersArguments {
  MasterArguments master;
  void* to;
  octet::Format storage;
  int64_t count;
  Stream stream = nullptr;
};
void read_masters(const ReadMastersArguments&);

// Masters of the numbers `from`, to nearest.
struct WriteMastersArguments {
  const float* from;
  MasterArguments master;
  int64_t count;
  Stream stream = nullptr;
};
void write_masters(const WriteMastersArguments&);

// Where a step is not applied (control->apply == 0): amax is raised to the bits of the largest |BF16(w)|, as
// an update leaves it.
struct MeasureUnchangedArguments {
  MasterArguments master;
  int64_t count;
  const Control* control;
  uint32_t* amax;
  Stream stream = nullptr;
};
void measure_unchanged(const MeasureUnchangedArguments&);

OCTET_KERNELS_END
