#include "numerics/elementary.h"

#include <limits>

#include "catch.h"

using namespace octet;

TEST_CASE("vector_exp is within 2 ulp of e^x for every normal result", "[vector_math]") {
  double worst = 0;
  for (int64_t i = 0; i <= 2000000; ++i) {
    const float x = -87.33f + static_cast<float>(i) * (176.0f / 2000000.0f);  // up to 88.67
    const double exact = std::exp(static_cast<double>(x));
    if (exact > 3.4e38) continue;
    int exponent = 0;
    std::frexp(exact, &exponent);
    worst = std::max(worst,
                     std::abs(static_cast<double>(vector_exp(x)) - exact) / std::ldexp(1.0, exponent - 24));
  }
  CHECK(worst <= 2.0);
  CHECK(worst > 0.5);  // the measure measures: nothing but correct rounding stays below half an ulp
}

TEST_CASE("vector_exp at the edges", "[vector_math]") {
  const float infinity = std::numeric_limits<float>::infinity();
  CHECK(vector_exp(0.0f) == 1.0f);
  CHECK(vector_exp(-0.0f) == 1.0f);
  CHECK(vector_exp(infinity) == infinity);
  CHECK(vector_exp(88.8f) == infinity);
  CHECK(vector_exp(1e30f) == infinity);
  CHECK(vector_exp(-infinity) == 0.0f);
  CHECK(vector_exp(-1e30f) == 0.0f);
  CHECK(vector_exp(-104.0f) == 0.0f);
  CHECK(std::isnan(vector_exp(std::numeric_limits<float>::quiet_NaN())));
  for (float x = -87.4f; x > -103.0f; x -= 0.1f) {  // subnormal results: one more rounding of half a step
    CHECK(std::abs(static_cast<double>(vector_exp(x)) - std::exp(static_cast<double>(x))) <= 0x1p-149);
  }
}

TEST_CASE("vector_sigmoid is symmetric and saturates cleanly", "[vector_math]") {
  for (const float x : {-200.0f, -90.0f, -20.0f, -1.0f, -1e-3f, 0.0f, 0.5f, 3.0f, 90.0f, 200.0f}) {
    const double exact = 1.0 / (1.0 + std::exp(-static_cast<double>(x)));
    // exp within 2 ulp, the sum and the quotient half an ulp each.
    CHECK(std::abs(static_cast<double>(vector_sigmoid(x)) - exact) <= 3 * 0x1p-23 * exact + 0x1p-126);
  }
}

TEST_CASE("the logarithm is within 4 ulp of double's over all positive numbers, that of 1 is 0") {
  double worst = 0;
  for (uint32_t bits = 1; bits < 0x7f800000u; bits += 977) {
    float x;
    std::memcpy(&x, &bits, 4);
    const double exact = std::log(static_cast<double>(x));
    const float nearest = static_cast<float>(exact);
    const double ulp = static_cast<double>(std::nextafter(std::fabs(nearest), 1e30f) - std::fabs(nearest));
    worst = std::max(worst, std::fabs(static_cast<double>(vector_log(x)) - exact) / ulp);
  }
  CHECK(worst <= 4);
  CHECK(vector_log(1.0f) == 0.0f);
  // Around 1, where the sum of the two parts of n ln2 would cancel.
  for (int i = -2000; i <= 2000; ++i) {
    const float x = 1.0f + static_cast<float>(i) * 0x1p-13f;
    const double exact = std::log(static_cast<double>(x));
    REQUIRE(std::fabs(static_cast<double>(vector_log(x)) - exact) <= 4 * 0x1p-23 * std::fabs(exact));
  }
}

TEST_CASE("powers of numbers from 0 to 1 are those of double, within what the exponent magnifies") {
  for (const float k : {0.0625f, 0.5f, 1.0f, 1.6f, 5.0f, 15.9375f})
    for (int i = 0; i <= 1000; ++i) {
      const float r = static_cast<float>(std::exp(-12.0 * i / 1000));
      const double log = static_cast<double>(k) * std::log(static_cast<double>(r)), exact = std::exp(log);
      if (exact < 0x1p-126) continue;
      // The logarithm's 4 ulp and the product's half, times |log|; then 2 ulp of the exponential.
      const double bound = 4.5 * 0x1p-23 * std::fabs(log) + 2 * 0x1p-23;
      REQUIRE(std::fabs(static_cast<double>(vector_power(r, k)) - exact) <= bound * exact);
    }
  CHECK(vector_power(0.0f, 1.5f) == 0.0f);
  CHECK(vector_power(1.0f, 13.0f) == 1.0f);
  CHECK(std::isnan(vector_power(std::numeric_limits<float>::quiet_NaN(), 2.0f)));
}

