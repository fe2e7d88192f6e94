// A product as cuBLASLt is asked for it: plain data, made and checked without a GPU.
//
// cuBLASLt counts in column-major matrices, and a row-major [R, C] is a column-major [C, R]. So
// out[M, N] = a b^T becomes out^T[N, M] = b a^T: its first operand is our b, its m is our N. Codes are stored
// [outer, inner], which makes the first operand transposed and the second not ("TN"), the one layout that FP8
// has on every GPU.
#pragma once
#include <cstdint>
#include <string>

#include "device/device.h"

namespace octet {

// None: a factor of one. Tensor: one number. Vector: one a row of the operand as we list it. Vectors128 and
// Squares128: of blocks, in the layouts of numerics/block_scales.h.
enum class ScaleMode : uint8_t { None, Tensor, Vector, Vectors128, Squares128 };

struct MatrixKey {
  DType type = DType::F32;
  int64_t rows = 0, columns = 0;  // column-major, as stored; the leading dimension is `rows`
  bool transposed = false;        // what the product reads is its transpose
  ScaleMode scale = ScaleMode::None;
  // Bytes that divide the address of every column: what the leading dimension leaves of 16.
  int alignment = 16;
  auto operator<=>(const MatrixKey&) const = default;
};

struct MatmulPlanKey {
  int64_t m = 0, n = 0, k = 0;  // cuBLASLt's: our N, our M, our K
  MatrixKey first, second, out;
  bool accumulate = false;
  bool fast_accumulation = false;  // FP8: partial sums stay in the tensor cores' own precision
  auto operator<=>(const MatmulPlanKey&) const = default;
};

// One line that says everything: for messages, and what the plan cache files a choice under.
std::string to_string(const MatmulPlanKey& key);

// Outer scales of a product. Library: as vectors, in its own epilogue. Kernel: the product is left in FP32
// and a kernel of ours applies the factors.
enum class OuterScales : uint8_t { None, Library, Kernel };

struct MatmulRoute {
  MatmulPlanKey key;
  OuterScales outer = OuterScales::None;
  // What the call needs beside the library's own workspace: the FP32 product, or one operand's scale as a
  // vector (the library takes vectors on both sides or on none).
  size_t scratch_bytes = 0;
  std::string implementation;  // "cublaslt-fp8", for the proof of precision
};

struct GemmCapabilities {
  int capability = 90;               // compute capability, 90: 9.0
  size_t cublaslt_version = 130000;  // 13.0.0
};

// Scales of rows and of blocks in cuBLASLt: Hopper alone, from 12.9 on.  [cuBLAS documentation, 3.1.4]
bool has_fine_scales(const GemmCapabilities& gpu);

// Reads shapes and types, no data; scales by their granularity. Fast accumulation is a matter of codes: it is
// not in the key of any other product.
// Error(Hardware) for what the GPU or the library cannot do, Error(Usage) for FP8 shapes that are not
// aligned.
MatmulRoute route(const Matmul& matmul, const GemmCapabilities& gpu);

}  // namespace octet
