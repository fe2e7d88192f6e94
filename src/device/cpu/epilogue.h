// From FP32 sums to the stored result of a matrix product.
#pragma once
#include <cstdint>

#include "device/device.h"

namespace octet {

struct OutputRow {
  int64_t row, column, columns;
};
// out[row, column...] = round((sum * inverse scale of a) * inverse scale of b [+ old out]). `sum` is
// overwritten, `old` is scratch; both hold `columns` values.
void finish_row(const Matmul& matmul, const OutputRow& at, float* sum, float* old);

}  // namespace octet
