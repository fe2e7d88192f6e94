// Where a kernel leaves a result [rows, columns]: a CastTarget as a kernel sees it.
//
// A producer writes `high` and, in the same pass, the amaxes the scales are made of. When the scale is known
// beforehand (delayed scaling) it also writes the row codes; all other codes are made by encode() [cast.h]
// from `high`, by the same rule: codes come from the value rounded to BF16.
//
// Amaxes are the bits of the largest magnitude after that rounding, max-ed in with integer atomics, so that
// their value does not depend on order: infinity and NaN sort above every number.
#pragma once
#include <cstdint>

#include "kernels/namespace.h"
#include "numerics/recipe.h"

OCTET_KERNELS_BEGIN

struct Output {
  void* high = nullptr;                         // `storage` [rows, columns]; null: not wanted, then `row` is
  octet::Format storage = octet::Format::BF16;  // FP32 or BF16
  // Row codes, when the scale is known before the pass; null otherwise. Codes are written when *scale is not
  // 0 (0: the site has no history yet, encode() follows).
  uint8_t* row = nullptr;
  octet::Format format = octet::Format::E4M3;
  const float* scale = nullptr;     // device memory, [1]
  uint32_t* amax = nullptr;         // [1], max-ed in; null: not wanted
  uint32_t* row_amax = nullptr;     // [rows], written; null: not wanted
  uint32_t* column_amax = nullptr;  // [columns], max-ed in (the caller clears it); null: not wanted
};

OCTET_KERNELS_END
