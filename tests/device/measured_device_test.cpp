#include "device/measured_device.h"

#include "catch.h"

#include "op_fixture.h"

namespace octet {
namespace {

TEST_CASE("a measured device does what the device behind it does, and counts only while it measures",
          "[measured_device]") {
  OpFixture f;
  MeasuredDevice measured(f.device());
  const int64_t rows = 3, width = 32;
  const Tensor residual = f.floats(DType::BF16, {rows, width}, normal_values(rows * width, 1));
  const Tensor gain = f.floats(DType::F32, {width}, Values(width, 1.0f));
  RmsNormForward norm;
  norm.residual = residual;
  norm.gain = gain;
  norm.rstd = f.zeros(DType::F32, {rows});
  norm.out.high = f.zeros(DType::BF16, {rows, width});
  f->rmsnorm_forward(norm);
  const Values expected = read_floats(norm.out.high);
  f->zero(norm.out.high);
  measured.rmsnorm_forward(norm);
  CHECK(read_floats(norm.out.high) == expected);
  CHECK(measured.costs().empty());

  measured.measure(true);
  measured.rmsnorm_forward(norm);
  measured.rmsnorm_forward(norm);
  const OperationCost& cost = measured.costs().at("rmsnorm forward");
  CHECK(cost.calls == 2);
  CHECK(cost.seconds > 0);
  CHECK(cost.flops == 0);
  CHECK(cost.bytes == 2 * (2 * rows * width * 2 + width * 4 + rows * 4));  // residual and out, gain, rstd
  // With a branch the residual is written as well.
  norm.branch = f.zeros(DType::BF16, {rows, width});
  CHECK(least_bytes(norm) == cost.bytes / 2 + 2 * rows * width * 2);
}

TEST_CASE("products are counted by class and formats, a sum onto the result twice", "[measured_device]") {
  OpFixture f;
  MeasuredDevice measured(f.device());
  measured.measure(true);
  Matmul product;
  product.a.values = f.zeros(DType::BF16, {4, 16});
  product.b.values = f.zeros(DType::BF16, {8, 16});
  product.out = f.zeros(DType::F32, {4, 8});
  product.gemm_class = GemmClass::Wgrad;
  measured.matmul(product);
  const OperationCost cost = measured.costs().at("matmul wgrad BF16 x BF16");
  CHECK(cost.flops == 2 * 4 * 8 * 16);
  CHECK(cost.bytes == (4 + 8) * 16 * 2 + 4 * 8 * 4);
  product.accumulate = true;
  CHECK(least_bytes(product) == cost.bytes + 4 * 8 * 4);
  CHECK(measured.matmul_counts().size() == 1);
  CHECK(&measured.matmul_counts() == &f->matmul_counts());
}

TEST_CASE("what is added onto a sum is read once, the sum twice", "[measured_device]") {
  OpFixture f;
  const AddInOrder add{.sum = f.zeros(DType::F32, {16}), .sources = f.zeros(DType::BF16, {3, 16})};
  CHECK(least_bytes(add) == 3 * 16 * 2 + 2 * 16 * 4);
  DecodeBlocks decode{.messages = f.zeros(DType::U8, {2, 1, 32}), .out = add.sum, .piece = 16};
  CHECK(least_bytes(decode) == 64 + 64);
  decode.accumulate = true;
  CHECK(least_bytes(decode) == 64 + 2 * 64);
}

TEST_CASE("a cast in place is read and written once", "[measured_device]") {
  OpFixture f;
  CastOperation cast;
  cast.source = f.zeros(DType::BF16, {4, 8});
  cast.out.high = cast.source;
  cast.out.row = f.zeros(DType::E4M3, {4, 8});
  cast.out.column = f.zeros(DType::E4M3, {8, 4});
  CHECK(least_bytes(cast) == 64 + 32 + 32);
  cast.out.high = f.zeros(DType::BF16, {4, 8});
  CHECK(least_bytes(cast) == 64 + 64 + 32 + 32);
}

}  // namespace
}  // namespace octet
