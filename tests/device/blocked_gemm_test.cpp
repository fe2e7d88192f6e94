// The fixed order of sums: the same bits for any number of threads, any tiling and any type that holds the
// values.
#include <utility>
#include <vector>

#include "catch.h"
#include "device/cpu/gemm_state.h"
#include "device/matmul_problem.h"

using namespace octet;
using matrices::Buffer;
using matrices::Case;
using matrices::describe;
using matrices::fixed_order;
using matrices::Problem;
using matrices::Scales;

namespace {

std::vector<std::byte> result(const Case& c, int threads, const DeviceOptions& options) {
  Problem problem(c);
  GemmEngine engine(options, threads);
  engine.run(problem.matmul());
  return problem.out.bytes();
}

}  // namespace

TEST_CASE("with fixed order the bits depend neither on threads nor on where a row stands") {
  const std::vector<Case> cases = {{70, 520, 600},
                                   {290, 65, 513, DType::BF16, DType::BF16, DType::F32, true, true, true},
                                   {65, 129, 300, DType::E5M2, DType::E4M3, DType::BF16, false, false, false,
                                    Scales::Outer, Scales::Outer}};
  for (const Case& c : cases) {
    INFO(describe(c));
    const auto one = result(c, 1, fixed_order());
    CHECK(result(c, 2, fixed_order()) == one);
    CHECK(result(c, 4, fixed_order()) == one);
    CHECK(result(c, 1, fixed_order()) == one);
  }
  SECTION("rows in parts") {
    const Case c{70, 130, 600, DType::BF16, DType::BF16, DType::F32};
    Problem whole(c), parts(c);
    GemmEngine engine(fixed_order(), 2);
    engine.run(whole.matmul());
    for (const auto& [first, count] : {std::pair{0, 13}, std::pair{13, 1}, std::pair{14, 56}}) {
      Matmul m = parts.matmul();
      m.a.values = m.a.values.slice(first, count);
      m.out = m.out.slice(first, count);
      engine.run(m);
    }
    CHECK(parts.out.bytes() == whole.out.bytes());
  }
  SECTION("columns in parts") {
    const Case c{30,    90,    300,   DType::E4M3,    DType::E5M2,   DType::F32,
                 false, false, false, Scales::Tensor, Scales::Tensor};
    Problem whole(c);
    GemmEngine engine(fixed_order(), 1);
    engine.run(whole.matmul());
    Buffer part(DType::F32, {30, 17});
    Matmul m = whole.matmul();
    m.b.values = m.b.values.slice(41, 17);
    m.out = part.tensor;
    engine.run(m);
    for (int64_t i = 0; i < 30; ++i)
      for (int64_t j = 0; j < 17; ++j) REQUIRE(part.get(i * 17 + j) == whole.out.get(i * 90 + 41 + j));
  }
}

TEST_CASE("a product of codes has the bits of the product of their values") {
  const Case codes{37,    45,    600,   DType::E4M3,    DType::E5M2,   DType::F32,
                   false, false, false, Scales::Tensor, Scales::Tensor};
  Problem problem(codes);
  problem.a_scales[0] = problem.b_scales[0] = 1;
  GemmEngine engine(fixed_order(), 2);
  engine.run(problem.matmul());
  for (const DType type : {DType::F32, DType::BF16}) {
    Buffer a(type, {37, 600}), b(type, {45, 600}), out(DType::F32, {37, 45});
    for (int64_t i = 0; i < a.tensor.elements(); ++i) a.set(i, problem.a.get(i));
    for (int64_t i = 0; i < b.tensor.elements(); ++i) b.set(i, problem.b.get(i));
    Matmul m;
    m.a.values = a.tensor;
    m.b.values = b.tensor;
    m.out = out.tensor;
    engine.run(m);
    CHECK(out.bytes() == problem.out.bytes());
    b.set(7, b.get(7) + 0.5f);  // negative control: one value changed shows
    engine.run(m);
    CHECK(out.bytes() != problem.out.bytes());
  }
}
