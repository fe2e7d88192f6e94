#include "numerics/masters.h"

#include <bit>
#include <cmath>
#include <limits>
#include <set>
#include <vector>

#include "base/random.h"
#include "catch.h"

using namespace octet;

namespace {

float finite_bits(uint64_t i) {
  const uint32_t bits = random_bits(random_key(3, Purpose::Test), i);
  const float value = std::bit_cast<float>(bits);
  return std::isfinite(value) ? value : std::bit_cast<float>(bits & 0xbfffffffu);
}
// Magnitudes from 2^-20 to 2^12.
float usual(uint64_t i) {
  const uint32_t bits = random_bits(random_key(4, Purpose::Test), i);
  return std::bit_cast<float>((bits & 0x807fffffu) | ((127u - 20u + bits % 32u) << 23));
}

}  // namespace

TEST_CASE("FP16: every code comes back, midpoints go to even, what is beyond saturates") {
  for (uint32_t code = 0; code < 0x10000u; ++code) {
    const float value = to_float(Float16{static_cast<uint16_t>(code)});
    const uint32_t magnitude = code & 0x7fffu;
    if (magnitude < 0x7c00u) {
      REQUIRE(to_float16(value).bits == code);
      // Its value, from the format's definition.
      const int exponent = static_cast<int>(magnitude >> 10);
      const double significand = static_cast<double>(magnitude & 0x3ffu) / 1024 + (exponent ? 1 : 0);
      REQUIRE(std::fabs(static_cast<double>(value)) ==
              std::ldexp(significand, (exponent ? exponent : 1) - 15));
      if (magnitude == 0x7bffu) continue;
      const float next = to_float(Float16{static_cast<uint16_t>(code + 1)}), middle = 0.5f * (value + next);
      REQUIRE(to_float16(middle).bits == (code % 2 == 0 ? code : code + 1));
      REQUIRE(to_float16(std::nextafter(middle, value)).bits == code);
      REQUIRE(to_float16(std::nextafter(middle, next)).bits == code + 1);
    } else if (magnitude == 0x7c00u) {
      REQUIRE(std::isinf(value));
    } else {
      REQUIRE(std::isnan(value));
    }
  }
  const float infinity = std::numeric_limits<float>::infinity();
  for (const float large : {65520.0f, 1e30f, infinity}) {
    CHECK(to_float16(large).bits == 0x7bffu);
    CHECK(to_float16(-large).bits == 0xfbffu);
  }
  CHECK(to_float16(std::numeric_limits<float>::quiet_NaN()).bits == 0x7e00u);
  CHECK(to_float16(0x1p-25f).bits == 0);  // the middle below the smallest code
  CHECK(to_float16(std::nextafter(0x1p-25f, 1.0f)).bits == 1);
  CHECK(to_float16(-0.0f).bits == 0x8000u);
}

TEST_CASE("a BF16 and its remainder are the FP32, to the bit, and the BF16 is nearest to it") {
  constexpr auto format = MasterFormat::BF16Remainder;
  const auto check = [](float w) {
    const StoredMaster stored = store_master(format, w, 1, 0);
    REQUIRE(std::bit_cast<uint32_t>(load_master(format, stored, 1)) == std::bit_cast<uint32_t>(w));
    REQUIRE(std::bit_cast<uint32_t>(master_value(format, stored, 1)) == std::bit_cast<uint32_t>(w));
    return stored;
  };
  for (uint64_t i = 0; i < 200000; ++i) {
    const float w = usual(i);
    const float half = to_float(BFloat16{check(w).value});
    const float ulp = std::ldexp(1.0f, std::ilogb(w) - 7);
    REQUIRE(std::fabs(half - w) <= 0.5f * ulp);
    check(finite_bits(i));
  }
  for (const float special : {0.0f, -0.0f, std::numeric_limits<float>::infinity(), 0x1p-149f, 3.4e38f,
                              std::numeric_limits<float>::quiet_NaN()})
    check(special);
  check(std::bit_cast<float>(0x7fffffffu));  // a NaN whose rounding carries into the sign
  // A tie goes away from zero, where a working weight goes to even: it is made from both halves.
  const float tie = std::bit_cast<float>(0x3f808000u);
  CHECK(check(tie).value == 0x3f81u);
  CHECK(to_bfloat16(tie).bits == 0x3f80u);
}

