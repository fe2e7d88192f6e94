// out[c, r] = codes[r, c], one byte each: the column copy of codes that came over the wire.
#pragma once
#include <cstdint>

#include "kernels/namespace.h"

OCTET_KERNELS_BEGIN

struct TransposeArguments {
  const uint8_t* codes;  // [rows, columns]
  uint8_t* out;          // [columns, rows]
  int64_t rows, columns;
  Stream stream = nullptr;
};
void transpose(const TransposeArguments&);

OCTET_KERNELS_END
