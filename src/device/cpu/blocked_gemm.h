// Matrix product with a fixed order of sums, for every operand type and orientation.
//
// The order, for each element of out, whatever the shape, the position, the tiling, the thread count:
//   total = ((c_0 + c_1) + c_2) + ...    c_i: 256 consecutive k (the last one fewer), ascending
//   c_i   = ... fma(a_2, b_2, fma(a_3, b_3, fma(a_0, b_0, fma(a_1, b_1, 0))))       pairs of k, the second
//   first out   = round(old + (total * inverse scale of a) * inverse scale of b)      old only when
//   accumulating
// everything in FP32, each step rounded once. Products of BF16 values and of codes are exact in FP32, so a
// GEMM on codes has the bits of the GEMM on the decoded values, and the kernel with BF16 instructions has the
// bits of the FP32 kernel (but for subnormal sums and values, which it takes for zero).
// Codes whose scales are of blocks are multiplied by them while they are packed, rounded to FP32 once: exact
// for powers of two. a and b above are then these values, and there is no other scale.
// Error: (256 + K / 256) * 2^-24 * sum |a b| to first order, before the rounding of the result.
#pragma once
#include <cstddef>

#include "device/device.h"

namespace octet {

inline constexpr int64_t gemm_inner_block = 256;

size_t blocked_gemm_bytes(int threads);
// "blocked-bf16" for BF16 values and codes on a machine with BF16 instructions, else "blocked-f32".
const char* blocked_gemm_name(const Matmul& matmul);
// `scratch`: blocked_gemm_bytes(threads), 64-byte aligned. The operands have been checked.
void blocked_gemm(const Matmul& matmul, int threads, std::byte* scratch);

}  // namespace octet