TEST_CASE("no pair of 16 bits holds the rounded weight and the whole FP32: 65537 round to an even BF16") {
  int even = 0, odd = 0;
  for (uint32_t bits = 0x3f7f0000u; bits < 0x3f830000u; ++bits) {
    const uint16_t rounded = to_bfloat16(std::bit_cast<float>(bits)).bits;
    even += rounded == 0x3f80u;
    odd += rounded == 0x3f81u;
  }
  CHECK(even == 65537);
  CHECK(odd == 65535);
}

TEST_CASE("a compensated BF16 keeps an FP32 within 2^-16, BF16 alone does not") {
  double worst = 0, without = 0;
  for (uint64_t i = 0; i < 200000; ++i) {
    const float w = usual(i);
    const StoredMaster stored = store_master(MasterFormat::BF16Kahan, w, 1, 0);
    REQUIRE(master_value(MasterFormat::BF16Kahan, stored, 1) == round_to_bfloat16(w));
    // |w - value| <= 2^(e-8) for |w| in [2^e, 2^(e+1)); that rounded to 8 bits: 2^(e-16); the sum: 2^(e-24).
    const double error = std::fabs(static_cast<double>(load_master(MasterFormat::BF16Kahan, stored, 1) - w)) /
                         std::fabs(static_cast<double>(w));
    worst = std::max(worst, error);
    without = std::max(without, std::fabs(static_cast<double>(round_to_bfloat16(w) - w)) /
                                    std::fabs(static_cast<double>(w)));
  }
  CHECK(worst <= 0x1p-16 + 0x1p-24);
  CHECK(without > 0x1p-9);
}

TEST_CASE("stochastic rounding to BF16 takes one of two neighbours and is right on average") {
  for (const float w : {1.001f, -0.0203f, 1e-6f, 0x1p-130f, 1.0f}) {
    const uint32_t bits = std::bit_cast<uint32_t>(w);
    const float lower = std::bit_cast<float>(bits & 0xffff0000u),
                upper = std::bit_cast<float>((bits & 0xffff0000u) + 0x10000u);
    const double share = static_cast<double>(bits & 0xffffu) / 65536;
    constexpr int draws = 100000;
    int away = 0;
    for (int i = 0; i < draws; ++i) {
      const float stored = to_float(
          to_bfloat16_stochastic(w, random_bits(random_key(5, Purpose::Test), static_cast<uint64_t>(i))));
      REQUIRE((stored == lower || stored == upper));
      away += stored == upper;
    }
    // Four standard errors of a share of draws.
    CHECK(std::fabs(static_cast<double>(away) / draws - share) <= 4 * std::sqrt(share * (1 - share) / draws));
  }
  // What is not finite is not carried over, nor is a number that needs no rounding.
  const float infinity = std::numeric_limits<float>::infinity();
  CHECK(to_float(to_bfloat16_stochastic(-infinity, ~0u)) == -infinity);
  CHECK(std::isnan(to_float(to_bfloat16_stochastic(std::numeric_limits<float>::quiet_NaN(), ~0u))));
  CHECK(to_bfloat16_stochastic(1.5f, ~0u).bits == to_bfloat16(1.5f).bits);
}

TEST_CASE("a block's scale puts its largest magnitude into the upper binade of FP16, whatever its size") {
  for (const float amax : {1e-30f, 3e-5f, 0.02f, 1.0f, 1000.0f, 1e30f}) {
    const float scale = master_scale(amax);
    CHECK(amax * scale > 0.5f * float16_max);
    CHECK(amax * scale <= float16_max);
    // Numbers down to 2^-29 of the largest have FP16's eleven bits.
    for (const float share : {1.0f, 0.3f, 0x1p-14f, 0x1.3p-29f}) {
      const float w = amax * share;
      const StoredMaster stored = store_master(MasterFormat::FP16Scaled, w, scale, 0);
      CHECK(std::fabs(load_master(MasterFormat::FP16Scaled, stored, 1 / scale) - w) <= 0x1p-11f * w);
    }
  }
  CHECK(master_scale(0.0f) == 1.0f);
  CHECK(master_scale(std::numeric_limits<float>::infinity()) == 1.0f);
}
