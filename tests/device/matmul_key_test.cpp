#include "device/nvidia/matmul_key.h"

#include <tuple>
#include <utility>
#include <vector>

#include "device/products_of_recipes.h"
#include "error_of.h"

using namespace octet;

namespace {

constexpr GemmCapabilities ampere{80, 130100}, ada{89, 130100}, hopper{90, 130100}, blackwell{100, 130100};

// What cuBLASLt would compute from a key, on column-major matrices of small whole numbers.
class ColumnMajor {
 public:
  explicit ColumnMajor(const MatmulPlanKey& key) : key_(key) {}
  double element(const std::vector<double>& first, const std::vector<double>& second, int64_t i,
                 int64_t j) const {
    double sum = 0;
    for (int64_t k = 0; k < key_.k; ++k) sum += at(key_.first, first, i, k) * at(key_.second, second, k, j);
    return sum;
  }

 private:
  static double at(const MatrixKey& matrix, const std::vector<double>& values, int64_t row, int64_t column) {
    return values[static_cast<size_t>(matrix.transposed ? column + row * matrix.rows
                                                        : row + column * matrix.rows)];
  }
  MatmulPlanKey key_;
};

std::vector<double> small_numbers(int64_t count, int64_t seed) {
  std::vector<double> values;
  for (int64_t i = 0; i < count; ++i) values.push_back(static_cast<double>((i * 31 + seed) % 17 - 8));
  return values;
}

double element(const Operand& x, const std::vector<double>& values, int64_t outer, int64_t inner) {
  return values[static_cast<size_t>(x.transposed ? inner * x.values.columns() + outer
                                                 : outer * x.values.columns() + inner)];
}

}  // namespace

TEST_CASE("the column-major product of the key is our row-major one, for every storage of the operands") {
  for (const bool a_transposed : {false, true}) {
    for (const bool b_transposed : {false, true}) {
      Matmul m;
      m.a = operand(DType::F32, 5, 3, a_transposed);
      m.b = operand(DType::F32, 4, 3, b_transposed);
      m.out = {nullptr, DType::F32, {5, 4}};
      const MatmulPlanKey key = route(m, hopper).key;
      REQUIRE(key.m == 4);
      REQUIRE(key.n == 5);
      REQUIRE(key.k == 3);
      const std::vector<double> a = small_numbers(15, 1), b = small_numbers(15, 5);
      const ColumnMajor columns(key);
      int differences = 0;
      for (int64_t i = 0; i < 5; ++i) {
        for (int64_t j = 0; j < 4; ++j) {
          double expected = 0;
          for (int64_t k = 0; k < 3; ++k) expected += element(m.a, a, i, k) * element(m.b, b, j, k);
          CHECK(columns.element(b, a, j, i) == expected);  // out[i, j] row-major is (j, i) column-major
          differences += i < 4 && columns.element(b, a, i, j) != expected;
        }
      }
      CHECK(differences > 0);  // a result the other way round would be seen
    }
  }
}

TEST_CASE("products of codes are TN on every GPU, and only fprop accumulates fast") {
  for (const Matmul& m : products_of_recipes()) {
    const MatmulRoute made = route(m, hopper);
    const bool codes = size_of(m.a.values.dtype) == 1;
    INFO(to_string(made.key));
    if (codes) {
      CHECK(made.key.first.transposed);
      CHECK_FALSE(made.key.second.transposed);
      CHECK(made.key.first.scale == ScaleMode::Tensor);
      CHECK(made.key.second.scale == ScaleMode::Tensor);
      CHECK(made.implementation == "cublaslt-fp8");
    } else {
      CHECK(made.key.first.scale == ScaleMode::None);
      CHECK(made.implementation == (m.a.values.dtype == DType::BF16 ? "cublaslt-bf16" : "cublaslt-f32"));
    }
    CHECK(made.key.fast_accumulation == (codes && m.gemm_class == GemmClass::Fprop));
    CHECK(made.key.accumulate == m.accumulate);
    CHECK(made.key.out.type == m.out.dtype);
    CHECK(made.scratch_bytes == 0);
  }
}

TEST_CASE("each class of GEMM accumulates as it is told, codes alone, and the text says which") {
  for (const GemmClass c : {GemmClass::Fprop, GemmClass::Dgrad, GemmClass::Wgrad}) {
    const DType a = c == GemmClass::Fprop ? DType::E4M3 : DType::E5M2;
    Matmul codes = product(c, a, DType::E4M3, DType::BF16),
           wide = product(c, DType::BF16, DType::BF16, DType::BF16);
    codes.fast_accumulation = wide.fast_accumulation = false;
    const MatmulPlanKey slow = route(codes, hopper).key, wide_slow = route(wide, hopper).key;
    CHECK_FALSE(slow.fast_accumulation);
    codes.fast_accumulation = wide.fast_accumulation = true;
    const MatmulPlanKey fast = route(codes, hopper).key;
    CHECK(fast.fast_accumulation);
    CHECK_THAT(to_string(fast), contains_text(" fast"));
    CHECK(to_string(fast) != to_string(slow));
    CHECK(route(wide, hopper).key == wide_slow);  // BF16 has no such choice
  }
}

