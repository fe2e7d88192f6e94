// Operations that only look: what the health monitor asks of a step. None of their results reaches a weight.
// Sums are FP64, each row in the lanes of numerics/sums.h, rows likewise: the same bits on every device.
#pragma once
#include "numerics/observation.h"
#include "tensor/tensor.h"

namespace octet {

// Of the columns [first, first + columns) of x, with k of numerics/observation.h:
//   sums[0] += sum over rows of k(row)
//   sums[1] += sum over sequences, `context` rows each, of k(all their values)
//   sums[2] += (sum x) / columns,   sums[3] += (sum x^2) / columns: over the rows these are means
//   extremes[0] = max(extremes[0], ordered_bits(x)),   extremes[1] = max(extremes[1], bits of |x|)
struct TensorStatistics {
  Tensor x;                      // F32, BF16 or codes [rows, width]
  InverseScales inverse_scales;  // of codes; x is then code * inverse scale, in FP32
  int64_t first = 0, columns = 0;
  int64_t context = 0;  // divides the rows
  Tensor row_sums;      // F64, at least 3 a row: scratch
  Tensor sums;          // F64 [4]
  Tensor extremes;      // U32 [2]: zero before the first
};
TensorStatistics statistics_of(const Tensor& x);  // of all columns; one sequence

// amax[c] = max(amax[c], largest |x[:, c]|); NaN above infinity.
struct ChannelAmax {
  Tensor x;     // F32 or BF16 [rows, columns]
  Tensor amax;  // F32 [columns], not negative
};

// cosines[i] = cos(x[i, :], x[n + i, :]) for the first of 2 n rows; 0 where one of the two is zero.
struct RowCosines {
  Tensor x;  // F32, BF16 or codes [2 n, width]
  InverseScales inverse_scales;
  Tensor cosines;  // F32 [n], written
};

// sums[0] += sum x^2,   sums[1] += sum (x - code * inverse scale)^2,   x the source rounded to BF16, as codes
// are made of it.
struct CastError {
  Tensor source;  // F32 or BF16 [rows, columns]
  Tensor codes;   // of the same shape
  InverseScales inverse_scales;
  Tensor row_sums = {};  // F64, at least 2 a row: scratch
  Tensor sums = {};      // F64 [2]
};

// Error(Internal) when types or shapes do not fit.
void check(const TensorStatistics& op);
void check(const ChannelAmax& op);
void check(const RowCosines& op);
void check(const CastError& op);

}  // namespace octet
