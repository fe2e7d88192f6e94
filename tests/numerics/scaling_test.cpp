#include "numerics/scaling.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "base/random.h"
#include "catch.h"
#include "numerics/block_scales.h"

using namespace octet;

namespace {

constexpr float infinity = std::numeric_limits<float>::infinity();
constexpr float not_a_number = std::numeric_limits<float>::quiet_NaN();

float from_bits(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}

// 2^floor(log2(max / amax)) with a comparison instead of a logarithm: the largest e with 2^e * amax <= max,
// exact in long double (64-bit significand, 15-bit exponent).
long double largest_power(float amax, float max) {
  int e = 0;
  (void)std::frexp(static_cast<long double>(max) / amax,
                   &e);  // the quotient lies in [2^(e-1), 2^e], rounding included
  for (e += 1; std::ldexp(static_cast<long double>(amax), e) > static_cast<long double>(max); --e) {
  }
  return std::ldexp(1.0L, std::min(std::max(e, -126), 126));
}

// Feeds amaxes of successive steps through the ring of one site among several and records every scale.
struct Script {
  DelayedScaling options;
  Cast cast{Format::E4M3, Scaling::Delayed, ScaleRule::PowerOfTwo, Rounding::Nearest};
  std::vector<float> run(const std::vector<float>& amaxes) const {
    constexpr int sites = 3, site = 1;
    std::vector<float> ring(static_cast<size_t>(options.window * sites), 0.0f);
    std::vector<float> scales;
    float scale = 0;
    for (size_t step = 0; step < amaxes.size(); ++step) {
      const auto slot = static_cast<int64_t>(step % static_cast<size_t>(options.window));
      for (int other = 0; other < sites; ++other)
        ring[static_cast<size_t>(slot * sites + other)] = 1e30f;  // not ours
      ring[static_cast<size_t>(slot * sites + site)] = amaxes[step];
      scale = delayed_scale(options, cast, AmaxHistory{ring.data() + site, sites, slot}, scale);
      scales.push_back(scale);
    }
    return scales;
  }
};

}  // namespace

TEST_CASE("a power-of-two scale is exactly 2^floor(log2(max / amax)) for floats of every exponent") {
  for (const float max : {e4m3_max, e5m2_max}) {
    int64_t wrong = 0;
    for (uint64_t u = 1; u < 0x7f800000u; u += 10007) {
      const float amax = from_bits(static_cast<uint32_t>(u));
      wrong += static_cast<long double>(power_of_two_scale(amax, max)) != largest_power(amax, max);
    }
    for (int e = -149; e < 128; ++e)  // powers of two and the max's own multiples, where the floor jumps
      for (const float base : {std::ldexp(1.0f, e), std::ldexp(1.75f, e)})
        for (const float amax : {std::nextafter(base, 0.0f), base, std::nextafter(base, infinity)})
          if (amax > 0 && amax < infinity)
            wrong += static_cast<long double>(power_of_two_scale(amax, max)) != largest_power(amax, max);
    CHECK(wrong == 0);
  }
}

TEST_CASE("scaled by a power of two, the amax lands above max / 2 up to max") {
  for (const Format f : {Format::E4M3, Format::E5M2})
    for (uint64_t i = 0; i < 10000; ++i) {
      const float amax = std::ldexp(1.0f + static_cast<float>(random_bits(3, i)) * 0x1p-33f,
                                    static_cast<int>(i % 200) - 100);
      const float scaled = amax * power_of_two_scale(amax, max_of(f));
      REQUIRE((scaled > max_of(f) / 2 && scaled <= max_of(f)));
    }
}

TEST_CASE("scales and their inverses are normal numbers, and useless amaxes give 1") {
  for (const float max : {e4m3_max, e5m2_max}) {
    for (const float amax : {1e-45f, 1e-38f, 1e-20f, 1.0f, 1e30f, 3.4028235e38f})
      for (const ScaleRule rule : {ScaleRule::PowerOfTwo, ScaleRule::Exact}) {
        const float scale = scale_for(rule, amax, max);
        CHECK(std::isnormal(scale));
        CHECK(std::isnormal(1.0f / scale));
      }
    for (const float amax : {0.0f, -0.0f, -1.0f, infinity, -infinity, not_a_number})
      for (const ScaleRule rule : {ScaleRule::PowerOfTwo, ScaleRule::Exact})
        CHECK(scale_for(rule, amax, max) == 1.0f);
  }
  CHECK(exact_scale(3.0f, 448.0f) == 448.0f / 3.0f);
}

