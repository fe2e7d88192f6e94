#include <cmath>
#include <cstring>

#include "catch.h"
#include "error_of.h"
#include "op_fixture.h"

using namespace octet;

namespace {

// Source s is 2^9 times the one before, so that the order shows.
Values source_values(int64_t n, int64_t sources, DType dtype) {
  Values values = normal_values(n * sources, 2);
  for (int64_t i = 0; i < n * sources; ++i) {
    float& v = values[static_cast<size_t>(i)];
    v = rounded(dtype, std::ldexp(v, static_cast<int>(9 * (i / n))));
  }
  return values;
}

Values added(int threads, DType dtype, int64_t n, int64_t sources) {
  OpFixture on(threads);
  const Tensor sum = on.floats(DType::F32, {n}, normal_values(n, 1));
  on->add_in_order({.sum = sum, .sources = on.floats(dtype, {sources, n}, source_values(n, sources, dtype))});
  return read_floats(sum);
}

}  // namespace

TEST_CASE("sources are added in FP32 in their order onto what is there, whatever the number of threads") {
  for (const DType dtype : {DType::F32, DType::BF16})
    for (const int64_t n : {1, 7, 1024, 1025, 50003})
      for (const int64_t sources : {1, 2, 5}) {
        INFO(name_of(dtype) << ", " << sources << " x " << n);
        const Values start = normal_values(n, 1), values = source_values(n, sources, dtype);
        Values expected, backwards;
        for (int64_t i = 0; i < n; ++i) {
          float forward = start[static_cast<size_t>(i)], reverse = 0;
          for (int64_t s = 0; s < sources; ++s) {
            forward += values[static_cast<size_t>(s * n + i)];
            reverse += values[static_cast<size_t>((sources - 1 - s) * n + i)];
          }
          expected.push_back(forward);
          backwards.push_back(reverse + start[static_cast<size_t>(i)]);
        }
        for (const int threads : {1, 2, 4}) CHECK(added(threads, dtype, n, sources) == expected);
        if (n > 1000 && sources > 1) CHECK(expected != backwards);  // negative control: the order matters
      }
}

TEST_CASE("doubles are added in their order") {
  OpFixture on;
  const double values[] = {0x1p60, 3.0, -0x1p60, 0x1p-3, 1.0, 0.5};  // [3, 2]
  const Tensor sum = on.zeros(DType::F64, {2}), sources = on.zeros(DType::F64, {3, 2});
  sum.as<double>()[0] = 1.0;
  std::memcpy(sources.data, values, sizeof values);
  on->add_in_order({.sum = sum, .sources = sources});
  CHECK(sum.as<double>()[0] == ((1.0 + 0x1p60) + -0x1p60) + 1.0);
  CHECK(sum.as<double>()[0] == 1.0);  // not 2: the first 1 was lost in the large one
  CHECK(sum.as<double>()[1] == 3.625);
}

TEST_CASE("sources of another type or width are refused") {
  OpFixture on;
  const Tensor sum = on.zeros(DType::F32, {4});
  CHECK_NOTHROW(on->add_in_order({.sum = sum, .sources = on.zeros(DType::BF16, {2, 4})}));
  for (const Tensor& wrong : {on.zeros(DType::F32, {2, 3}), on.zeros(DType::F64, {2, 4}),
                              on.zeros(DType::E4M3, {2, 4}), on.zeros(DType::F32, {8})})
    CHECK(std::string(error_of([&] { on->add_in_order({.sum = sum, .sources = wrong}); }).what())
              .find("add_in_order: ") == 0);
}
