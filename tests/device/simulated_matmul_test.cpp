// Products of operands that are reduced to ExMy first.
#include <cstring>
#include <vector>

#include "base/error.h"
#include "catch.h"
#include "device/cpu/gemm_state.h"
#include "device/matmul_problem.h"
#include "device/products.h"
#include "numerics/small_float.h"

using namespace octet;
using matrices::Buffer;
using matrices::fixed_order;

namespace {

struct Operands {
  Buffer a, b, out;
  bool transposed;
  explicit Operands(bool transposed_operands)
      : a(DType::BF16, transposed_operands ? Shape{70, 33} : Shape{33, 70}),
        b(DType::BF16, transposed_operands ? Shape{70, 41} : Shape{41, 70}),
        out(DType::F32, {33, 41}),
        transposed(transposed_operands) {
    a.fill_uniform(1, -3, 3);
    b.fill_uniform(2, -3, 3);
    out.fill_uniform(3);
  }
  Matmul matmul() {
    Matmul m;
    m.a.values = a.tensor;
    m.b.values = b.tensor;
    m.a.transposed = m.b.transposed = transposed;
    m.out = out.tensor;
    m.accumulate = transposed;
    return m;
  }
};

std::vector<std::byte> bytes(const Tensor& t) {
  const auto* begin = static_cast<const std::byte*>(t.data);
  return {begin, begin + t.bytes()};
}
void reduce_in_place(const SmallFloat& f, const Tensor& t) {
  auto* values = t.as<BFloat16>();
  for (int64_t i = 0; i < t.elements(); ++i) values[i] = to_small_float(bits_of(f), values[i]);
}

}  // namespace

TEST_CASE("a simulated product is the product of the reduced operands, which stay as they were") {
  for (const DeviceOptions& options : {fixed_order(), DeviceOptions{}})
    for (const bool transposed : {false, true})
      for (const SmallFloat& f : {SmallFloat{8, 3}, SmallFloat{4, 3, SmallRounding::Nearest}}) {
        GemmEngine engine(options, 2);
        Operands simulated(transposed), reduced(transposed), plain(transposed);
        const std::vector<std::byte> a = bytes(simulated.a.tensor), b = bytes(simulated.b.tensor);
        Matmul m = simulated.matmul();
        m.simulate = f;
        engine.run(m);
        CHECK(bytes(simulated.a.tensor) == a);
        CHECK(bytes(simulated.b.tensor) == b);
        reduce_in_place(f, reduced.a.tensor);
        reduce_in_place(f, reduced.b.tensor);
        engine.run(reduced.matmul());
        CHECK(bytes(simulated.out.tensor) == bytes(reduced.out.tensor));
        engine.run(plain.matmul());
        CHECK(bytes(simulated.out.tensor) != bytes(plain.out.tensor));  // the simulation does something
      }
}

TEST_CASE("one operand alone is not enough: both are reduced") {
  GemmEngine engine(fixed_order(), 1);
  const SmallFloat f{8, 2};
  Operands simulated(false), half(false);
  Matmul m = simulated.matmul();
  m.simulate = f;
  engine.run(m);
  for (const Tensor& one : {half.a.tensor, half.b.tensor}) {
    Operands other(false);
    reduce_in_place(f, one.data == half.a.tensor.data ? other.a.tensor : other.b.tensor);
    engine.run(other.matmul());
    CHECK(bytes(simulated.out.tensor) != bytes(other.out.tensor));
  }
}

TEST_CASE("the workspace that was planned suffices for the copies") {
  const std::unique_ptr<Device> device = make_cpu_device(fixed_order());
  Operands operands(false);
  Matmul m = operands.matmul();
  const size_t without = device->workspace_bytes({.matmuls = {&m, 1}});
  m.simulate = {8, 3};
  const size_t with = device->workspace_bytes({.matmuls = {&m, 1}});
  CHECK(with >= without + reduced_operand_bytes(m));
  CHECK(reduced_operand_bytes(operands.matmul()) == 0);
  Tensor workspace{nullptr, DType::U8, {static_cast<int64_t>(with)}};
  workspace.data = device->allocate(with);
  device->set_workspace(workspace);
  CHECK_NOTHROW(device->matmul(m));
  workspace.shape = {static_cast<int64_t>(without)};
  device->set_workspace(workspace);
  CHECK_THROWS_AS(device->matmul(m), Error);
  CHECK_NOTHROW(device->matmul(operands.matmul()));
  device->set_workspace({});
  device->free(workspace.data);
}

TEST_CASE("a count says what operands were reduced to, and only BF16 can be") {
  const std::unique_ptr<Device> device = make_cpu_device(fixed_order());
  Operands operands(false);
  Matmul m = operands.matmul();
  m.simulate = {5, 2, SmallRounding::Nearest};
  device->matmul(m);
  device->matmul(operands.matmul());
  REQUIRE(device->matmul_counts().size() == 2);
  std::vector<std::string> names;
  for (const auto& [key, count] : device->matmul_counts()) names.push_back(operand_name(key, key.a));
  CHECK(names == std::vector<std::string>{"BF16 rounded to E5M2", "BF16"});

  Buffer a(DType::F32, {4, 8}), b(DType::F32, {4, 8}), out(DType::F32, {4, 4});
  Matmul wide;
  wide.a.values = a.tensor;
  wide.b.values = b.tensor;
  wide.out = out.tensor;
  wide.simulate = {8, 3};
  CHECK_THROWS_AS(device->matmul(wide), Error);
}
