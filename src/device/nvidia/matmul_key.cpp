#include "device/nvidia/matmul_key.h"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>

#include "base/error.h"
#include "device/products.h"

namespace octet {

namespace {

// Ada; Octet's codes are the hardware's, so there is nothing to emulate with before it.
constexpr int first_fp8_capability = 89;
constexpr int fine_scales_capability = 90;
constexpr size_t fine_scales_version = 120900;

bool is_code(const Operand& x) { return x.values.dtype == DType::E4M3 || x.values.dtype == DType::E5M2; }

int alignment_of(int64_t rows, DType type) {
  return static_cast<int>(std::gcd(rows * static_cast<int64_t>(size_of(type)), int64_t{16}));
}

MatrixKey matrix(DType type, int64_t rows, int64_t columns) {
  MatrixKey key;
  key.type = type;
  key.rows = rows;
  key.columns = columns;
  key.alignment = alignment_of(rows, type);
  return key;
}

// Row-major [R, C] read as column-major [C, R].
MatrixKey matrix(const Operand& x) { return matrix(x.values.dtype, x.values.columns(), x.values.rows()); }

const char* text(ScaleMode mode) {
  switch (mode) {
    case ScaleMode::Tensor:
      return " tensor-scale";
    case ScaleMode::Vector:
      return " outer-scale";
    case ScaleMode::Vectors128:
      return " 1x128-scales";
    case ScaleMode::Squares128:
      return " 128x128-scales";
    default:
      return "";
  }
}

std::string text(const MatrixKey& key) {
  return fmt::format("{}[{}x{}]{}{}{}", name_of(key.type), key.rows, key.columns, key.transposed ? "T" : "N",
                     text(key.scale),
                     key.alignment == 16 ? std::string() : fmt::format(" align{}", key.alignment));
}

// What a size of the product is called in a configuration.
std::string inner_size_keys(GemmClass c) {
  switch (c) {
    case GemmClass::Wgrad:
    case GemmClass::HeadWgrad:
      return "the tokens of a micro-batch: batch.micro x model.context";
    case GemmClass::HeadDgrad:
      return "model.vocabulary";
    case GemmClass::HeadFprop:
      return "model.width";
    default:
      return "model.width, model.ffn_width or model.head_width";
  }
}
std::string column_keys(GemmClass c) {
  return c == GemmClass::HeadFprop ? "model.vocabulary" : "model.width, model.ffn_width or model.head_width";
}

void require_multiple(const Matmul& m, const char* what, int64_t size, int64_t factor,
                      const std::string& keys) {
  if (size % factor == 0) return;
  throw Error(ExitCode::Usage,
              fmt::format("{} in FP8: {} {} is not a multiple of {} (a {} {}, b {} {}, out {} {})",
                          name_of(m.gemm_class), what, size, factor, name_of(m.a.values.dtype),
                          to_string(m.a.values.shape), name_of(m.b.values.dtype), to_string(m.b.values.shape),
                          name_of(m.out.dtype), to_string(m.out.shape)),
              fmt::format("change {}, or set precision.recipe to bf16", keys));
}

// FP8 kernels read 16 bytes at a time: addresses and leading dimensions.
void check_codes(const Matmul& m, const GemmCapabilities& gpu) {
  if (gpu.capability < first_fp8_capability)
    throw Error(ExitCode::Hardware,
                fmt::format("FP8 products need compute capability 8.9 (Ada), this GPU has {}.{}",
                            gpu.capability / 10, gpu.capability % 10),
                "set precision.recipe to bf16");
  require_multiple(m, "the inner size", inner_size(m.a), 16, inner_size_keys(m.gemm_class));
  require_multiple(m, "the result's row", m.out.columns(), 16 / static_cast<int64_t>(size_of(m.out.dtype)),
                   column_keys(m.gemm_class));
}

// Scales of blocks: both outer sizes in fours.  [cuBLAS documentation, 3.1.4]
void check_blocks(const Matmul& m, const GemmCapabilities& gpu) {
  if (!is_blocks(m.a.granularity)) return;
  if (!has_fine_scales(gpu))
    throw Error(
        ExitCode::Hardware,
        fmt::format("{} with scales of blocks of 128 values (precision.scaling blockwise) needs compute "
                    "capability 9.0 (Hopper) and cuBLASLt 12.9; this GPU has {}.{}, cuBLASLt {}.{}",
                    name_of(m.gemm_class), gpu.capability / 10, gpu.capability % 10,
                    gpu.cublaslt_version / 10000, gpu.cublaslt_version / 100 % 100),
        "set precision.scaling to rowwise, delayed or current (precision.recipe torchao-rowwise, fp8, ...)");
  const std::string keys = inner_size_keys(GemmClass::Wgrad);
  require_multiple(m, "the number of the result's rows", m.out.rows(), 4,
                   m.gemm_class == GemmClass::Wgrad || m.gemm_class == GemmClass::HeadWgrad
                       ? column_keys(m.gemm_class)
                       : keys);
  require_multiple(m, "the result's row", m.out.columns(), 4, column_keys(m.gemm_class));
}

ScaleMode scale_mode(const Operand& x, OuterScales outer) {
  if (!is_code(x)) return ScaleMode::None;
  if (x.granularity == ScaleGranularity::Vectors) return ScaleMode::Vectors128;
  if (x.granularity == ScaleGranularity::Squares) return ScaleMode::Squares128;
  if (outer == OuterScales::Library) return ScaleMode::Vector;
  if (x.granularity == ScaleGranularity::Outer) return ScaleMode::None;  // the kernel's
  return ScaleMode::Tensor;
}

OuterScales outer_scales(const Matmul& m, const GemmCapabilities& gpu) {
  const auto outer = [](const Operand& x) { return is_code(x) && x.granularity == ScaleGranularity::Outer; };
  if (!outer(m.a) && !outer(m.b)) return OuterScales::None;
  return has_fine_scales(gpu) ? OuterScales::Library : OuterScales::Kernel;
}

size_t scratch_bytes(const Matmul& m, OuterScales outer) {
  switch (outer) {
    case OuterScales::Kernel:
      return static_cast<size_t>(m.out.elements()) * sizeof(float);
    case OuterScales::Library:
      if (m.a.granularity == ScaleGranularity::Tensor)
        return static_cast<size_t>(outer_size(m.a)) * sizeof(float);
      if (m.b.granularity == ScaleGranularity::Tensor)
        return static_cast<size_t>(outer_size(m.b)) * sizeof(float);
      return 0;
    default:
      return 0;
  }
}

std::string implementation(const Matmul& m, OuterScales outer) {
  if (!is_code(m.a)) return m.a.values.dtype == DType::BF16 ? "cublaslt-bf16" : "cublaslt-f32";
  if (is_blocks(m.a.granularity)) return "cublaslt-fp8-blocks";
  switch (outer) {
    case OuterScales::Library:
      return "cublaslt-fp8-outer";
    case OuterScales::Kernel:
      return "cublaslt-fp8+factors";
    default:
      return "cublaslt-fp8";
  }
}

}  // namespace

std::string to_string(const MatmulPlanKey& key) {
  return fmt::format("m{} n{} k{} {} x {} -> {}{}{}", key.m, key.n, key.k, text(key.first), text(key.second),
                     text(key.out), key.accumulate ? " accumulate" : "",
                     key.fast_accumulation ? " fast" : "");
}

bool has_fine_scales(const GemmCapabilities& gpu) {
  return gpu.capability == fine_scales_capability && gpu.cublaslt_version >= fine_scales_version;
}

MatmulRoute route(const Matmul& m, const GemmCapabilities& gpu) {
  check_shapes(m);
  MatmulRoute made;
  if (is_code(m.a)) check_codes(m, gpu);
  check_blocks(m, gpu);
  made.outer = outer_scales(m, gpu);
  made.scratch_bytes = scratch_bytes(m, made.outer);
  made.implementation = implementation(m, made.outer);

  MatmulPlanKey& key = made.key;
  key.m = m.out.columns();
  key.n = m.out.rows();
  key.k = inner_size(m.a);
  key.first = matrix(m.b);
  key.first.transposed = !m.b.transposed;
  key.first.scale = scale_mode(m.b, made.outer);
  key.second = matrix(m.a);
  key.second.transposed = m.a.transposed;
  key.second.scale = scale_mode(m.a, made.outer);
  const bool kernel = made.outer == OuterScales::Kernel;  // it also accumulates and rounds
  key.out = matrix(kernel ? DType::F32 : m.out.dtype, key.m, key.n);
  key.accumulate = m.accumulate && !kernel;
  key.fast_accumulation = is_code(m.a) && m.fast_accumulation;
  if (m.a.values.dtype == DType::F32 && m.out.dtype == DType::BF16)
    throw Error(ExitCode::Hardware,
                fmt::format("cuBLASLt has no F32 product with a BF16 result: {}", to_string(key)),
                "set precision.weight_gradient to fp32 where precision.storage is fp32");
  return made;
}

}  // namespace octet
