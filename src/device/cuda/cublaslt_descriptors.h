// A plan key as cuBLASLt's descriptors. Made without a GPU, and readable back.
#pragma once
#include <cublasLt.h>

#include "device/cuda/library.h"
#include "device/nvidia/matmul_key.h"

namespace octet {

// Error(Hardware): "WHAT: CUBLAS_STATUS_X", with the key when there is one.
void check_cublaslt(const CublasLt& library, cublasStatus_t status, const std::string& what);

class MatmulDescriptors {
 public:
  MatmulDescriptors(const CublasLt& library, const MatmulPlanKey& key);
  ~MatmulDescriptors();
  MatmulDescriptors(const MatmulDescriptors&) = delete;
  MatmulDescriptors& operator=(const MatmulDescriptors&) = delete;

  cublasLtMatmulDesc_t product() const { return product_; }
  cublasLtMatrixLayout_t first() const { return first_; }
  cublasLtMatrixLayout_t second() const { return second_; }
  cublasLtMatrixLayout_t out() const { return out_; }  // also the accumulator's: C and D are one matrix

  // Device pointers that multiply, as the key's modes say; null for an operand without.
  void set_scales(const float* first, const float* second) const;

 private:
  void destroy();
  template <class T>
  void set(cublasLtMatmulDescAttributes_t attribute, const T& value) const;
  cublasLtMatrixLayout_t make_layout(const MatrixKey& key) const;

  const CublasLt& library_;
  cublasLtMatmulDesc_t product_ = nullptr;
  cublasLtMatrixLayout_t first_ = nullptr, second_ = nullptr, out_ = nullptr;
};

// CUDA_R_8F_E4M3 of DType::E4M3, and so on.
cudaDataType_t cuda_type(DType type);

}  // namespace octet
