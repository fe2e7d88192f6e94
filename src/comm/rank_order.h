// Reductions over the ranks' values in rank order: ((x0 + x1) + x2) + ..., so that every run gets the same
// bits.
#pragma once
#include <cstdint>
#include <span>

#include "comm/communicator.h"
#include "tensor/tensor.h"

namespace octet {

// Sum: F32, F64, BF16 (in FP32, rounded once), U64. Max: F32 (NaN wins), U32.
bool can_reduce(DType dtype, Reduction reduction);

// out[i] = reduction over r of sources[r][i]; `out` may be one of the sources.
void reduce_in_rank_order(DType dtype, Reduction reduction, std::span<const void* const> sources, void* out,
                          int64_t count);

}  // namespace octet
