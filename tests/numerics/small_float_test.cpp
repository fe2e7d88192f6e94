// ExMy on BF16: against the definition in double, and what makes it a number format.
#include "numerics/small_float.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "base/random.h"
#include "catch.h"

using namespace octet;

namespace {

constexpr int patterns = 1 << 16;

std::vector<SmallFloat> formats() {
  std::vector<SmallFloat> all;
  for (int x = small_exponent_bits_from; x <= small_exponent_bits_to; ++x)
    for (int y = 0; y <= small_mantissa_bits_to; ++y)
      for (const SmallRounding rounding : {SmallRounding::Truncate, SmallRounding::Nearest})
        for (const Underflow underflow : {Underflow::Flush, Underflow::Clamp}) {
          const SmallFloat f{static_cast<uint8_t>(x), static_cast<uint8_t>(y), rounding, underflow};
          if (f.reduces()) all.push_back(f);
        }
  return all;
}

double largest(const SmallFloat& f) {
  const int bias = (1 << (f.exponent_bits - 1)) - 1;
  return std::ldexp(2 - std::ldexp(1.0, -f.mantissa_bits), bias);
}
double smallest(const SmallFloat& f) { return std::ldexp(1.0, 2 - (1 << (f.exponent_bits - 1))); }

BFloat16 pattern(int bits) { return {static_cast<uint16_t>(bits)}; }
double value(BFloat16 x) { return static_cast<double>(to_float(x)); }

// The definition, on numbers.
double expected(const SmallFloat& f, double x) {
  if (x == 0 || !std::isfinite(x)) return x;
  // BF16's own subnormals have the ulp of its smallest normal number.
  const double magnitude = std::abs(x),
               ulp = std::ldexp(1.0, std::max(std::ilogb(magnitude), -126) - f.mantissa_bits);
  // nearbyint(): to nearest, ties to even.
  double y = (f.rounding == SmallRounding::Truncate ? std::floor(magnitude / ulp)
                                                    : std::nearbyint(magnitude / ulp)) *
             ulp;
  if (y > largest(f)) y = largest(f);
  if (y < smallest(f)) y = f.underflow == Underflow::Clamp ? smallest(f) : 0;
  return std::copysign(y, x);
}

}  // namespace

TEST_CASE("every BF16 value is reduced as the definition says, in every format") {
  for (const SmallFloat& f : formats()) {
    const SmallFloatBits bits = bits_of(f);
    int wrong = 0;
    for (int i = 0; i < patterns; ++i) {
      const BFloat16 x = pattern(i), y = to_small_float(bits, x);
      if (!std::isfinite(value(x))) {
        wrong += y.bits != x.bits;  // infinities, and NaNs with their payload
      } else if (f.mantissa_bits == 0 && f.rounding == SmallRounding::Nearest) {
        // A tie between 2^e and 2^(e+1), whose significands are both even: to the even exponent field.
        const double e = expected(f, value(x));
        const bool tie = (x.bits & 0x7f) == 0x40;
        wrong += tie ? 0 : value(y) != e;
      } else {
        wrong += value(y) != expected(f, value(x)) || std::signbit(value(y)) != std::signbit(value(x));
      }
    }
    INFO(name_of(f) << " " << static_cast<int>(f.rounding) << static_cast<int>(f.underflow));
    CHECK(wrong == 0);
  }
}

TEST_CASE("reducing is idempotent and monotone, and its limits are hit exactly") {
  for (const SmallFloat& f : formats()) {
    const SmallFloatBits bits = bits_of(f);
    int changed = 0, fell = 0;
    double before = -1;
    for (int i = 0; i < 0x7f80; ++i) {  // finite, not negative, ascending
      const BFloat16 once = to_small_float(bits, pattern(i));
      changed += to_small_float(bits, once).bits != once.bits;
      fell += value(once) < before;
      before = value(once);
      const BFloat16 negative = to_small_float(bits, pattern(i | 0x8000));
      changed += negative.bits != (once.bits | 0x8000);
    }
    INFO(name_of(f));
    CHECK(changed == 0);
    CHECK(fell == 0);
    CHECK(before == largest(f));
    const double least = value(to_small_float(bits, pattern(1)));
    CHECK(least == (f.underflow == Underflow::Clamp ? smallest(f) : 0.0));
    CHECK(value(to_small_float(bits, to_bfloat16(static_cast<float>(smallest(f))))) == smallest(f));
    CHECK(to_small_float(bits, pattern(0x8000)).bits == 0x8000);
  }
}

TEST_CASE("E8M7 is BF16 and reduces nothing, every other format does") {
  CHECK_FALSE(SmallFloat{}.reduces());
  CHECK_FALSE(SmallFloat{8, 7, SmallRounding::Nearest, Underflow::Clamp}.reduces());
  CHECK(name_of(SmallFloat{}) == "E8M7");
  for (const SmallFloat& f : formats()) {
    const SmallFloatBits bits = bits_of(f);
    int changed = 0;
    for (int i = 0; i < 0x7f80; ++i) changed += to_small_float(bits, pattern(i)).bits != i;
    CHECK(changed > 0);
  }
}

// Lee et al. publish no numbers; these are of 2^20 standard normal values rounded to BF16, with two digits,
// so 2 % apart at most: mean and root mean square of the relative error.
TEST_CASE("cut mantissas bias normal numbers by what was measured independently") {
  const struct {
    uint8_t mantissa_bits;
    double bias, rms;
  } measured[] = {{6, -0.0028, 0.0041},
                  {5, -0.0084, 0.0107},
                  {4, -0.0195, 0.0237},
                  {3, -0.041, 0.049},
                  {2, -0.082, 0.097}};
  constexpr int n = 1 << 20;
  for (const auto& m : measured) {
    double bias = 0, square = 0, nearest_bias = 0;
    const SmallFloatBits cut = bits_of({8, m.mantissa_bits}),
                         nearest = bits_of({8, m.mantissa_bits, SmallRounding::Nearest});
    int64_t count = 0;
    for (int i = 0; i < n; ++i) {
      const BFloat16 x = to_bfloat16(
          static_cast<float>(random_normal(random_key(5, Purpose::Test), static_cast<uint64_t>(i))));
      if (value(x) == 0) continue;
      const double error = value(to_small_float(cut, x)) / value(x) - 1;
      bias += error;
      square += error * error;
      nearest_bias += value(to_small_float(nearest, x)) / value(x) - 1;
      ++count;
    }
    INFO("E8M" << static_cast<int>(m.mantissa_bits));
    const auto total = static_cast<double>(count);
    CHECK(std::abs(bias / total - m.bias) <= 0.02 * std::abs(m.bias));
    CHECK(std::abs(std::sqrt(square / total) - m.rms) <= 0.02 * m.rms);
    // Negative control: what rounds to nearest does not have that bias.
    CHECK(std::abs(nearest_bias / total) < 0.25 * std::abs(m.bias));
  }
}