namespace {

constexpr double unit = 0x1p-24;
double relative(float value, double exact) {
  return std::abs(static_cast<double>(value) - exact) / std::abs(exact);
}

}  // namespace

TEST_CASE("e^x - 1 and e^x - 1 - x keep their digits near zero", "[vector_math]") {
  double worst = 0, worst_rest = 0, subtracted = 0;
  for (int i = 0; i < 400000; ++i) {
    const float x = -std::ldexp(1.0f + static_cast<float>(i % 1000) * 1e-3f, -30 + i / 10000);
    if (x < -90.0f) continue;
    const double exact = std::expm1(static_cast<double>(x));
    // e^x - 1 - x cancels in double, too: a series where that matters.
    const double d = static_cast<double>(x);
    const double rest =
        x > -1e-2f ? d * d * (0.5 + d / 6 + d * d / 24 + d * d * d / 120 + d * d * d * d / 720) : exact - d;
    const Expm1 e = expm1_and_rest(x);
    worst = std::max(worst, relative(e.expm1, exact));
    worst_rest = std::max(worst_rest, relative(e.rest, rest));
    subtracted = std::max(subtracted, relative((vector_exp(x) - 1.0f) - x, rest));
  }
  CHECK(worst <= 8 * unit);
  CHECK(worst_rest <= 8 * unit);
  CHECK(subtracted > 1);  // what the series is for
  CHECK(expm1_and_rest(0.0f).expm1 == 0.0f);
  CHECK(expm1_and_rest(0.0f).rest == 0.0f);
  CHECK(expm1_and_rest(-1e4f).rest == 9999.0f);
  CHECK(std::isnan(expm1_and_rest(std::numeric_limits<float>::quiet_NaN()).rest));
}

TEST_CASE("vector_tanh and its slope, from the smallest numbers to saturation", "[vector_math]") {
  for (int i = -60000; i <= 60000; ++i) {
    const float x = static_cast<float>(i) * 2e-4f * (i % 2 ? 1.0f : 1e-4f);
    const double exact = std::tanh(static_cast<double>(x)),
                 slope = 1 / std::pow(std::cosh(static_cast<double>(x)), 2);
    const Tanh t = vector_tanh(x);
    // e^y - 1 within 8, then a sum, a quotient and a product; the slope has the quotient twice.
    if (x != 0.0f) REQUIRE(relative(t.value, exact) <= 14 * unit);
    // 1 + e rounds to 2^-24 where it is small, and is a factor of the slope.
    REQUIRE(std::abs(static_cast<double>(t.slope) - slope) <= 20 * unit * slope + 8 * unit);
  }
  CHECK(vector_tanh(0.0f).value == 0.0f);
  CHECK(vector_tanh(0.0f).slope == 1.0f);
  for (const float x : {30.0f, 1e4f, 3e38f}) {
    CHECK(vector_tanh(x).value == 1.0f);
    CHECK(vector_tanh(-x).value == -1.0f);
    CHECK(vector_tanh(x).slope == 0.0f);
  }
}

TEST_CASE("vector_softplus is ln(1 + e^x) everywhere", "[vector_math]") {
  for (int i = -85000; i <= 85000; ++i) {
    const float x = static_cast<float>(i) * 1e-3f;
    // y within 4, y / (2 + y) two more, the series and its products: 14 of a sum of positive terms.
    REQUIRE(relative(vector_softplus(x), std::log1p(std::exp(static_cast<double>(x)))) <= 14 * unit);
  }
  CHECK(vector_softplus(1e4f) == 1e4f);
  CHECK(vector_softplus(-1e4f) == 0.0f);
}

TEST_CASE("the normal distribution keeps its digits in the lower tail", "[vector_math]") {
  const double root = std::sqrt(0.5);
  double by_difference = 0;
  for (int i = -130000; i <= 130000; ++i) {
    const float x = static_cast<float>(i) * 1e-4f;
    const double d = static_cast<double>(x), exact = 0.5 * std::erfc(-d * root);
    REQUIRE(relative(vector_normal(x).cumulative, exact) <= (32 + d * d / 2) * unit);
    if (x > -6) by_difference = std::max(by_difference, relative(1.0f - vector_normal(-x).cumulative, exact));
  }
  CHECK(by_difference > 1e-3);  // what the scaled function is for
  CHECK(vector_normal(1e4f).cumulative == 1.0f);
  CHECK(vector_normal(-1e4f).cumulative == 0.0f);
}
