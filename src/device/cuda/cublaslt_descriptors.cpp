#include "device/cuda/cublaslt_descriptors.h"

#include <fmt/format.h>

#include "base/error.h"

namespace octet {

namespace {

// In the header from 12.9 on; earlier libraries are not asked for it (matmul_key.cpp).
constexpr int32_t scale_outer_vector = 3, scale_vectors_128 = 4, scale_squares_128 = 5;

int32_t scale_attribute(ScaleMode mode) {
  switch (mode) {
    case ScaleMode::Vector:
      return scale_outer_vector;
    case ScaleMode::Vectors128:
      return scale_vectors_128;
    case ScaleMode::Squares128:
      return scale_squares_128;
    default:
      return static_cast<int32_t>(CUBLASLT_MATMUL_MATRIX_SCALE_SCALAR_32F);
  }
}

}  // namespace

void check_cublaslt(const CublasLt& library, cublasStatus_t status, const std::string& what) {
  if (status == CUBLAS_STATUS_SUCCESS) return;
  throw Error(ExitCode::Hardware, fmt::format("{}: {}", what, library.cublasLtGetStatusName(status)),
              "run octet doctor: it compares the driver, cuBLASLt and the GPU");
}

cudaDataType_t cuda_type(DType type) {
  switch (type) {
    case DType::F32:
      return CUDA_R_32F;
    case DType::BF16:
      return CUDA_R_16BF;
    case DType::E4M3:
      return CUDA_R_8F_E4M3;
    case DType::E5M2:
      return CUDA_R_8F_E5M2;
    default:
      throw Error(ExitCode::Internal, fmt::format("{} is not a type of products", name_of(type)));
  }
}

template <class T>
void MatmulDescriptors::set(cublasLtMatmulDescAttributes_t attribute, const T& value) const {
  check_cublaslt(library_, library_.cublasLtMatmulDescSetAttribute(product_, attribute, &value, sizeof value),
                 "describing a product to cuBLASLt");
}

cublasLtMatrixLayout_t MatmulDescriptors::make_layout(const MatrixKey& key) const {
  cublasLtMatrixLayout_t layout = nullptr;
  check_cublaslt(
      library_,
      library_.cublasLtMatrixLayoutCreate(&layout, cuda_type(key.type), static_cast<uint64_t>(key.rows),
                                          static_cast<uint64_t>(key.columns), key.rows),
      "describing a matrix to cuBLASLt");
  return layout;
}

MatmulDescriptors::MatmulDescriptors(const CublasLt& library, const MatmulPlanKey& key) : library_(library) {
  try {
    // CUBLAS_COMPUTE_32F: no TF32 for FP32 operands.
    check_cublaslt(library_, library_.cublasLtMatmulDescCreate(&product_, CUBLAS_COMPUTE_32F, CUDA_R_32F),
                   "describing a product to cuBLASLt");
    set(CUBLASLT_MATMUL_DESC_TRANSA, key.first.transposed ? CUBLAS_OP_T : CUBLAS_OP_N);
    set(CUBLASLT_MATMUL_DESC_TRANSB, key.second.transposed ? CUBLAS_OP_T : CUBLAS_OP_N);
    set(CUBLASLT_MATMUL_DESC_FAST_ACCUM, static_cast<int8_t>(key.fast_accumulation));
    if (key.first.scale != ScaleMode::None)
      set(CUBLASLT_MATMUL_DESC_A_SCALE_MODE, scale_attribute(key.first.scale));
    if (key.second.scale != ScaleMode::None)
      set(CUBLASLT_MATMUL_DESC_B_SCALE_MODE, scale_attribute(key.second.scale));
    first_ = make_layout(key.first);
    second_ = make_layout(key.second);
    out_ = make_layout(key.out);
  } catch (...) {
    destroy();
    throw;
  }
}

MatmulDescriptors::~MatmulDescriptors() { destroy(); }

void MatmulDescriptors::destroy() {
  for (cublasLtMatrixLayout_t layout : {first_, second_, out_})
    if (layout != nullptr) library_.cublasLtMatrixLayoutDestroy(layout);
  if (product_ != nullptr) library_.cublasLtMatmulDescDestroy(product_);
}

void MatmulDescriptors::set_scales(const float* first, const float* second) const {
  set(CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, first);
  set(CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, second);
}

}  // namespace octet