TEST_CASE("outer scales ride in the library on Hopper, with the other operand's scale as a vector") {
  Matmul m = product(GemmClass::Fprop, DType::E4M3, DType::E4M3, DType::BF16);
  m.a.granularity = ScaleGranularity::Outer;
  const MatmulRoute made = route(m, hopper);
  CHECK(made.outer == OuterScales::Library);
  CHECK(made.key.first.scale == ScaleMode::Vector);
  CHECK(made.key.second.scale == ScaleMode::Vector);
  CHECK(made.scratch_bytes == 128 * sizeof(float));  // b has 128 rows
  CHECK(made.implementation == "cublaslt-fp8-outer");
  m.b.granularity = ScaleGranularity::Outer;
  CHECK(route(m, hopper).scratch_bytes == 0);
}

TEST_CASE("elsewhere a kernel applies outer scales to the FP32 product, and accumulates") {
  Matmul m = product(GemmClass::Wgrad, DType::E5M2, DType::E4M3, DType::BF16);
  m.b.granularity = ScaleGranularity::Outer;
  for (const GemmCapabilities& gpu :
       {ada, blackwell, GemmCapabilities{120, 130100}, GemmCapabilities{90, 120800}}) {
    const MatmulRoute made = route(m, gpu);
    CHECK(made.outer == OuterScales::Kernel);
    CHECK(made.key.first.scale == ScaleMode::None);     // b: the kernel's
    CHECK(made.key.second.scale == ScaleMode::Tensor);  // a: the library's
    CHECK(made.key.out.type == DType::F32);
    CHECK_FALSE(made.key.accumulate);
    CHECK(made.scratch_bytes == 256 * 128 * sizeof(float));
    CHECK(made.implementation == "cublaslt-fp8+factors");
  }
}

namespace {

Matmul in_blocks(GemmClass c, ScaleGranularity a, ScaleGranularity b, DType out = DType::BF16,
                 ProductShape shape = {256, 128, 64}) {
  Matmul m = product(c, DType::E4M3, DType::E4M3, out, shape);
  m.fast_accumulation = false;
  m.a.granularity = a;
  m.b.granularity = b;
  return m;
}
constexpr ScaleGranularity vectors = ScaleGranularity::Vectors, squares = ScaleGranularity::Squares;

}  // namespace

TEST_CASE("scales of blocks are the library's on Hopper: vectors of X and dY, squares of W") {
  const MatmulRoute made = route(in_blocks(GemmClass::Fprop, vectors, squares), hopper);
  CHECK(made.key.first.scale == ScaleMode::Squares128);
  CHECK(made.key.second.scale == ScaleMode::Vectors128);
  CHECK(made.key.first.transposed);
  CHECK_FALSE(made.key.second.transposed);
  CHECK_FALSE(made.key.fast_accumulation);
  CHECK(made.outer == OuterScales::None);
  CHECK(made.scratch_bytes == 0);
  CHECK(made.implementation == "cublaslt-fp8-blocks");
  CHECK_THAT(to_string(made.key), contains_text("128x128-scales x "));
  const MatmulPlanKey wgrad = route(in_blocks(GemmClass::Wgrad, vectors, vectors, DType::F32), hopper).key;
  CHECK(wgrad.first.scale == ScaleMode::Vectors128);
  CHECK(wgrad.second.scale == ScaleMode::Vectors128);
  CHECK(wgrad.accumulate);
}

TEST_CASE("every other GPU refuses scales of blocks, and says what else there is") {
  for (const GemmCapabilities& gpu :
       {ada, blackwell, GemmCapabilities{120, 130100}, GemmCapabilities{90, 120800}}) {
    const Error error = error_of([&] { route(in_blocks(GemmClass::Fprop, vectors, squares), gpu); });
    CHECK(error.code() == ExitCode::Hardware);
    CHECK_THAT(error.what(), contains_text("precision.scaling blockwise"));
    CHECK_THAT(error.what(), contains_text("compute capability 9.0 (Hopper)"));
    CHECK_THAT(error.hint(), contains_text("rowwise, delayed or current"));
  }
}

