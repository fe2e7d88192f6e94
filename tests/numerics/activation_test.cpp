// G5: xIELU is continuous with slope 0.5 at zero, and its derivatives are
// exact.
#include "numerics/activation.h"

#include <cmath>
#include <limits>

#include "catch.h"

using namespace octet;

namespace {

double softplus(double x) { return std::log1p(std::exp(x)); }
double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }
double xielu(double x, double p, double n) {
  const double a = softplus(p), c = 0.5 + softplus(n);
  return (x > 0 ? a * x * x : c * (std::expm1(x) - x)) + 0.5 * x;
}
double xielu_slope(double x, double p, double n) {
  return (x > 0 ? 2 * softplus(p) * x : (0.5 + softplus(n)) * std::expm1(x)) + 0.5;
}
constexpr auto XIELU = Activation::XIELU;

}  // namespace

TEST_CASE("xIELU is continuous, with slope 0.5 at zero from both sides", "[activation]") {
  for (const Xielu by : {Xielu{0.8f, 0.8f}, Xielu{3.0f, 0.6f}}) {
    CHECK(activate<XIELU>(0.0f, by) == 0.0f);
    for (const float tiny : {1e-30f, 1e-8f, 1e-6f}) {
      for (const float x : {tiny, -tiny}) {
        // The first term that is not linear: a x^2, or c x^2 / 2.
        const double allowed =
            3.0 * static_cast<double>(x) * static_cast<double>(x) + 0x1p-24 * static_cast<double>(tiny);
        CHECK(std::abs(static_cast<double>(activate<XIELU>(x, by)) - 0.5 * static_cast<double>(x)) <=
              allowed);
        CHECK(std::abs(activation_slopes<XIELU>(x, by).x - 0.5f) <= 6.0f * tiny + 0x1p-24f);
      }
    }
  }
  // The released clamp at -1e-6, which ours does without, is a step of c * 1e-6 at zero.
  CHECK(std::abs(0.8 * (std::expm1(std::min(0.0, -1e-6)) - 0.0)) > 7e-7);
}

TEST_CASE("xIELU and its derivatives agree with double, parameters included", "[activation]") {
  for (const double p : {0.2, -2.0, 1.5}) {
    for (const double n : {-1.0, -3.0, 0.7}) {
      const auto pf = static_cast<float>(p), nf = static_cast<float>(n);
      const double pd = pf, nd = nf;
      const Xielu by = xielu_of(pf, nf);
      const double a = softplus(pd), c = 0.5 + softplus(nd);
      for (int i = -2000; i <= 2000; ++i) {
        const float x = static_cast<float>(i) * 1e-2f * (i % 3 ? 1.0f : 0.01f);
        const double d = x, h = 1e-5;
        const ActivationSlopes slopes = activation_slopes<XIELU>(x, by);
        // alphas within 16 * 2^-24, e^x - 1 - x within 8, five operations: relative to the terms, which may
        // cancel.
        const double terms =
            (x > 0 ? a * d * d : c * std::abs(d) * std::min(std::abs(d), 1.0)) + 0.5 * std::abs(d);
        REQUIRE(std::abs(static_cast<double>(activate<XIELU>(x, by)) - xielu(d, pd, nd)) <=
                32 * 0x1p-24 * terms);
        REQUIRE(std::abs(static_cast<double>(slopes.x) - xielu_slope(d, pd, nd)) <=
                32 * 0x1p-24 * ((x > 0 ? 2 * a * d : c) + 0.5));
        // The double reference against central differences: h^2 of the third derivative, 2^-52 / h of the
        // value.
        const double scale = 1 + d * d;
        if (x != 0.0f)
          REQUIRE(std::abs((xielu(d + h, pd, nd) - xielu(d - h, pd, nd)) / (2 * h) -
                           xielu_slope(d, pd, nd)) <= 1e-6 * scale);
        const double by_p = (xielu(d, pd + h, nd) - xielu(d, pd - h, nd)) / (2 * h),
                     by_n = (xielu(d, pd, nd + h) - xielu(d, pd, nd - h)) / (2 * h);
        REQUIRE(std::abs(static_cast<double>(slopes.positive) * sigmoid(pd) - by_p) <= 1e-6 * scale);
        REQUIRE(std::abs(static_cast<double>(slopes.negative) * sigmoid(nd) - by_n) <= 1e-6 * scale);
      }
      CHECK(std::abs(static_cast<double>(xielu_chain(pf)) - sigmoid(pd)) <= 3 * 0x1p-23);
    }
  }
}

TEST_CASE("no activation makes a NaN of a number, and none loses one", "[activation]") {
  const Xielu by{0.8f, 0.8f};
  for (float x : {1e4f, -1e4f, 1e30f, -1e30f, 0.0f, -0.0f, 1e-40f, -1e-40f}) {
    CHECK_FALSE(std::isnan(activate<Activation::GELU>(x, by)));
    CHECK_FALSE(std::isnan(activate<Activation::ReLU2>(x, by)));
    CHECK_FALSE(std::isnan(activate<XIELU>(x, by)));
    CHECK_FALSE(std::isnan(activation_slopes<Activation::GELU>(x, by).x));
    CHECK_FALSE(std::isnan(activation_slopes<XIELU>(x, by).x));
    CHECK_FALSE(std::isnan(activation_slopes<XIELU>(x, by).negative));
  }
  for (float x = -1e4f; x <= 1e4f; x += 0.37f) REQUIRE(std::isfinite(activate<XIELU>(x, by)));
  const float nan = std::numeric_limits<float>::quiet_NaN();
  CHECK(std::isnan(activate<Activation::GELU>(nan, by)));
  CHECK(std::isnan(activate<Activation::ReLU2>(nan, by)));
  CHECK(std::isnan(activate<XIELU>(nan, by)));
  CHECK(std::isnan(activation_slopes<Activation::ReLU2>(nan, by).x));
}

TEST_CASE("GELU is the exact one, not its approximation by tanh", "[activation]") {
  double to_exact = 0, to_tanh = 0;
  for (int i = -500; i <= 500; ++i) {
    const float x = static_cast<float>(i) * 0.01f;
    const double d = x, exact = 0.5 * d * std::erfc(-d * std::sqrt(0.5)),
                 by_tanh = 0.5 * d * (1 + std::tanh(std::sqrt(2 / M_PI) * (d + 0.044715 * d * d * d)));
    const auto h = static_cast<double>(activate<Activation::GELU>(x, {}));
    to_exact = std::max(to_exact, std::abs(h - exact));
    to_tanh = std::max(to_tanh, std::abs(h - by_tanh));
  }
  CHECK(to_exact <= 5 * 50 * 0x1p-24);
  CHECK(to_tanh > 4e-4);
}
