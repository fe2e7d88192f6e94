#include "device/cuda/cublaslt_descriptors.h"

#include "device/products_of_recipes.h"
#include "libraries.h"

using namespace octet;

namespace {

constexpr GemmCapabilities hopper{90, 130100};

template <class T>
T read(const CublasLt& library, const MatmulDescriptors& d, cublasLtMatmulDescAttributes_t attribute) {
  T value{};
  size_t written = 0;
  REQUIRE(library.cublasLtMatmulDescGetAttribute(d.product(), attribute, &value, sizeof value, &written) ==
          CUBLAS_STATUS_SUCCESS);
  CHECK(written == sizeof value);
  return value;
}

template <class T>
T read(const CublasLt& library, cublasLtMatrixLayout_t layout, cublasLtMatrixLayoutAttribute_t attribute) {
  T value{};
  size_t written = 0;
  REQUIRE(library.cublasLtMatrixLayoutGetAttribute(layout, attribute, &value, sizeof value, &written) ==
          CUBLAS_STATUS_SUCCESS);
  return value;
}

void check_layout(const CublasLt& library, cublasLtMatrixLayout_t layout, const Tensor& row_major) {
  CHECK(read<int64_t>(library, layout, CUBLASLT_MATRIX_LAYOUT_ROWS) == row_major.columns());
  CHECK(read<int64_t>(library, layout, CUBLASLT_MATRIX_LAYOUT_COLS) == row_major.rows());
  CHECK(read<int64_t>(library, layout, CUBLASLT_MATRIX_LAYOUT_LD) == row_major.columns());
  CHECK(read<int32_t>(library, layout, CUBLASLT_MATRIX_LAYOUT_TYPE) == cuda_type(row_major.dtype));
  CHECK(read<int32_t>(library, layout, CUBLASLT_MATRIX_LAYOUT_ORDER) == CUBLASLT_ORDER_COL);
}

}  // namespace

TEST_CASE("cuBLASLt reads back what each product of each recipe is") {
  const auto library = installed(open_cublaslt);
  if (!library) return;
  for (const Matmul& m : products_of_recipes()) {
    const MatmulPlanKey key = route(m, hopper).key;
    INFO(to_string(key));
    const MatmulDescriptors d(*library, key);
    check_layout(*library, d.first(), m.b.values);
    check_layout(*library, d.second(), m.a.values);
    check_layout(*library, d.out(), m.out);
    CHECK(read<int32_t>(*library, d, CUBLASLT_MATMUL_DESC_COMPUTE_TYPE) == CUBLAS_COMPUTE_32F);
    CHECK(read<int32_t>(*library, d, CUBLASLT_MATMUL_DESC_SCALE_TYPE) == CUDA_R_32F);
    CHECK(read<int32_t>(*library, d, CUBLASLT_MATMUL_DESC_TRANSA) ==
          (m.b.transposed ? CUBLAS_OP_N : CUBLAS_OP_T));
    CHECK(read<int32_t>(*library, d, CUBLASLT_MATMUL_DESC_TRANSB) ==
          (m.a.transposed ? CUBLAS_OP_T : CUBLAS_OP_N));
    const bool fast = size_of(m.a.values.dtype) == 1 && m.gemm_class == GemmClass::Fprop;
    CHECK(read<int8_t>(*library, d, CUBLASLT_MATMUL_DESC_FAST_ACCUM) == (fast ? 1 : 0));
  }
}

TEST_CASE("scales are pointers to one number or to vectors, as the key says") {
  const auto library = installed(open_cublaslt);
  if (!library) return;
  Matmul m = product(GemmClass::Fprop, DType::E4M3, DType::E4M3, DType::BF16);
  const float scales[2] = {1.0f, 2.0f};
  const auto check = [&](int32_t mode) {
    const MatmulDescriptors d(*library, route(m, hopper).key);
    d.set_scales(&scales[0], &scales[1]);
    CHECK(read<int32_t>(*library, d, CUBLASLT_MATMUL_DESC_A_SCALE_MODE) == mode);
    CHECK(read<int32_t>(*library, d, CUBLASLT_MATMUL_DESC_B_SCALE_MODE) == mode);
    CHECK(read<const float*>(*library, d, CUBLASLT_MATMUL_DESC_A_SCALE_POINTER) == &scales[0]);
    CHECK(read<const float*>(*library, d, CUBLASLT_MATMUL_DESC_B_SCALE_POINTER) == &scales[1]);
  };
  check(CUBLASLT_MATMUL_MATRIX_SCALE_SCALAR_32F);
  m.a.granularity = ScaleGranularity::Outer;
  check(3);  // CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F, in the header from 12.9 on
}

TEST_CASE("scales of blocks have cuBLASLt's modes of their own, one for each operand") {
  const auto library = installed(open_cublaslt);
  if (!library) return;
  Matmul m = product(GemmClass::Fprop, DType::E4M3, DType::E4M3, DType::BF16);
  m.fast_accumulation = false;
  m.a.granularity = ScaleGranularity::Vectors;
  const auto modes = [&](ScaleGranularity b) {
    m.b.granularity = b;
    const MatmulDescriptors d(*library, route(m, hopper).key);
    CHECK(read<int8_t>(*library, d, CUBLASLT_MATMUL_DESC_FAST_ACCUM) == 0);
    return std::pair(read<int32_t>(*library, d, CUBLASLT_MATMUL_DESC_A_SCALE_MODE),
                     read<int32_t>(*library, d, CUBLASLT_MATMUL_DESC_B_SCALE_MODE));
  };
  // VEC128_32F is 4, BLK128x128_32F is 5; our b is cuBLASLt's A.
  CHECK(modes(ScaleGranularity::Squares) == std::pair(5, 4));
  CHECK(modes(ScaleGranularity::Vectors) == std::pair(4, 4));
#if CUBLAS_VERSION >= 120900
  CHECK(CUBLASLT_MATMUL_MATRIX_SCALE_VEC128_32F == 4);
  CHECK(CUBLASLT_MATMUL_MATRIX_SCALE_BLK128x128_32F == 5);
#endif
}

TEST_CASE("a refused call is an error with cuBLASLt's own name for it") {
  const auto library = installed(open_cublaslt);
  if (!library) return;
  const Error error = error_of([&] { check_cublaslt(*library, CUBLAS_STATUS_NOT_SUPPORTED, "a product"); });
  CHECK(error.code() == ExitCode::Hardware);
  CHECK_THAT(error.what(), contains_text("a product: CUBLAS_STATUS_NOT_SUPPORTED"));
  CHECK_NOTHROW(check_cublaslt(*library, CUBLAS_STATUS_SUCCESS, "a product"));
}