TEST_CASE("max_magnitude ignores signs and order, and never loses an infinity or a NaN") {
  CHECK(max_magnitude(1.0f, -2.0f) == 2.0f);
  CHECK(max_magnitude(0.0f, -0.0f) == 0.0f);
  CHECK(max_magnitude(-infinity, 1.0f) == infinity);
  CHECK(std::isnan(max_magnitude(not_a_number, infinity)));
  CHECK(std::isnan(max_magnitude(1.0f, -not_a_number)));
  CHECK(max_magnitude(1e-45f, 0.0f) == 1e-45f);
}

// ---- the delayed-scaling state machine (F3)
// ----------------------------------------------------------------

TEST_CASE("delayed: a constant amax gives a constant scale from its first step on") {
  Script script;
  for (const float scale : script.run(std::vector<float>(40, 3.0f)))
    CHECK(scale == 128.0f);  // 448 / 3 = 149.3
}

TEST_CASE("delayed: before the first usable amax the scale stays 0, which means no history") {
  CHECK(Script{}.run({0.0f, not_a_number, infinity, 3.0f, 0.0f}) == std::vector<float>{0, 0, 0, 128, 128});
}

TEST_CASE("delayed: a spike influences exactly as many refreshes as the window is long") {
  for (const int window : {1, 2, 16, 1024}) {
    Script script;
    script.options.window = window;
    std::vector<float> amaxes(static_cast<size_t>(3 * window + 5), 1.0f);
    const size_t spike = static_cast<size_t>(window + 2);
    amaxes[spike] = 1000.0f;
    const std::vector<float> scales = script.run(amaxes);
    for (size_t step = 0; step < scales.size(); ++step) {
      const bool influenced = step >= spike && step < spike + static_cast<size_t>(window);
      INFO("window " << window << ", step " << step);
      CHECK(scales[step] == (influenced ? 0.25f : 256.0f));  // 448 / 1000 and 448 / 1
    }
  }
}

TEST_CASE("delayed: most_recent forgets a spike at the next refresh, whatever the window") {
  Script script;
  script.options.algorithm = AmaxAlgorithm::MostRecent;
  CHECK(script.run({1, 1, 1000, 1, 1}) == std::vector<float>{256, 256, 0.25f, 256, 256});
}

TEST_CASE("delayed: a decaying amax is followed one window later") {
  Script script;
  script.options.window = 3;
  // The maximum of the last three: 8 8 8 4 2 1.
  CHECK(script.run({8, 4, 2, 1, 1, 1, 1}) ==
        std::vector<float>{32, 32, 32, 64, 128, 256, 256});  // 448/8 = 56 ..
}

TEST_CASE("delayed: zero, infinite and NaN amaxes keep the present scale and enter no later maximum") {
  for (const float broken : {0.0f, infinity, not_a_number, -1.0f}) {
    Script script;
    script.options.window = 3;
    CHECK(script.run({8, broken, 2, 2, 2}) == std::vector<float>{32, 32, 32, 128, 128});
    script.options.algorithm = AmaxAlgorithm::MostRecent;
    CHECK(script.run({8, broken, 2, 2, 2}) == std::vector<float>{32, 32, 128, 128, 128});
  }
}

TEST_CASE("delayed: the margin leaves binades free, within the range of scales") {
  Script script;
  script.options.margin = 2;
  CHECK(script.run({3.0f}) == std::vector<float>{32});
  script.options.margin = -1;
  CHECK(script.run({3.0f}) == std::vector<float>{256});
  script.options.margin = 1000;
  CHECK(script.run({3.0f}) == std::vector<float>{0x1p-119f});  // clamped margin: 2^7 * 2^-126
  script.options.margin = 3;
  CHECK(script.run({3e38f}) ==
        std::vector<float>{0x1p-123f});  // 448 / 3e38 = 2^-119.0 rounded down to 2^-120
}

TEST_CASE("delayed: the exact rule divides, and the format's maximum is the cast's") {
  Script script;
  script.cast.rule = ScaleRule::Exact;
  CHECK(script.run({3.0f}) == std::vector<float>{448.0f / 3.0f});
  script.cast.format = Format::E5M2;
  CHECK(script.run({3.0f}) == std::vector<float>{57344.0f / 3.0f});
}

