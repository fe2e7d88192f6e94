#include <cmath>

#include "catch.h"
#include "error_of.h"
#include "op_fixture.h"

using namespace octet;

namespace {

struct Outcome {
  Values difference, outer, velocity, local;
  bool operator==(const Outcome&) const = default;
};
Outcome outer_step(int threads, int64_t n, float scale, float rate, float momentum) {
  OpFixture on(threads);
  const Tensor outer = on.floats(DType::F32, {n}, normal_values(n, 1)),
               velocity = on.floats(DType::F32, {n}, normal_values(n, 2)),
               local = on.floats(DType::F32, {n}, normal_values(n, 3));
  on->outer_difference({outer, local});
  Outcome o;
  o.difference = read_floats(local);
  on->outer_update({outer, velocity, local, scale, rate, momentum});
  o.outer = read_floats(outer);
  o.velocity = read_floats(velocity);
  o.local = read_floats(local);
  return o;
}

}  // namespace

TEST_CASE("the outer step is Nesterov's, within the roundings of its operations") {
  const float scale = 0.25f, rate = 0.7f, momentum = 0.9f;
  for (const int64_t n : {1, 7, 4096, 4097, 50003}) {
    const Values w = normal_values(n, 1), u = normal_values(n, 2), own = normal_values(n, 3);
    const Outcome got = outer_step(1, n, scale, rate, momentum);
    for (size_t i = 0; i < w.size(); ++i) {
      REQUIRE(got.difference[i] == w[i] - own[i]);
      // In double, of the FP32 difference. Each of the operations rounds by 2^-24 of what it makes.
      const double d = static_cast<double>(scale) * got.difference[i],
                   v = static_cast<double>(momentum) * u[i] + d,
                   moved = static_cast<double>(rate) * (d + static_cast<double>(momentum) * v);
      const double size_v = std::fabs(momentum * u[i]) + std::fabs(d) * 2 + std::fabs(v),
                   size_w = std::fabs(w[i]) + 3 * (std::fabs(d) + size_v);
      REQUIRE(std::fabs(got.velocity[i] - v) <= 0x1p-24 * size_v);
      REQUIRE(std::fabs(got.outer[i] - (w[i] - moved)) <= 0x1p-24 * 2 * size_w);
      REQUIRE(got.local[i] == got.outer[i]);
    }
    for (const int threads : {2, 4}) CHECK(outer_step(threads, n, scale, rate, momentum) == got);
    // Negative control: plain momentum, without looking ahead.
    bool nesterov = false;
    for (size_t i = 0; i < w.size(); ++i)
      nesterov = nesterov || std::fabs(w[i] - rate * got.velocity[i] - got.outer[i]) > 1e-3;
    CHECK(nesterov);
  }
}

TEST_CASE("with rate 1 and momentum 0 the outer masters are what the ranks have, to one rounding") {
  const int64_t n = 5000;
  const Values w = normal_values(n, 1), own = normal_values(n, 3);
  const Outcome got = outer_step(1, n, 1, 1, 0);
  for (size_t i = 0; i < w.size(); ++i)  // w - (w - own): the inner difference was rounded
    REQUIRE(std::fabs(got.outer[i] - own[i]) <=
            0x1p-24 * (std::fabs(w[i] - own[i]) + std::fabs(own[i])) * 1.01);
}

TEST_CASE("an outer step over tensors of other types or sizes is refused") {
  OpFixture on;
  const Tensor four = on.zeros(DType::F32, {4});
  CHECK_NOTHROW(on->outer_update({four, on.zeros(DType::F32, {4}), on.zeros(DType::F32, {4}), 1, 1, 0}));
  for (const Tensor& wrong : {on.zeros(DType::F32, {3}), on.zeros(DType::BF16, {4})}) {
    for (const Error& error : {error_of([&] {
                                 on->outer_difference({four, wrong});
                               }),
                               error_of([&] {
                                 on->outer_update({four, wrong, on.zeros(DType::F32, {4}), 1, 1, 0});
                               }),
                               error_of([&] {
                                 on->outer_update({four, on.zeros(DType::F32, {4}), wrong, 1, 1, 0});
                               })})
      CHECK(std::string(error.what()).find("outer_") == 0);
  }
}
