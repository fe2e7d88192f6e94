// What NCCL is asked for, as plain data.
#pragma once
#include <nccl.h>

#include "comm/communicator.h"
#include "tensor/tensor.h"

namespace octet {

// Of a reduction; Error(Internal) for what NCCL cannot do as communicator.h promises: its maximum of floats
// is fmaxf(), which loses NaN, so a maximum of floats that are not negative is asked for by their bits (U32).
ncclDataType_t nccl_reduced_type(DType dtype, Reduction reduction);
ncclRedOp_t nccl_operator(Reduction reduction);

// Bytes this rank sends of a tensor of `bytes` among `ranks`, as the smallest algorithm does.
uint64_t reduce_scatter_traffic(uint64_t bytes, int ranks);  // also all_gather and all_to_all, of the whole
uint64_t all_reduce_traffic(uint64_t bytes, int ranks);

}  // namespace octet
