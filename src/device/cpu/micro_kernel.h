// The innermost product of the CPU device: a tile of FP32 accumulators that stays in registers.
#pragma once
#include <cstdint>

namespace octet {

// c[i, j] (+)= sum over k of a[i, k] * b[k, j]; strides in elements.
// One chain of fused multiply-adds per element, starting from zero, over k = 1, 0, 3, 2, 5, 4, ...: pairs,
// the second first, because that is the order inside the BF16 instructions of x86. Add then adds the old c.
// Rows and columns of c are exactly the kernel's; the caller pads with zeros.
struct MicroTile {
  const float* a;
  int64_t a_row_stride, a_inner_stride;
  const float* b;
  int64_t b_inner_stride;
  float* c;
  int64_t c_row_stride;
  int64_t inner;
  enum class Write : uint8_t { Store, Add } write = Write::Store;
};

struct MicroKernel {
  int rows, columns;
  const char* instruction_set;
  void (*run)(const MicroTile&);
};

// The widest kernel for FP32 this machine runs. Kernels of different width give the same bits; only a machine
// without fused multiply-add differs (and only for F32 operands: products of BF16 values and of codes are
// exact).
const MicroKernel& micro_kernel();
// All of them, for tests. `count` is written.
const MicroKernel* micro_kernels(int& count);
// The kernel for BF16, twice as fast, or null. Its elements are pairs of BF16 along k, the first in the lower
// half: `inner` and the strides of MicroTile count pairs. Same bits as the FP32 kernels on the same values
// (tests), except that it takes subnormal numbers for zero.
const MicroKernel* pair_micro_kernel();

// to[j * to_stride + i] = from[i * from_stride + j] for i < rows, j < columns.
struct TransposeBlock {
  const float* from;
  int64_t from_stride;
  float* to;
  int64_t to_stride;
  int64_t rows, columns;
};
void transpose(const TransposeBlock& block);

}  // namespace octet