TEST_CASE("scales of blocks: what the library cannot take is refused before it is asked") {
  for (const auto& [c, shape, keys] :
       {std::tuple{GemmClass::Fprop, ProductShape{66, 128, 64}, "batch.micro"},
        std::tuple{GemmClass::Wgrad, ProductShape{66, 128, 64}, "model.width"}}) {
    const Matmul m = in_blocks(c, vectors, vectors, DType::F32, shape);
    const Error error = error_of([&] { route(m, hopper); });
    CHECK(error.code() == ExitCode::Usage);
    CHECK_THAT(error.what(), contains_text("rows 66 is not a multiple of 4"));
    CHECK_THAT(error.hint(), contains_text(keys));
  }
  Matmul fast = in_blocks(GemmClass::Fprop, vectors, squares);
  fast.fast_accumulation = true;
  CHECK(error_of([&] { route(fast, hopper); }).code() == ExitCode::Internal);
  CHECK(error_of([] { route(in_blocks(GemmClass::Fprop, squares, squares), hopper); }).code() ==
        ExitCode::Internal);
}

TEST_CASE("codes need Ada, and BF16 does not") {
  const Matmul codes = product(GemmClass::Fprop, DType::E4M3, DType::E4M3, DType::BF16);
  const Error error = error_of([&] { route(codes, ampere); });
  CHECK(error.code() == ExitCode::Hardware);
  CHECK_THAT(error.what(), contains_text("compute capability 8.9"));
  CHECK_THAT(error.hint(), contains_text("precision.recipe"));
  CHECK_NOTHROW(route(codes, ada));
  CHECK_NOTHROW(route(product(GemmClass::Fprop, DType::BF16, DType::BF16, DType::BF16), ampere));
}

TEST_CASE("shapes that FP8 cannot have name the size, the product and the keys to change") {
  struct Odd {
    GemmClass c;
    ProductShape shape;
    DType out;
    std::string what, keys;
  };
  const Odd odd[] = {{GemmClass::Fprop,
                      {64, 64, 72},
                      DType::BF16,
                      "the inner size 72 is not a multiple of 16",
                      "model.width"},
                     {GemmClass::Wgrad,
                      {64, 64, 100},
                      DType::F32,
                      "the inner size 100 is not a multiple of 16",
                      "batch.micro"},
                     {GemmClass::HeadFprop,
                      {64, 257, 64},
                      DType::BF16,
                      "the result's row 257 is not a multiple of 8",
                      "model.vocabulary"},
                     {GemmClass::Dgrad,
                      {64, 65, 64},
                      DType::F32,
                      "the result's row 65 is not a multiple of 4",
                      "model.width"}};
  for (const Odd& one : odd) {
    const Matmul m = product(one.c, DType::E4M3, DType::E4M3, one.out, one.shape);
    const Error error = error_of([&] { route(m, hopper); });
    CHECK(error.code() == ExitCode::Usage);
    CHECK_THAT(error.what(), contains_text(one.what));
    CHECK_THAT(error.what(), contains_text(to_string(m.a.values.shape)));
    CHECK_THAT(error.hint(), contains_text(one.keys));
    // BF16 has no such rule; its key carries what is left of the alignment.
    CHECK_NOTHROW(route(product(one.c, DType::BF16, DType::BF16, one.out, one.shape), hopper));
  }
}

TEST_CASE("alignment is what the leading dimension leaves") {
  const auto alignment = [](int64_t n) {
    return route(product(GemmClass::Fprop, DType::BF16, DType::BF16, DType::BF16, {16, n, 16}), hopper)
        .key.out.alignment;
  };
  CHECK(alignment(64) == 16);
  CHECK(alignment(68) == 8);
  CHECK(alignment(66) == 4);
  CHECK(alignment(65) == 2);
}

TEST_CASE("a product the library never has is refused with the whole key") {
  const Error error =
      error_of([] { route(product(GemmClass::Wgrad, DType::F32, DType::F32, DType::BF16), hopper); });
  CHECK(error.code() == ExitCode::Hardware);
  CHECK_THAT(error.what(),
             contains_text("m128 n256 k64 F32[128x64]N x F32[256x64]T -> BF16[128x256]N accumulate"));
}

TEST_CASE("a key's text tells apart whatever the key tells apart") {
  std::vector<MatmulPlanKey> keys;
  for (Matmul m : products_of_recipes()) {
    keys.push_back(route(m, hopper).key);
    if (size_of(m.a.values.dtype) > 1) continue;
    m.a.granularity = ScaleGranularity::Outer;
    keys.push_back(route(m, hopper).key);
    keys.push_back(route(m, blackwell).key);
    m.fast_accumulation = false;
    for (const auto& [a, b] : {std::pair{vectors, vectors}, std::pair{vectors, squares}}) {
      m.a.granularity = a;
      m.b.granularity = b;
      keys.push_back(route(m, hopper).key);
    }
  }
  for (const MatmulPlanKey& x : keys)
    for (const MatmulPlanKey& y : keys) CHECK((x == y) == (to_string(x) == to_string(y)));
}