TEST_CASE("delayed: the scale used at a step depends on earlier steps only") {
  // Two histories that differ at step 5 alone give equal scales for steps 0..5: the scale of step t is the
  // one that was refreshed after step t - 1.
  std::vector<float> one(10, 1.0f), other = one;
  other[5] = 100.0f;
  const std::vector<float> a = Script{}.run(one), b = Script{}.run(other);
  for (size_t step = 0; step < 5; ++step) CHECK(a[step] == b[step]);
  CHECK(a[5] != b[5]);
}

// Codes are made with the reciprocal of the inverse scale that is stored.
TEST_CASE("an exact scale of a block never saturates the largest value of the block") {
  for (const Format format : {Format::E4M3, Format::E5M2}) {
    const Cast cast{format, Scaling::Blockwise, ScaleRule::Exact};
    int plain = 0;
    for (uint32_t mantissa = 0; mantissa < 128; ++mantissa)
      for (const int exponent : {-20, 0, 13}) {
        const float amax = std::ldexp(1 + static_cast<float>(mantissa) / 128, exponent), max = max_of(format);
        const float inverse = 1.0f / fine_scale(cast, amax);
        CHECK(amax * (1.0f / inverse) <= max);
        CHECK(amax * (1.0f / inverse) >= max * (1 - 0x1p-21f));
        plain += amax * (1.0f / (1.0f / exact_scale(amax, max))) > max;
      }
    CHECK(plain > 0);  // negative control: the scale itself would
  }
}

TEST_CASE("scales of rows take amaxes below 1e-12 for 1e-12, other finer scales do not") {
  Cast rowwise{Format::E4M3, Scaling::Rowwise, ScaleRule::PowerOfTwo, Rounding::Nearest}, other = rowwise;
  other.scaling = Scaling::Current;
  for (const float amax : {0.0f, 1e-30f, 1e-13f}) {
    CHECK(fine_scale(rowwise, amax) == power_of_two_scale(1e-12f, e4m3_max));
    CHECK(fine_scale(other, amax) == power_of_two_scale(amax, e4m3_max));
    CHECK(fine_scale(other, amax) != fine_scale(rowwise, amax));
  }
  for (const float amax : {1e-12f, 3.0f, 1e30f})
    CHECK(fine_scale(rowwise, amax) == power_of_two_scale(amax, e4m3_max));
  CHECK(fine_scale(rowwise, infinity) == 1.0f);
  CHECK(fine_scale(rowwise, not_a_number) == 1.0f);
}

TEST_CASE("scales of blocks have the floor of rows and the cast's own rule") {
  Cast power{Format::E4M3, Scaling::Blockwise, ScaleRule::PowerOfTwo, Rounding::Nearest}, exact = power;
  exact.rule = ScaleRule::Exact;
  for (const float amax : {0.0f, 1e-30f, 1e-12f, 0.3f, 448.0f, 1e30f}) {
    const float taken = std::max(amax, 1e-12f);
    CHECK(fine_scale(power, amax) == power_of_two_scale(taken, e4m3_max));
    CHECK(fine_scale(exact, amax) == e4m3_max / taken * (1 - 0x1p-22f));
  }
  for (const Cast& cast : {power, exact})
    for (const float amax : {infinity, not_a_number}) CHECK(fine_scale(cast, amax) == 1.0f);
}

TEST_CASE("scales of blocks lie as cuBLASLt reads them") {
  // Vectors: outer index first in memory, one run of them for each 128 of the inner one.
  const InverseScales vectors = vector_scales(nullptr, 10);
  CHECK(vectors.index(3, 127) == 3);
  CHECK(vectors.index(3, 128) == 13);
  // Squares: inner blocks first in memory, a run of them rounded up to 4 for each 128 of the outer index.
  CHECK(square_pitch(1) == 4);
  CHECK(square_pitch(512) == 4);
  CHECK(square_pitch(513) == 8);
  const InverseScales squares = square_scales(nullptr, 300);
  CHECK(squares.index(127, 299) == 2);
  CHECK(squares.index(128, 0) == 4);
  const InverseScales across = transposed(squares);
  CHECK(across.index(299, 127) == squares.index(127, 299));
  CHECK(across.index(0, 128) == 4);
}
